"""Matches the alternatives of a known pattern one character after the other: what the pattern means, in full.

blocks.py takes the same decisions for 64 bytes of ASCII at a time and leaves the rest to this file.
"""

from tokenization.native.characters import (
    LEAD,
    LOWER,
    NUMBER,
    SIGN,
    SPACE,
    UPPER,
    character_length,
    classes_at,
    code_point,
    contraction_length,
)
from tokenization.native.compiling import compiled
from tokenization.native.instructions import load8, load64
from tokenization.native.scanner import (
    CLASSES,
    CONTRACTIONS,
    DIGITS,
    LINES,
    SPACED_NUMBERS,
    SUFFIX,
    TAIL,
    WHOLE_END,
)
from tokenization.patterns import CONTRACTIONS_ANY_CASE


@compiled
def match_pretoken(position: int, end: int, scanner: int) -> int:
    """Returns where the pre-token that begins at `position` ends. The text is [position, end), valid UTF-8."""
    if load64(scanner + CONTRACTIONS) and load8(position) == 39:
        length = contraction_length(position, end, load64(scanner + CONTRACTIONS) == CONTRACTIONS_ANY_CASE)
        if length:
            return position + length
    stop = match_word(position, end, scanner)
    if stop > position:
        return stop
    classes = load64(scanner + CLASSES)
    start = position + (load8(position) == 32)
    if start < end:
        found = classes_at(start, classes)
        if found & NUMBER and (start == position or load64(scanner + SPACED_NUMBERS)):
            return match_number(start, end, scanner)
        if found & SIGN:
            stop = match_run(start, end, SIGN, classes)
            return match_tail(stop, end, load64(scanner + TAIL))
    return match_space(position, end, scanner)


@compiled
def match_run(position: int, end: int, wanted: int, classes: int) -> int:
    """Returns where a run of characters of one of the wanted classes ends."""
    while position < end:
        length = character_length(load8(position))
        if not load8(classes + code_point(position, length)) & wanted:
            break
        position += length
    return position


@compiled
def match_word(position: int, end: int, scanner: int) -> int:
    """Returns where a word ends, with a character before its letters where there is one; `position` if there is none.

    A mark may be that character, or a letter of the word: if what follows is only capitals, it is a word by itself.
    """
    classes = load64(scanner + CLASSES)
    length = character_length(load8(position))
    first = load8(classes + code_point(position, length))
    begin = position + length if first & LEAD else position
    stop, has_lower = match_letters(begin, end, classes)
    if first & LEAD and first & (UPPER | LOWER):
        stop = stop if has_lower else begin
    elif stop == begin:
        return position
    if load64(scanner + SUFFIX) and stop < end and load8(stop) == 39:
        stop += contraction_length(stop, end, True)
    return stop


@compiled
def match_letters(position: int, end: int, classes: int) -> tuple[int, bool]:
    """Returns (where UPPER* LOWER+ ends, True); otherwise (where UPPER+ ends, False), which is `position` if nowhere.

    A letter without case is in both classes: before capitals that no small letter follows, it ends the word.
    """
    stop = last = position
    while stop < end:
        length = character_length(load8(stop))
        found = load8(classes + code_point(stop, length))
        if not found & UPPER:
            if found & LOWER:
                return match_run(stop + length, end, LOWER, classes), True
            break
        stop += length
        if found & LOWER:
            last = stop
    return (last, True) if last > position else (stop, False)


@compiled
def match_number(position: int, end: int, scanner: int) -> int:
    """Returns where a number ends, which has at most DIGITS characters."""
    classes, digits = load64(scanner + CLASSES), load64(scanner + DIGITS)
    while digits and position < end:
        length = character_length(load8(position))
        if not load8(classes + code_point(position, length)) & NUMBER:
            break
        position += length
        digits -= 1
    return position


@compiled
def match_tail(position: int, end: int, tail: int) -> int:
    """Returns where the characters that signs take with them end. tail: the field TAIL of a scanner."""
    while tail and position < end:
        byte = load8(position)
        if not ((byte == 10) | (byte == 13) | (byte == 47) & (tail == 2)):
            break
        position += 1
    return position


@compiled
def match_space(position: int, end: int, scanner: int) -> int:
    """Returns where white space is cut, which leaves its last character to what follows."""
    classes = load64(scanner + CLASSES)
    stop, last, line_end = position, position, 0
    while stop < end:
        length = character_length(load8(stop))
        if not load8(classes + code_point(stop, length)) & SPACE:
            break
        last, stop = stop, stop + length
        if (load8(last) == 10) | (load8(last) == 13):
            line_end = stop
    if line_end and load64(scanner + LINES) and not (stop == end and load64(scanner + WHOLE_END)):
        return line_end
    return last if stop < end and last > position else stop
