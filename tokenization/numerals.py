"""Numbers of command lines and of settings, in ASCII digits.

int() and float() also take 1_000, white space around a number, and the digits of every script.
"""

import re

_WHOLE = re.compile(r"[-+]?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|inf|nan)")


def whole_number(text: str) -> int:
    """Reads a whole number. Raises ValueError for anything else."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(text)


def decimal_number(text: str) -> float:
    """Reads a number, inf and nan among them. Raises ValueError for anything else."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a number")
    return float(text)
