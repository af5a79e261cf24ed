"""Characters as kernels see them: UTF-8, and the classes of a split pattern, one bit each, for every code point."""

import functools

import numpy as np
import regex

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load8
from tokenization.patterns import Parts

(  # what a character may be in a pattern
    UPPER,  # a letter in the first part of a word
    LOWER,  # in the second part, which is all of the word unless words end where capitals begin
    LEAD,  # before a word
    NUMBER,
    SIGN,
    SPACE,
    CUT,  # before white space, and after a line end: text may be cut between the two (see text.last_cut)
) = (1 << bit for bit in range(7))

PLANE = 1 << 16  # code points


def class_table(parts: Parts) -> np.ndarray:
    """Returns the classes of each code point, uint8, as `regex` sees it: kernels and pattern agree on Unicode."""
    return _class_table(parts.any_lead, parts.marks, parts.cased, parts.mark_signs, not parts.tail)


@functools.cache  # patterns share tables
def _class_table(any_lead: bool, marks: bool, cased: bool, mark_signs: bool, cut_signs: bool) -> np.ndarray:
    lead = LEAD if any_lead else 0
    other = SIGN | lead | (CUT if cut_signs else 0)
    table = np.full(0x110000, other, np.uint8)
    mark = other if mark_signs else other & ~SIGN
    kinds = {r"\p{N}": NUMBER | CUT, r"\s": SPACE | lead}
    if cased:
        kinds |= {r"\p{Lu}": UPPER | CUT, r"\p{Lt}": UPPER | CUT, r"\p{Ll}": LOWER | CUT}
        kinds |= {r"\p{Lm}": UPPER | LOWER | CUT, r"\p{Lo}": UPPER | LOWER | CUT, r"\p{M}": UPPER | LOWER | mark}
    else:
        kinds |= {r"\p{L}": LOWER | CUT}
        if marks:
            kinds |= {r"\p{M}": LOWER | mark}
    for first in range(0, len(table), PLANE):  # one after the other, for other threads wait meanwhile
        plane = np.arange(first, first + PLANE, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
        for kind, classes in kinds.items():
            for match in regex.finditer(f"{kind}+", plane):
                table[first + match.start() : first + match.end()] = classes
    table[ord(" ")] |= LEAD
    table[[ord("\r"), ord("\n")]] = SPACE
    return table


@compiled
def character_length(lead: int) -> int:
    """Returns the number of bytes of a UTF-8 character, from its first byte."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


@compiled
def code_point(address: int, length: int) -> int:
    """Decodes a valid UTF-8 character of `length` bytes."""
    lead = load8(address)
    if length == 1:
        return lead
    second = load8(address + 1) & 63
    if length == 2:
        return (lead & 31) << 6 | second
    third = load8(address + 2) & 63
    if length == 3:
        return (lead & 15) << 12 | second << 6 | third
    return (lead & 7) << 18 | second << 12 | third << 6 | load8(address + 3) & 63


@compiled
def classes_at(address: int, classes: int) -> int:
    """Returns the classes of a whole and valid character. classes: the address of class_table()."""
    return load8(classes + code_point(address, character_length(load8(address))))


@compiled
def is_ascii_space(byte: int) -> bool:
    """Tells whether a byte is white space by itself."""
    return (byte == 32) | ((byte >= 9) & (byte < 14))


@compiled
def contraction_length(apostrophe: int, end: int, any_case: bool) -> int:
    """Returns the bytes of 's 'd 'm 't 'll 've 're, or 0 for anything else; nothing from `end` on counts.

    any_case: 'S is one as well, and so is ' with U+017F, the long s, whose capital is S.
    """
    if apostrophe + 1 >= end:
        return 0
    fold = 32 if any_case else 0
    first = load8(apostrophe + 1) | fold
    if (first == 115) | (first == 100) | (first == 109) | (first == 116):
        return 2
    if apostrophe + 2 >= end:
        return 0
    second = load8(apostrophe + 2)
    if any_case and load8(apostrophe + 1) == 0xC5 and second == 0xBF:
        return 3
    second |= fold
    if (first == 108) & (second == 108) | ((first == 118) | (first == 114)) & (second == 101):
        return 3
    return 0
