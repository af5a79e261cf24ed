"""Merges short pre-tokens, several at a time: while one waits for the memory, the others go on.

A lane is the memory of one pre-token: its tokens, each where its first byte stands, and the rank of the merge of each
with the next one. A step takes the oldest merge and looks up the two pairs that it makes; the table of merges is large,
so all lanes ask for their slots before the first one reads any.
"""

from tokenization.native.compiling import compiled
from tokenization.native.instructions import (
    equal_to_16,
    equal_to_64,
    fill_16,
    fill_64,
    leading_zeros,
    least_of_16,
    least_of_64,
    load8,
    load32,
    load64,
    prefetch,
    shift_right,
    store32,
    store64,
    trailing_zeros,
)
from tokenization.native.merging import (
    BYTE_IDS,
    BYTE_MERGES,
    ID_BITS,
    MERGED_IDS,
    MERGES,
    MERGES_SHIFT,
    NO_MERGE,
    WIDTH,
    WORK,
    find_merge,
    home_merge,
    merge_long,
    store_id,
)
from tokenization.native.table import ARENA, SHIFT, SLOTS, find_slot, home_slot, key_of, remember

SHORT = 64  # bytes of the longest pre-token that fits in a lane
LANES = 16

(  # fields of a lane; its first 2 * 4 * SHORT bytes are ids, and ranks of merges
    LANE_TOKENS,  # mask of where its tokens begin
    LANE_LENGTH,  # bytes
    LANE_TEXT,  # address of the pre-token
    LANE_AT,  # where the newest token begins
) = range(8 * SHORT, 8 * SHORT + 4 * 8, 8)
LANE_BYTES = 8 * SHORT + 64


@compiled
def start_lane(lane: int, address: int, length: int, encoder: int) -> bool:
    """Fills a lane with the bytes of a pre-token, at most SHORT; returns False if one of them has no token."""
    byte_ids, byte_merges = load64(encoder + BYTE_IDS), load64(encoder + BYTE_MERGES)
    merges, known = lane + 4 * SHORT, 0
    if length <= 16:
        fill_16(merges, NO_MERGE)
    else:
        fill_64(merges, NO_MERGE)
    for index in range(length):
        byte = load8(address + index)
        token_id = load64(byte_ids + 8 * byte)
        known |= token_id
        store32(lane + 4 * index, token_id)
        store32(merges + 4 * index, load32(byte_merges + 4 * (byte << 8 | load8(address + index + 1))))
    store32(merges + 4 * length - 4, NO_MERGE)
    store64(lane + LANE_TOKENS, shift_right(-1, 64 - length))
    store64(lane + LANE_LENGTH, length)
    store64(lane + LANE_TEXT, address)
    return known >= 0


@compiled
def merge_oldest(lane: int, table: int, shift: int, merged_ids: int) -> bool:
    """Does the oldest merge of a lane, and asks for the slots of the new pairs; returns False if nothing merges."""
    merges, few = lane + 4 * SHORT, load64(lane + LANE_LENGTH) <= 16
    best = least_of_16(merges) if few else least_of_64(merges)
    if best == NO_MERGE:
        return False
    at = trailing_zeros(equal_to_16(merges, best) if few else equal_to_64(merges, best))
    merged, tokens = load32(merged_ids + 4 * best), load64(lane + LANE_TOKENS)
    behind = tokens & -2 << at
    store32(merges + 4 * trailing_zeros(behind), NO_MERGE)
    store32(lane + 4 * at, merged)
    tokens ^= behind & -behind
    store64(lane + LANE_TOKENS, tokens)
    store64(lane + LANE_AT, at)
    right = load32(lane + 4 * trailing_zeros(behind & (behind - 1) | 1))
    left = load32(lane + 4 * (63 - leading_zeros(tokens & (1 << at) - 1 | 1)))
    prefetch(home_merge(table, shift, merged << ID_BITS | right))
    prefetch(home_merge(table, shift, left << ID_BITS | merged))
    return True


@compiled
def rank_pairs(lane: int, table: int, shift: int, merged_ids: int) -> None:
    """Looks up the merges of the newest token of a lane with its neighbours."""
    merges, tokens, at = lane + 4 * SHORT, load64(lane + LANE_TOKENS), load64(lane + LANE_AT)
    merged = load32(lane + 4 * at)
    before, behind = tokens & (1 << at) - 1, tokens & -2 << at
    merge = NO_MERGE
    if behind:
        merge = find_merge(table, shift, merged, load32(lane + 4 * trailing_zeros(behind)))
        prefetch(merged_ids + 4 * merge)
    store32(merges + 4 * at, merge)
    if before:
        left = 63 - leading_zeros(before)
        merge = find_merge(table, shift, load32(lane + 4 * left), merged)
        prefetch(merged_ids + 4 * merge)
        store32(merges + 4 * left, merge)


@compiled
def merge_lanes(lanes: int, number: int, encoder: int) -> None:
    """Merges what the lanes hold until nothing merges any more."""
    table, shift, merged_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + MERGED_IDS)
    active = (1 << number) - 1
    while active:
        rest = active
        while rest:
            if not merge_oldest(lanes + LANE_BYTES * trailing_zeros(rest), table, shift, merged_ids):
                active ^= rest & -rest
            rest &= rest - 1
        rest = active
        while rest:
            rank_pairs(lanes + LANE_BYTES * trailing_zeros(rest), table, shift, merged_ids)
            rest &= rest - 1


@compiled
def write_lane(lane: int, out: int, width: int) -> int:
    """Writes the ids in a lane, of `width` bytes each; returns their number."""
    tokens, count = load64(lane + LANE_TOKENS), 0
    while tokens:
        store_id(out, count, width, load32(lane + 4 * trailing_zeros(tokens)))
        count += 1
        tokens &= tokens - 1
    return count


@compiled
def merge_pretoken(address: int, length: int, out: int, encoder: int) -> int:
    """Writes the ids of a pre-token; returns their number, or -1 or -2 as merge_long does."""
    if length > SHORT:
        return merge_long(address, length, out, encoder)
    lane = load64(encoder + WORK)
    if not start_lane(lane, address, length, encoder):
        return -1
    merge_lanes(lane, 1, encoder)
    return write_lane(lane, out, load64(encoder + WIDTH))


@compiled
def learn(starts: int, homes: int, index: int, count: int, table: int, encoder: int) -> None:
    """Stores the ids of those short pre-tokens of a chunk, from `index` on, that are not yet in the table."""
    slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
    lanes, number = load64(encoder + WORK), 0
    while index < count:
        address = load64(starts + 8 * index)
        length = load64(starts + 8 * index + 8) - address
        if length <= SHORT:
            low, high = key_of(address, length)
            if not find_slot(slots, shift, load64(homes + 8 * index), low, high, address, length, arena, 16)[1]:
                if not start_lane(lanes + LANE_BYTES * number, address, length, encoder):
                    break
                number += 1
        index += 1
        if number == LANES:
            store_lanes(lanes, number, table, encoder)
            number = 0
    store_lanes(lanes, number, table, encoder)


@compiled
def store_lanes(lanes: int, number: int, table: int, encoder: int) -> None:
    """Merges the pre-tokens in the lanes and stores their ids in the table."""
    slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
    width, ids = load64(encoder + WIDTH), lanes + LANE_BYTES * LANES
    merge_lanes(lanes, number, encoder)
    for lane in range(lanes, lanes + LANE_BYTES * number, LANE_BYTES):
        address, length = load64(lane + LANE_TEXT), load64(lane + LANE_LENGTH)
        low, high = key_of(address, length)
        home = home_slot(slots, shift, low, high)
        slot, known = find_slot(slots, shift, home, low, high, address, length, arena, 16)
        if not known:  # a chunk may have it twice
            remember(table, slot, low, high, address, length, ids, write_lane(lane, ids, width), width)
