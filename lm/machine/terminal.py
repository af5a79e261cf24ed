"""Guards the terminal while a model writes to it."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keys_ignored() -> Iterator[None]:
    """Neither shows what is typed meanwhile nor leaves it to be read later; Ctrl-C still works."""
    try:
        import termios
    except ImportError:  # Windows
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
        termios.tcflush(terminal, termios.TCIFLUSH)  # drops what was typed
        termios.tcsetattr(terminal, termios.TCSANOW, usual)
