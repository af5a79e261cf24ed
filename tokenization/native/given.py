"""Stands in for a scanner where `regex` has split the text (pieces.py): the kernels are told where pieces end."""

import numpy as np

from tokenization.native.compiling import compiled, load
from tokenization.native.instructions import load64, store64
from tokenization.native.memory import Head
from tokenization.native.scanner import CODE, SCANNER_FIELDS

(  # what its head has besides the fields of any scanner
    ENDS,  # address of where the text begins, and where its pieces end; none is before the one before it
    NEXT,  # address of the end that comes next, unless the scan begins elsewhere
) = range(8 * len(SCANNER_FIELDS), 8 * len(SCANNER_FIELDS) + 2 * 8, 8)


def given_head() -> Head:
    """Returns the head without any ends; compiles or loads its kernel."""
    fields = *SCANNER_FIELDS, ENDS, NEXT
    return Head(fields, dict.fromkeys(fields, 0) | {CODE: load(find_given)})


def give_ends(scanner: Head, position: int, ends: np.ndarray) -> None:
    """Tells where the pieces of the text at an address end. ends: offsets, int64, of which the last is its length."""
    scanner[ENDS] = np.concatenate([[0], ends]) + position
    scanner[NEXT] = scanner[ENDS] + 8


@compiled
def find_given(position: int, end: int, wanted: int, scanner: int, starts: int) -> int:
    """Writes the addresses where pieces begin, then where the last one ends; returns their number, as scanners do.

    [position, end) lies within the text, so that an end beyond `position` is found; `position` begins a piece.
    """
    place = load64(scanner + NEXT)
    while load64(place - 8) > position:  # the scan begins again, with what was not encoded
        place -= 8
    goal = position + wanted
    count = 0
    while position < end and position < goal:
        while load64(place) <= position:
            place += 8
        store64(starts + 8 * count, position)
        position = min(load64(place), end)
        count += 1
    store64(starts + 8 * count, position)
    store64(scanner + NEXT, place)
    return count
