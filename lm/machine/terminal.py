"""The terminal while a model writes in it."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keys_ignored() -> Iterator[None]:
    """Neither shows what is typed in the terminal meanwhile nor reads it later; Ctrl-C works as ever."""
    try:
        import termios
    except ImportError:  # not everywhere
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    usual = termios.tcgetattr(terminal)
    silent = [*usual]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcflush(terminal, termios.TCIFLUSH)  # what has been typed
        termios.tcsetattr(terminal, termios.TCSANOW, usual)
