"""Merges short pre-tokens, several at a time: while one waits for the memory, the others go on.

A lane is the memory of one pre-token: its tokens, each where its first byte stands, and the rank of the merge of each
with the next one. A step takes the oldest merge and looks up the two pairs that it makes; the table of merges is large,
so all lanes ask for their slots before the first one reads any.
"""

from tokenization.native.chunks import look_up
from tokenization.native.compiling import compiled, rare
from tokenization.native.instructions import (
    fill_words,
    leading_zeros,
    least_of_16,
    least_of_32,
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
from tokenization.native.table import (
    ARENA,
    SHIFT,
    SLOTS,
    find_slot,
    home_slot,
    key_of,
    remember,
)

SHORT = 64  # bytes of the longest pre-token that fits in a lane
LANES = 32
NO_TOKEN_ID = (1 << ID_BITS) - 1  # beside the first and the last token: no vocabulary has it, and so no merge
PLACE_BITS = 6  # of a place in a lane, below the rank of its merge

(  # fields of a lane; before them an id for each byte, and one more on either side; and a merge for each, as well
    LANE_TOKENS,  # mask of where its tokens begin
    LANE_LENGTH,  # bytes
    LANE_TEXT,  # address of the pre-token
    LANE_AT,  # where the newest token begins
) = range(640, 640 + 4 * 8, 8)
LANE_IDS, LANE_MERGES = 64, 384  # uint32; a merge is its rank << PLACE_BITS | place, so that the least comes first
LANE_BYTES = 704
LANES_ROOM = LANE_BYTES * LANES + 4 * SHORT + 16  # bytes of a worker's memory: the lanes, and ids to be stored


@compiled
def start_lane(lane: int, address: int, length: int, encoder: int) -> bool:
    """Fills a lane with the bytes of a pre-token, at most SHORT; returns False if one of them has no token."""
    byte_ids, byte_merges = load64(encoder + BYTE_IDS), load64(encoder + BYTE_MERGES)
    ids, merges, known = lane + LANE_IDS, lane + LANE_MERGES, 0
    for block in range(0, length, 16):
        fill_words(merges + 4 * block, NO_MERGE)
    if length > 32:  # the least of 64 is taken
        fill_words(merges + 4 * 48, NO_MERGE)
    for index in range(length - 1):
        byte = load8(address + index)
        token_id = load64(byte_ids + 8 * byte)
        known |= token_id
        store32(ids + 4 * index, token_id)
        merge = load32(byte_merges + 4 * (byte << 8 | load8(address + index + 1)))
        store32(merges + 4 * index, merge << PLACE_BITS | index)
    token_id = load64(byte_ids + 8 * load8(address + length - 1))
    store32(ids + 4 * length - 4, token_id)
    store32(ids - 4, NO_TOKEN_ID)
    store32(ids + 4 * SHORT, NO_TOKEN_ID)
    store64(lane + LANE_TOKENS, shift_right(-1, 64 - length))
    store64(lane + LANE_LENGTH, length)
    store64(lane + LANE_TEXT, address)
    return known | token_id >= 0


@compiled
def merge_oldest(lane: int, table: int, shift: int, merged_ids: int) -> bool:
    """Does the oldest merge of a lane, and asks for the slots of the new pairs; returns False if nothing merges."""
    ids, merges, length = lane + LANE_IDS, lane + LANE_MERGES, load64(lane + LANE_LENGTH)
    if length <= 16:
        best = least_of_16(merges)
    elif length <= 32:
        best = least_of_32(merges)
    else:
        best = least_of_64(merges)
    if best >> PLACE_BITS == NO_MERGE >> PLACE_BITS:
        return False
    at, merged, tokens = best & SHORT - 1, load32(merged_ids + 4 * (best >> PLACE_BITS)), load64(lane + LANE_TOKENS)
    behind = tokens & -2 << at
    store32(merges + 4 * trailing_zeros(behind), NO_MERGE)
    store32(ids + 4 * at, merged)
    tokens ^= behind & -behind
    store64(lane + LANE_TOKENS, tokens)
    store64(lane + LANE_AT, at)
    prefetch(home_merge(table, shift, merged << ID_BITS | load32(ids + 4 * trailing_zeros(behind & behind - 1))))
    prefetch(home_merge(table, shift, load32(ids + 4 * before(tokens, at)) << ID_BITS | merged))
    return True


@compiled
def before(tokens: int, at: int) -> int:
    """Returns where the token before the one at a place begins; -1 if there is none."""
    return 63 - leading_zeros(tokens & (1 << at) - 1)


@compiled
def rank_pairs(lane: int, table: int, shift: int, merged_ids: int) -> None:
    """Looks up the merges of the newest token of a lane with its neighbours."""
    ids, merges, tokens, at = lane + LANE_IDS, lane + LANE_MERGES, load64(lane + LANE_TOKENS), load64(lane + LANE_AT)
    left, right, merged = before(tokens, at), trailing_zeros(tokens & -2 << at), load32(ids + 4 * at)
    merge = find_merge(table, shift, merged, load32(ids + 4 * right))
    prefetch(merged_ids + 4 * (merge & -(merge != NO_MERGE)))
    store32(merges + 4 * at, merge << PLACE_BITS | at)
    merge = find_merge(table, shift, load32(ids + 4 * left), merged)
    prefetch(merged_ids + 4 * (merge & -(merge != NO_MERGE)))
    store32(merges + 4 * left, merge << PLACE_BITS | left & SHORT - 1)


@compiled
def merge_once(lanes: int, active: int, encoder: int) -> int:
    """Does the oldest merge of each active lane; returns the mask of those in which nothing merges any more."""
    table, shift, merged_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + MERGED_IDS)
    rest, finished = active, 0
    while rest:
        if not merge_oldest(lanes + LANE_BYTES * trailing_zeros(rest), table, shift, merged_ids):
            finished |= rest & -rest
        rest &= rest - 1
    rest = active ^ finished
    while rest:
        rank_pairs(lanes + LANE_BYTES * trailing_zeros(rest), table, shift, merged_ids)
        rest &= rest - 1
    return finished


@compiled
def write_lane(lane: int, out: int, width: int) -> int:
    """Writes the ids in a lane, of `width` bytes each; returns their number."""
    tokens, count = load64(lane + LANE_TOKENS), 0
    while tokens:
        store_id(out, count, width, load32(lane + LANE_IDS + 4 * trailing_zeros(tokens)))
        count += 1
        tokens &= tokens - 1
    return count


@rare
@compiled
def merge_pretoken(address: int, length: int, out: int, encoder: int) -> int:
    """Writes the ids of a pre-token; returns their number, or -1 or -2 as merge_long does."""
    if length > SHORT:
        return merge_long(address, length, out, encoder)
    lane = load64(encoder + WORK)
    if not start_lane(lane, address, length, encoder):
        return -1
    finished = 0
    while not finished:
        finished = merge_once(lane, 1, encoder)
    return write_lane(lane, out, load64(encoder + WIDTH))


@rare
@compiled
def learn(starts: int, homes: int, unknown: int, index: int, count: int, table: int, encoder: int) -> None:
    """Stores the ids of those short pre-tokens of a chunk, from `index` on, that are not yet in the table.

    unknown: room for the numbers of all. A lane whose pre-token is stored takes the next one, so that nearly all lanes
    are at work until the last.
    """
    slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
    lanes, active, taken = load64(encoder + WORK), 0, 0
    count = look_up(starts, index, count, homes, unknown, slots, shift, arena)
    while taken < count or active:
        while taken < count and active != (1 << LANES) - 1:
            index = load64(unknown + 8 * taken)
            address = load64(starts + 8 * index)
            length = load64(starts + 8 * index + 8) - address
            if length <= SHORT:
                free = ~active & active + 1
                if start_lane(lanes + LANE_BYTES * trailing_zeros(free), address, length, encoder):
                    active |= free
            taken += 1
        finished = merge_once(lanes, active, encoder)
        active ^= finished
        while finished:
            store_lane(lanes + LANE_BYTES * trailing_zeros(finished), lanes + LANE_BYTES * LANES, table, encoder)
            finished &= finished - 1


@compiled
def store_lane(lane: int, ids: int, table: int, encoder: int) -> None:
    """Stores the ids of the pre-token in a lane in the table. ids: room for them."""
    address, length, width = load64(lane + LANE_TEXT), load64(lane + LANE_LENGTH), load64(encoder + WIDTH)
    slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
    low, high = key_of(address, length)
    home = home_slot(slots, shift, low, high)
    slot, known = find_slot(slots, shift, home, low, high, address, length, arena, 16)
    if not known:  # a chunk may have it twice
        remember(table, slot, low, high, address, length, ids, write_lane(lane, ids, width), width)
