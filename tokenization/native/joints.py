"""Cuts pre-tokens between two characters that no merge joins, so that each part is merged, and looked up, by itself.

A merge of two tokens crosses the place between two characters only if the left token ends there and the right one
begins there: before it, no token stands across that place. So where no merge has such tokens, the ids of a pre-token
are those of its two parts. In scripts that put no space between words a pre-token is a whole clause that no other text
has, while its parts are words and characters that recur.

Only places between two characters of three bytes each are considered: those of Chinese, Japanese, Korean and the
scripts of India and South East Asia. What is set in the table of joints may cross; what is not set cannot. A bit may
stand for several pairs of characters, which costs a cut and never changes an id.
"""

from collections.abc import Sequence

import numpy as np

from tokenization.native.characters import character_length
from tokenization.native.chunks import HOME_BYTES, find_home
from tokenization.native.compiling import compiled, rare
from tokenization.native.instructions import (
    MIX_1,
    bytes_in_range,
    load8,
    load32,
    load64,
    shift_right,
    store8,
    store64,
)
from tokenization.native.memory import address_of

JOINT_BITS = 20  # log2 of the number of bits for pairs of whole characters
PARTIAL = 1 << JOINT_BITS - 3  # where the table goes on: a byte for each last byte and first byte
JOINTS_SIZE = PARTIAL + (64 << 4)  # bytes
SHORTEST_CUT = 10  # bytes of a pre-token that is cut; three characters are looked up at once
LONGEST_CUT = 1024  # a worker always has memory for so much, and never goes on from the middle of a pre-token

# The ends of a token: its first and its last bytes, at most three of them, with their number in the byte above.
ENDS_ROW = 16


def joints_of(byte_ids: Sequence[int], merge_ids: np.ndarray) -> np.ndarray:
    """Returns the table of joints of an encoder, uint8. byte_ids, merge_ids: what `Encoder` takes."""
    table, ids = np.zeros(JOINTS_SIZE, np.uint8), np.array(byte_ids, np.int64)
    rows = np.ascontiguousarray(merge_ids, np.int64)
    ends = np.zeros((max(int(ids.max()), int(rows.max(initial=0))) + 1, ENDS_ROW), np.uint8)
    if not fill_joints(address_of(rows), len(rows), address_of(ids), address_of(ends), address_of(table)):
        table.fill(255)  # nothing is cut
    return table


@compiled
def followed_by(first: int, second: int) -> int:
    """Returns the bytes of two ends, one after the other, and their number: up to six."""
    size = first >> 24
    return (first & 0xFFFFFF | (second & 0xFFFFFF) << 8 * size) | (size + (second >> 24)) << 48


@compiled
def first_end(both: int) -> int:
    """Returns the end that two ends, as followed_by joins them, begin with."""
    size = min(both >> 48, 3)
    return both & (1 << 8 * size) - 1 | size << 24


@compiled
def last_end(both: int) -> int:
    """Returns the end that two ends, as followed_by joins them, end with."""
    size = both >> 48
    kept = min(size, 3)
    return (both & (1 << 48) - 1) >> 8 * (size - kept) | kept << 24


@compiled
def fill_joints(rows: int, count: int, byte_ids: int, ends: int, joints: int) -> bool:
    """Sets the joints of `count` merges; returns False if one of them has a token that no merge before it makes.

    rows: left, right and merged id, int64. ends: ENDS_ROW zero bytes for each id. joints: JOINTS_SIZE zero bytes.
    """
    for value in range(256):
        token_id = load64(byte_ids + 8 * value)
        if token_id >= 0:
            store64(ends + ENDS_ROW * token_id, value | 1 << 24)
            store64(ends + ENDS_ROW * token_id + 8, value | 1 << 24)
    for rank in range(count):
        left, right = ends + ENDS_ROW * load64(rows + 24 * rank), ends + ENDS_ROW * load64(rows + 24 * rank + 8)
        merged = ends + ENDS_ROW * load64(rows + 24 * rank + 16)
        if load64(left) == 0 or load64(right) == 0:
            return False
        set_joint(load64(left + 8), load64(right), joints)
        first, last = followed_by(load64(left), load64(right)), followed_by(load64(left + 8), load64(right + 8))
        store64(merged, first_end(first) if load64(left) >> 24 < 3 else load64(left))
        store64(merged + 8, last_end(last) if load64(right + 8) >> 24 < 3 else load64(right + 8))
    return True


@compiled
def set_joint(last: int, first: int, joints: int) -> None:
    """Sets the joint of two tokens, if they may meet between two characters of three bytes.

    last: the last bytes of the left token. first: the first bytes of the right one.
    """
    size = last >> 24
    byte = (last & 0xFFFFFF) >> 8 * (size - 1)
    if first & 0xF0 == 0xE0 and byte & 0xC0 == 0x80:
        if size < 3 or first >> 24 < 3:
            store8(joints + PARTIAL + ((byte & 63) << 4 | first & 15), 1)
        elif last & 0xF0 == 0xE0:
            bit = joint_bit(last & 0xFFFFFF, first & 0xFFFFFF)
            place = joints + (bit >> 3)
            store8(place, load8(place) | 1 << (bit & 7))


@compiled
def joint_bit(before: int, behind: int) -> int:
    """Returns the bit that stands for two characters of three bytes."""
    return shift_right((before << 24 | behind) * MIX_1, 64 - JOINT_BITS)


@compiled
def find_joint(position: int, end: int, joints: int) -> int:
    """Returns where the part of a pre-token that begins at `position` ends: between characters that no merge joins."""
    place = position + character_length(load8(position))
    while place < end:
        behind = load32(place) & 0xFFFFFF
        if behind & 0xF0 == 0xE0:
            before = load32(max(place - 3, position)) & 0xFFFFFF
            if before & 0xF0 == 0xE0 and place - 3 >= position:
                bit = joint_bit(before, behind)
                partial = load8(joints + PARTIAL + ((before >> 16 & 63) << 4 | behind & 15))
                if not (load8(joints + (bit >> 3)) >> (bit & 7) & 1 | partial):
                    return place
        place += character_length(behind & 255)
    return end


@compiled
def may_have_joints(position: int, end: int) -> bool:
    """Returns whether a text has characters of three bytes, but for the dashes and quotation marks of most texts."""
    found = 0
    for block in range(position, end, 64):
        found |= bytes_in_range(block, 0xE0, 2) | bytes_in_range(block, 0xE3, 13)
    return found != 0


@rare
@compiled
def find_parts(starts: int, count: int, parts: int, homes: int, slots: int, shift: int, joints: int) -> int:
    """Writes the addresses where the parts of pre-tokens begin, and where the last one ends; returns their number.

    starts: where `count` pre-tokens begin, and where the last one ends. Writes the homes of the parts as well, as
    find_homes does.
    """
    number, position = 0, load64(starts)
    for index in range(count):
        end = load64(starts + 8 * index + 8)
        length = end - position
        whole = length < SHORTEST_CUT or length > LONGEST_CUT or load8(end - 3) & 0xF0 != 0xE0
        while position < end:
            stop = end if whole else find_joint(position, end, joints)
            find_home(position, stop, homes + HOME_BYTES * number, slots, shift)
            store64(parts + 8 * number, position)
            number += 1
            position = stop
    store64(parts + 8 * number, position)
    return number
