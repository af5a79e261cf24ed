"""Ends a command on SIGTERM, SIGUSR1 or Ctrl-C with exit code 143, 143 or 130, from its first line on.

During training, Signals takes over: the run saves before it exits (recovery.py).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenization.systems import SIGUSR1

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# SLURM's warning before the end (--signal=USR1@90) is a SIGTERM by another name.
SYNONYMS = {SIGUSR1: signal.SIGTERM} if SIGUSR1 else {}
received: list[int] = []  # before training; an exception in an import or a destructor may have been swallowed


class Interrupted(SystemExit):
    """Raised when a signal ends the command; the exit code is 130 (Ctrl-C) or 143 (SIGTERM)."""


def heeded() -> list[signal.Signals]:
    """Returns the signals that may end this process: those it was not started to ignore.

    A script starts `command &` with SIGINT ignored, because a Ctrl-C meant for the foreground reaches it too.
    """
    return [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]


def meaning(signum: int) -> int:
    """Returns the signal that this one stands for."""
    return SYNONYMS.get(signal.Signals(signum), signum)


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or on its own."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def exit_if_signalled() -> None:
    """Raises Interrupted if a signal has arrived."""
    if received:
        raise Interrupted(128 + received[0])


@contextmanager
def interruptible(command: str) -> Iterator[None]:
    """Ends the command by Interrupted on SIGTERM, SIGUSR1 or Ctrl-C; a second signal ends the process at once."""

    def leave(signum: int, frame: Any) -> None:
        meant = meaning(signum)
        if received:
            os._exit(128 + meant)
        received.append(meant)
        if is_first_process():
            os.write(2, f"\nlm {command}: {signal.Signals(signum).name}; ended, nothing is lost\n".encode())
        exit_if_signalled()

    received.clear()
    before = {signum: signal.signal(signum, leave) for signum in (*heeded(), *SYNONYMS)}
    try:
        yield
    finally:
        received.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Signals:
    """Ends a run after its step on the first SIGTERM, SIGUSR1 or Ctrl-C; from then on, Ctrl-C ends it at once."""

    def __init__(self, quiet: bool) -> None:
        self.received: int | None = None
        self.quiet = quiet
        for signum in (*heeded(), *SYNONYMS):
            signal.signal(signum, self)  # Lightning restores the handlers when the run ends

    def __call__(self, signum: int, frame: Any) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.received = self.received or meaning(signum)
        if not self.quiet:
            name = signal.Signals(signum).name
            now = "a second Ctrl-C" if self.received == signal.SIGINT else "Ctrl-C now"
            os.write(2, f"\n{name}: saving after this step; {now} quits without saving\n".encode())
