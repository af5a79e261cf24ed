"""What SIGTERM and Ctrl-C do to a command: exit code 143 or 130 from its first line on.

During training, Signals takes over: the run saves before it leaves (recovery.py).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
received: list[int] = []  # before training; an exception in an import or a destructor may have been swallowed


class Interrupted(SystemExit):
    """The command ends because of a signal, with the exit code that says so: 130 or 143."""


def heeded() -> list[signal.Signals]:
    """Returns the signals that may end this process: not those it was started to ignore.

    A script starts `command &` with SIGINT ignored, because a Ctrl-C meant for the foreground reaches it, too.
    """
    return [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]


def leave_if_asked() -> None:
    if received:
        raise Interrupted(128 + received[0])


@contextmanager
def interruptible(command: str) -> Iterator[None]:
    """Ends the command at SIGTERM or Ctrl-C by Interrupted; a second signal ends the process."""

    def leave(signum: int, frame: Any) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, f"\nlm {command}: {signal.Signals(signum).name}; ended, nothing is lost\n".encode())
        leave_if_asked()

    received.clear()
    before = {signum: signal.signal(signum, leave) for signum in heeded()}
    try:
        yield
    finally:
        received.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Signals:
    """The first SIGTERM or Ctrl-C asks the run to end after its step; a second Ctrl-C leaves at once."""

    def __init__(self, quiet: bool) -> None:
        self.received: int | None = None
        self.quiet = quiet
        for signum in heeded():
            signal.signal(signum, self)  # Lightning puts back what was there when the run ends

    def __call__(self, signum: int, frame: Any) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.received = self.received or signum
        if not self.quiet:
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: saving after this step; Ctrl-C leaves at once\n".encode())
