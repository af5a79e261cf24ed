"""Errors that a user can correct: one line that names the value, the file and the remedy; commands exit with 2."""

import difflib
import errno
import os
import sys
from collections.abc import Iterable

LONGEST = 1000  # characters of a message
FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class InputError(ValueError):
    """An error with a message for the user: printable, short and on one line, whatever file it quotes."""

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        return printable(message)


def printable(text: str) -> str:
    """Returns a text that a terminal shows as it is: all but printable characters are escaped, as in "\\x1b"."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean NAME?" for the closest of the names, or ""; of a dotted name the last word may do."""
    names = list(names)
    by_last = {known.rpartition(".")[2]: known for known in reversed(names)}
    close = difflib.get_close_matches(name, names, 1)
    close = close or [by_last[last] for last in difflib.get_close_matches(name.rpartition(".")[2], by_last, 1)]
    return f"; did you mean {close[0]}?" if close else ""


def describe_os_error(error: OSError) -> str:
    """Returns one line for the user. A failed write without a file name was one to the standard output."""
    name = error.filename
    if name is None and error.errno in FAILED_WRITES:
        drop_stdout()
        name = "standard output"
    reason = error.strerror or " ".join(str(error).split())
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += "; free some space, or choose another place"
    return f"{name}: {reason}" if name is not None else reason


def drop_stdout() -> None:
    """Discards buffered output that cannot be written; Python would try once more on exit, and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
