"""The scanner for all known patterns: finds where pre-tokens begin, 64 bytes of ASCII at a time.

A block begins where a pre-token does. Each of its bytes becomes one bit in masks of letters, digits, white space and
signs (the rest), and the alternatives of the pattern become operations on these masks: a pre-token begins
    where letters begin, unless a character that may lead them stands before
    where a capital follows a small letter, if the pattern distinguishes them
    where a number begins, and after every DIGITS of it
    where signs begin, unless a plain space stands before
    where white space begins, after its last line end, and at its last character
    after a contraction
What a block cannot decide is matched one character after the other (matching.py): pre-tokens of more than a block, and
those that touch a character that is not ASCII or the end of the text.
"""

from tokenization.native.characters import contraction_length
from tokenization.native.compiling import compiled
from tokenization.native.instructions import (
    bytes_in_range,
    leading_zeros,
    load64,
    shift_right,
    store64,
    trailing_zeros,
)
from tokenization.native.matching import match_pretoken
from tokenization.native.scanner import (
    ANY_LEAD,
    CASED,
    CONTRACTIONS,
    DIGITS,
    LINES,
    SPACED_NUMBERS,
    SUFFIX,
    TAIL,
)
from tokenization.patterns import CONTRACTIONS_ANY_CASE


@compiled
def find_pretokens(position: int, end: int, wanted: int, scanner: int, starts: int) -> int:
    """Writes the addresses where pre-tokens begin, as int64, then where the last one ends; returns their number.

    The text is [position, end), valid UTF-8, and `position` begins a pre-token. The scan stops at the end of the text,
    or once `wanted` bytes are scanned; it writes at most wanted + 64 addresses.
    """
    count, goal = 0, min(end, position + wanted)
    while position < goal:
        beginnings, length = find_beginnings(position, end, scanner)
        block = position
        following = beginnings & (beginnings - 1)
        while following:
            store64(starts + 8 * count, position)
            count += 1
            position = block + trailing_zeros(following)
            following &= following - 1
        if length < 64 or position == block:
            store64(starts + 8 * count, position)
            count += 1
            position = match_pretoken(position, end, scanner)
    store64(starts + 8 * count, position)
    return count


@compiled
def find_beginnings(block: int, end: int, scanner: int) -> tuple[int, int]:
    """Returns (mask of where pre-tokens begin, bytes of the block that it covers: ASCII, and in the text).

    The first bit is always set. Where the pre-token of the last bit ends is not known.
    """
    length = min(64, trailing_zeros(bytes_in_range(block, 0x80, 128)), end - block)
    if length < 2:
        return 1, length
    valid = shift_right(-1, 64 - length)
    uppers, lowers = bytes_in_range(block, 65, 26) & valid, bytes_in_range(block, 97, 26) & valid
    digits, plain = bytes_in_range(block, 48, 10) & valid, bytes_in_range(block, 32, 1) & valid
    lines = (bytes_in_range(block, 10, 1) | bytes_in_range(block, 13, 1)) & valid
    spaces = bytes_in_range(block, 9, 5) & valid | plain
    letters = uppers | lowers
    signs = ~(letters | digits | spaces) & valid

    first_signs = signs & ~(signs << 1 | plain << 1)
    leads = spaces & ~lines | first_signs if load64(scanner + ANY_LEAD) else plain
    beginnings = letters & ~(letters << 1 | leads << 1) | first_signs
    if load64(scanner + CASED):
        beginnings |= uppers & lowers << 1
    if digits:
        beginnings |= number_beginnings(digits, plain, scanner)
    certain = length  # bytes whose bits are final
    if signs << 1 & lines and load64(scanner + TAIL):
        tail = lines & ~(lines + (signs << 1 & lines))
        spaces &= ~tail
        if load64(scanner + TAIL) == 2 and tail << 1 & bytes_in_range(block, 47, 1):
            certain = trailing_zeros(tail)
    marked, known = space_beginnings(spaces, lines, length, scanner)
    beginnings, certain = beginnings | marked, min(certain, known)
    quotes = bytes_in_range(block, 39, 1) & first_signs
    if quotes and load64(scanner + CONTRACTIONS) | load64(scanner + SUFFIX):
        beginnings, known = contract(block, end, quotes, letters, beginnings, length, scanner)
        certain = min(certain, known)
    return beginnings & shift_right(-1, 64 - certain), length


@compiled
def number_beginnings(digits: int, plain: int, scanner: int) -> int:
    """Returns the mask of where numbers begin: runs of digits, and what is beyond DIGITS of them."""
    found = digits & ~(digits << 1)
    beginnings = found & ~(plain << 1) if load64(scanner + SPACED_NUMBERS) else found
    most = load64(scanner + DIGITS)
    if most < 64:
        beyond = digits
        for distance in range(1, most + 1):
            beyond &= digits << distance
        while beyond and found:
            found = found << most & beyond
            beginnings |= found
    return beginnings


@compiled
def space_beginnings(spaces: int, lines: int, length: int, scanner: int) -> tuple[int, int]:
    """Returns (mask of where white space begins a pre-token, number of bytes for which this is certain)."""
    beginnings, certain = spaces & ~(spaces << 1), length
    last = spaces & ~shift_right(spaces, 1)
    if load64(scanner + LINES):
        within = spaces & ~lines
        last &= within
        after_line = within & (lines & spaces) << 1
        beginnings |= after_line
        if (within + after_line) & ~within & lines:  # another line end follows
            certain = trailing_zeros(after_line)
    unfinished = leading_zeros(~(spaces << 64 - length))
    if unfinished:
        certain = min(certain, length - unfinished + 1)
    return beginnings | last, certain


@compiled
def contract(
    block: int, end: int, quotes: int, letters: int, beginnings: int, length: int, scanner: int
) -> tuple[int, int]:
    """Returns (beginnings with contractions in one piece, number of bytes for which they are certain).

    quotes: mask of apostrophes with no sign and no plain space before them.
    """
    taken = 0  # where the last contraction ends
    while quotes:
        offset = trailing_zeros(quotes)
        quotes &= quotes - 1
        suffix = load64(scanner + SUFFIX) & shift_right(letters << 1, offset) & (offset != taken)
        contractions = CONTRACTIONS_ANY_CASE if suffix else load64(scanner + CONTRACTIONS)
        if contractions:
            size = contraction_length(block + offset, end, contractions == CONTRACTIONS_ANY_CASE)
            if size:
                inner, taken = offset + 1 - suffix, offset + size
                if taken >= length:
                    return beginnings, inner
                beginnings = beginnings & ~((1 << taken) - (1 << inner)) | 1 << taken
    return beginnings, length
