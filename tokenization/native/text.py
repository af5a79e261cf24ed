"""Examines text before it is scanned: whether it is valid, where special tokens stand, where it may be cut."""

from collections.abc import Mapping

import numpy as np

from tokenization.native.characters import (
    CUT,
    LEAD,
    LOWER,
    NUMBER,
    SIGN,
    SPACE,
    UPPER,
    character_length,
    classes_at,
    code_point,
)
from tokenization.native.compiling import compiled
from tokenization.native.instructions import bytes_in_range, load8, load64, same_bytes, trailing_zeros
from tokenization.native.memory import PADDING, address_of
from tokenization.native.scanner import CLASSES, DIGITS, LINES, NO_LIMIT, TAIL

WORD = UPPER | LOWER | NUMBER  # classes

SPECIAL_TEXT, SPECIAL_LENGTH, SPECIAL_ID = range(0, 24, 8)  # fields of a special token's row of int64
SPECIAL_ROW = 24


class SpecialTokens:
    """Special tokens as kernels read them: rows of fields, longer tokens first."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        encoded = ((text.encode(errors="surrogateescape"), token_id) for text, token_id in ids.items())
        tokens = sorted(encoded, key=lambda item: -len(item[0]))
        self.longest = len(tokens[0][0]) if tokens else 1
        self._text = np.frombuffer(b"".join(token for token, _ in tokens) + bytes(PADDING), np.uint8)
        self._first = np.frombuffer(bytes({token[0] for token, _ in tokens}) + b"\0", np.uint8)
        self._rows = np.zeros((len(tokens) + 1, SPECIAL_ROW // 8), np.int64)
        place = address_of(self._text)
        for row, (token, token_id) in zip(self._rows, tokens, strict=False):
            row[SPECIAL_TEXT // 8], row[SPECIAL_LENGTH // 8], row[SPECIAL_ID // 8] = place, len(token), token_id
            place += len(token)
        self.table = address_of(self._rows), len(tokens)
        self.arguments = *self.table, address_of(self._first), len(self._first) - 1


@compiled
def first_invalid(position: int, end: int) -> int:
    """Returns the address of the first byte that is not part of a whole UTF-8 character; `end` if there is none."""
    while position < end:
        high = bytes_in_range(position, 0x80, 128)
        if not high:
            position += 64
            continue
        position += trailing_zeros(high)
        while position < end and load8(position) >= 0x80:
            lead = load8(position)
            length = character_length(lead)
            if length == 1 or lead > 0xF4 or position + length > end:
                return position
            for offset in range(1, length):
                if load8(position + offset) & 0xC0 != 0x80:
                    return position
            code = code_point(position, length)
            shortest = 0x80 if length == 2 else 0x800 if length == 3 else 0x10000
            if code < shortest or code > 0x10FFFF or (code >= 0xD800 and code < 0xE000):
                return position
            position += length
    return end


@compiled
def next_special(
    position: int, end: int, specials: int, num_specials: int, first_bytes: int, num_first_bytes: int
) -> tuple[int, int]:
    """Returns (address, index) of the next special token in [position, end); (end, -1) if there is none.

    specials: rows of SpecialTokens, longer tokens first. first_bytes: the bytes that special tokens begin with.
    """
    while position < end:
        found = 0
        for index in range(num_first_bytes):
            found |= bytes_in_range(position, load8(first_bytes + index), 1)
        while found:
            address = position + trailing_zeros(found)
            for index in range(num_specials):
                special = specials + SPECIAL_ROW * index
                length = load64(special + SPECIAL_LENGTH)
                if address + length <= end and same_bytes(address, load64(special + SPECIAL_TEXT), length):
                    return address, index
            found &= found - 1
        position += 64
    return end, -1


@compiled
def last_cut(begin: int, lowest: int, end: int, scanner: int, specials: int, num_specials: int) -> int:
    """Returns the last address above `lowest` where a text that goes on behind `end` can be cut; `begin` if none.

    A cut lies where no pre-token of the scanner's pattern reaches across, and not inside a special token. At least as
    many bytes as the longest special token has, but for one, follow `end`.
    """
    address = end - 1
    while address > lowest:
        if between_pretokens(begin, address, end, scanner):
            whole = True
            for index in range(num_specials):
                special = specials + SPECIAL_ROW * index
                whole &= not spans(begin, address, load64(special + SPECIAL_TEXT), load64(special + SPECIAL_LENGTH))
            if whole:
                return address
        address -= 1
    return begin


@compiled
def between_pretokens(begin: int, address: int, end: int, scanner: int) -> bool:
    """Tells whether text can be cut, for all that these two characters say.

    It can be between CUT and white space; where LINES says so, between a line end and CUT; and at the end of letters or
    of a number, unless an apostrophe or a mark follows. What is not valid UTF-8, or not whole before `end`, is no place
    to cut.
    """
    start = address - 1
    while start > begin and address - start < 4 and load8(start) & 0xC0 == 0x80:
        start -= 1
    stop, classes = address + character_length(load8(address)), load64(scanner + CLASSES)
    if start + character_length(load8(start)) != address or stop > end or first_invalid(start, stop) != stop:
        return False
    before, behind = classes_at(start, classes), classes_at(address, classes)
    if behind & SPACE:
        return before & CUT != 0
    if load64(scanner + LINES) and (load8(start) == 10 or load8(start) == 13):
        return behind & CUT != 0
    if not before & WORD or before & (SIGN | LEAD) or load8(address) == 39:
        return False
    if behind & WORD:  # a mark is a sign as well
        return (before ^ behind) & NUMBER != 0 and behind & (SIGN | LEAD) == 0
    return behind & SIGN != 0


@compiled
def spans(begin: int, address: int, special: int, length: int) -> bool:
    """Tells whether the special token occurs across the address; `length` - 1 bytes of text follow it."""
    for start in range(max(begin, address - length + 1), address):  # noqa: SIM110, for kernels have no any()
        if same_bytes(start, special, length):
            return True
    return False


@compiled
def uniform_run(begin: int, end: int, scanner: int) -> int:
    """Returns where the last run of one kind of character in a text begins, if its pre-token may go on behind `end`.

    The text is [begin, end), valid UTF-8, and may go on. Cut anywhere within the run, but for its first three
    characters and the last (a number of at most DIGITS: after a multiple of them), the parts have the pre-tokens of the
    whole, and what is cut is part of one. Returns `end` if there is no such run.
    """
    classes, kind, address = load64(scanner + CLASSES), -1, end
    while address > begin:
        start = address - 1
        while load8(start) & 0xC0 == 0x80:
            start -= 1
        this = uniform_kind(start, classes_at(start, classes), scanner)
        if kind == -1:
            kind = this
        if this != kind:
            whole = classes_at(start, classes) & uniform_borders(kind) == 0
            return address if whole else end
        address = start
        if kind == 0:
            return end
    return begin


@compiled
def uniform_kind(address: int, classes: int, scanner: int) -> int:
    """Returns the classes that a run of such characters shares, as a number; 0 for what makes no run."""
    byte = load8(address)
    if classes & SPACE:
        return 0 if load64(scanner + LINES) and (byte == 10 or byte == 13) else SPACE
    if classes & NUMBER:
        return 0 if load64(scanner + DIGITS) < NO_LIMIT and byte >= 0x80 else NUMBER
    if classes & (UPPER | LOWER):
        if classes & (SIGN | LEAD) or classes & LOWER == 0:
            return 0
        return classes & (UPPER | LOWER)
    return 0 if byte == 39 or (byte == 47 and load64(scanner + TAIL) == 2) else SIGN


@compiled
def uniform_borders(kind: int) -> int:
    """Returns the classes that the character before a run of a kind must not have."""
    if kind & (SPACE | NUMBER):
        return kind
    return UPPER | LOWER if kind == UPPER | LOWER else 0
