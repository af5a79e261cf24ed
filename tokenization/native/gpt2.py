"""The scanner for GPT-2's pattern: finds where pre-tokens begin, 64 bytes at a time, all of a block at once.

Each byte of a block of 64 becomes one bit in the masks of letters, numbers, white space and signs (the rest); all bytes
of a character share its class. In the terms of these masks the pattern says that a pre-token begins
    where a run of letters, numbers or signs begins, unless a plain space stands before it (which then begins it);
    where a run of white space begins, and at its last character if something other than white space follows;
    after a contraction, but not at the letters of one. An apostrophe begins a contraction only where it begins a
    pre-token: with no sign and no plain space before it.
The end of a text counts as white space, because a run of white space that ends the text is one pre-token.
What stands before a beginning has no influence on what follows, so a scan can start at any beginning.
"""

from tokenization.native.characters import (
    LOWER,
    NUMBER,
    SPACE,
    character_length,
    classes_at,
    code_point,
    contraction_length,
    is_ascii_space,
)
from tokenization.native.compiling import compiled
from tokenization.native.instructions import bytes_in_range, load8, load64, shift_right, store64, trailing_zeros
from tokenization.native.scanner import CLASSES


@compiled
def find_starts(position: int, end: int, wanted: int, scanner: int, starts: int) -> int:
    """Writes the addresses where pre-tokens begin, as int64, then where the last one ends; returns their number.

    The text is [position, end), valid UTF-8, and `position` begins a pre-token. The scan stops at the end of the text,
    or when `wanted` bytes are scanned and a pre-token is whole; it writes at most wanted + 128 addresses.
    """
    classes = load64(scanner + CLASSES)
    count = 0
    goal = position + wanted
    letters_before = numbers_before = signs_before = spaces_before = plain_before = 0  # bit 0: of the byte before
    added_later = removed_later = 0  # what a contraction says about the next block
    while position < end and (position < goal or count < 2):
        length = min(64, end - position)
        valid = shift_right(-1, 64 - length)
        letters = bytes_in_range(position, 65, 26) | bytes_in_range(position, 97, 26)
        numbers = bytes_in_range(position, 48, 10)
        plain = bytes_in_range(position, 32, 1)
        spaces = bytes_in_range(position, 9, 5) | plain
        leads = bytes_in_range(position, 0xC0, 64) & valid
        while leads:
            offset = trailing_zeros(leads)
            size = character_length(load8(position + offset))
            if offset + size > length:  # not whole in this block, which ends before the character instead
                length = offset
                valid = shift_right(-1, 64 - length)
                break
            kind = load8(classes + code_point(position + offset, size))
            bits = ((1 << size) - 1) << offset
            if kind & LOWER:
                letters |= bits
            elif kind & NUMBER:
                numbers |= bits
            elif kind & SPACE:
                spaces |= bits
            leads &= leads - 1
        letters &= valid
        numbers &= valid
        plain &= valid
        spaces &= valid
        signs = ~(letters | numbers | spaces) & valid
        following = position + length
        space_follows = 1
        if following < end:
            byte = load8(following)
            space_follows = is_ascii_space(byte)
            if byte >= 0xC0:
                space_follows = classes_at(following, classes) & SPACE != 0

        last_spaces = spaces & ~(shift_right(spaces, 1) | space_follows << (length - 1))
        if last_spaces & bytes_in_range(position, 0x80, 64):  # of white space of several bytes the first one counts
            ends = last_spaces & bytes_in_range(position, 0x80, 64)
            while ends:
                offset = trailing_zeros(ends)
                last_spaces ^= 1 << offset
                while load8(position + offset) < 0xC0:
                    offset -= 1
                last_spaces |= 1 << offset
                ends &= ends - 1

        after_plain = plain << 1 | plain_before
        after_sign = signs << 1 | signs_before
        beginnings = (
            (letters & ~(letters << 1 | letters_before))
            | (numbers & ~(numbers << 1 | numbers_before))
            | (signs & ~after_sign)
        ) & ~after_plain
        beginnings |= spaces & ~(spaces << 1 | spaces_before) | last_spaces

        added, removed = added_later, removed_later
        added_later = removed_later = 0
        apostrophes = bytes_in_range(position, 39, 1) & valid & ~after_sign & ~after_plain
        if apostrophes:
            while apostrophes:
                offset = trailing_zeros(apostrophes)
                size = contraction_length(position + offset, end, False)
                if size:
                    removed |= 2 << offset
                    removed_later |= offset + 1 >= length
                    if offset + size < length:
                        added |= 1 << offset + size
                    else:
                        added_later |= 1 << offset + size - length
                apostrophes &= apostrophes - 1
        beginnings = (beginnings & ~removed | added) & valid

        while beginnings:
            store64(starts + 8 * count, position + trailing_zeros(beginnings))
            count += 1
            beginnings &= beginnings - 1
        last = length - 1
        letters_before = shift_right(letters, last) & 1
        numbers_before = shift_right(numbers, last) & 1
        signs_before = shift_right(signs, last) & 1
        spaces_before = shift_right(spaces, last) & 1
        plain_before = shift_right(plain, last) & 1
        position = following
    if position < end:
        return count - 1  # the last pre-token may go on: the next scan begins with it
    store64(starts + 8 * count, end)
    return count
