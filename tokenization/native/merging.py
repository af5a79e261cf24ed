"""Merges the bytes of a pre-token into ids: the table of merges, and pre-tokens of any length, with a heap.

A merge is known by its rank; the oldest has the lowest. A slot of the table of merges is 8 bytes, so that the table
stays in the cache: 21 bits of the left id, 21 of the right id, 22 of the rank + 1; a free slot is 0. Eight slots are a
bucket, a line of the cache.
"""

from tokenization.native.compiling import compiled
from tokenization.native.instructions import (
    LOW_HALF,
    MIX_1,
    equal_above_0,
    equal_above_22,
    load8,
    load32,
    load64,
    prefetch,
    shift_right,
    store16,
    store32,
    store64,
    trailing_zeros,
)

(  # fields of an encoder's head
    MERGES,  # address of the table of merges
    MERGES_SHIFT,  # 64 - log2(its buckets)
    MERGED_IDS,  # address of the ids that merges give, uint32, by rank
    BYTE_MERGES,  # address of the ranks of the merges of two bytes, 65,536 uint32
    BYTE_IDS,  # address of the ids of the bytes, 256 int64; -1 where a byte has no token
    WIDTH,  # bytes of an id in the output: 2 or 4
    WORK,  # address of a worker's memory: WORK_BYTES for each token of CAPACITY, or lanes (lanes.py)
    CAPACITY,  # tokens that it has room for
    JOINTS,  # address of the table of joints (joints.py)
) = ENCODER_FIELDS = range(0, 9 * 8, 8)

ID_BITS, RANK_BITS = 21, 22  # a larger vocabulary is left to plain Python
BUCKET = 64  # bytes: 8 slots, compared at once; where the last one is taken, the next bucket may hold more
NO_MERGE = LOW_HALF  # the rank of a pair that does not merge
WORK_BYTES = 2 * 48  # twice the ids, following, preceding, merges and two words of the heap


@compiled
def home_merge(merges: int, shift: int, key: int) -> int:
    """Returns the bucket at which the search for a key, left id << ID_BITS | right id, begins."""
    return merges + BUCKET * shift_right(key * MIX_1, shift)


@compiled
def find_merge(merges: int, shift: int, left: int, right: int) -> int:
    """Returns the rank of the merge of two ids, or NO_MERGE.

    Whether there is one cannot be predicted, so nothing branches on it: what was not found is read as a free slot, 0.
    """
    key = left << ID_BITS | right
    bucket = home_merge(merges, shift, key)
    found = equal_above_22(bucket, key)
    while (found == 0) & (load64(bucket + BUCKET - 8) != 0):
        bucket += BUCKET
        if bucket == merges + (BUCKET << 64 - shift):
            bucket = merges
        found = equal_above_22(bucket, key)
    slot = load64(bucket + 8 * (trailing_zeros(found) & 7)) & -(found != 0)
    return (slot & ((1 << RANK_BITS) - 1)) - 1 & NO_MERGE


@compiled
def add_merge(merges: int, shift: int, key: int, rank: int) -> None:
    """Enters a key that is not yet there into the first free slot of its bucket, or of one that follows."""
    bucket = home_merge(merges, shift, key)
    free = equal_above_0(bucket, 0)
    while free == 0:
        bucket += BUCKET
        if bucket == merges + (BUCKET << 64 - shift):
            bucket = merges
        free = equal_above_0(bucket, 0)
    store64(bucket + 8 * trailing_zeros(free), key << RANK_BITS | rank + 1)


@compiled
def fill_merges(rows: int, count: int, encoder: int) -> None:
    """Enters `count` rows (left, right and merged id) of int64, the oldest first; of a pair listed twice, the first."""
    merges, shift, byte_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + BYTE_IDS)
    merged_ids, byte_merges = load64(encoder + MERGED_IDS), load64(encoder + BYTE_MERGES)
    for rank in range(count):
        ahead = rows + 24 * min(rank + 16, count - 1)
        prefetch(home_merge(merges, shift, load64(ahead) << ID_BITS | load64(ahead + 8)))
        left, right = load64(rows + 24 * rank), load64(rows + 24 * rank + 8)
        if find_merge(merges, shift, left, right) == NO_MERGE:
            add_merge(merges, shift, left << ID_BITS | right, rank)
        store32(merged_ids + 4 * rank, load64(rows + 24 * rank + 16))
    for left in range(256):
        for right in range(256):
            merge = find_merge(merges, shift, load64(byte_ids + 8 * left), load64(byte_ids + 8 * right))
            store32(byte_merges + 4 * (left << 8 | right), merge)


@compiled
def store_id(out: int, index: int, width: int, token_id: int) -> None:
    """Writes an id of `width` bytes at an index of the output."""
    if width == 2:
        store16(out + 2 * index, token_id)
    else:
        store32(out + 4 * index, token_id)


@compiled
def load_bytes(address: int, length: int, ids: int, merges: int, encoder: int) -> bool:
    """Writes the ids of bytes, and the merge of each with its right neighbour; returns False if a byte has no token."""
    byte_ids, byte_merges = load64(encoder + BYTE_IDS), load64(encoder + BYTE_MERGES)
    known = 0
    for index in range(length):
        byte = load8(address + index)
        token_id = load64(byte_ids + 8 * byte)
        known |= token_id
        store64(ids + 8 * index, token_id)
        store64(merges + 8 * index, load32(byte_merges + 4 * (byte << 8 | load8(address + index + 1))))
    store64(merges + 8 * (length - 1), NO_MERGE)
    return known >= 0


@compiled
def push(heap: int, size: int, rank: int, position: int) -> int:
    """Pushes rank << 32 | position onto a heap, unless the rank is NO_MERGE; returns the new size."""
    if rank == NO_MERGE:
        return size
    hole, value = size, rank << 32 | position
    while hole > 0:
        parent = load64(heap + 8 * ((hole - 1) >> 1))
        if parent <= value:
            break
        store64(heap + 8 * hole, parent)
        hole = (hole - 1) >> 1
    store64(heap + 8 * hole, value)
    return size + 1


@compiled
def pop(heap: int, size: int) -> int:
    """Returns the least of `size` values; the others become the heap's first size - 1."""
    least, value = load64(heap), load64(heap + 8 * (size - 1))
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size - 1:
            break
        if child + 1 < size - 1 and load64(heap + 8 * child + 8) < load64(heap + 8 * child):
            child += 1
        if load64(heap + 8 * child) >= value:
            break
        store64(heap + 8 * hole, load64(heap + 8 * child))
        hole = child
    store64(heap + 8 * hole, value)
    return least


@compiled
def merge_section(address: int, length: int, work: int, encoder: int) -> bool:
    """Merges `length` bytes, at most CAPACITY, in n log n; leaves the tokens in `work` as a linked list.

    The heap holds rank << 32 | position of the left token; an entry whose pair no longer exists is skipped. Returns
    False if a byte has no token.
    """
    table, shift, merged_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + MERGED_IDS)
    stride = 8 * load64(encoder + CAPACITY)
    ids, following, preceding, merges, heap = (
        work,
        work + stride,
        work + 2 * stride,
        work + 3 * stride,
        work + 4 * stride,
    )
    if not load_bytes(address, length, ids, merges, encoder):
        return False
    size = 0
    for index in range(length):
        store64(following + 8 * index, index + 1)
        store64(preceding + 8 * index, index - 1)
        size = push(heap, size, load64(merges + 8 * index), index)
    while size:
        entry = pop(heap, size)
        size -= 1
        rank, at = entry >> 32, entry & LOW_HALF
        if load64(merges + 8 * at) != rank:
            continue
        merged = load32(merged_ids + 4 * rank)
        store64(ids + 8 * at, merged)
        right = load64(following + 8 * at)
        store64(merges + 8 * right, NO_MERGE)
        right = load64(following + 8 * right)
        store64(following + 8 * at, right)
        merge = NO_MERGE
        if right < length:
            store64(preceding + 8 * right, at)
            merge = find_merge(table, shift, merged, load64(ids + 8 * right))
        store64(merges + 8 * at, merge)
        size = push(heap, size, merge, at)
        left = load64(preceding + 8 * at)
        if left >= 0:
            merge = find_merge(table, shift, load64(ids + 8 * left), merged)
            store64(merges + 8 * left, merge)
            size = push(heap, size, merge, left)
    return True


@compiled
def merge_long(address: int, length: int, out: int, encoder: int) -> int:
    """Writes the ids of a pre-token of any length, a section of CAPACITY bytes at a time.

    Consecutive sections overlap, and are joined at a token that both have at the same place. That is exact: a sequence
    of tokens encodes its text if and only if every two neighbours encode theirs. (No merge crosses from one to the
    other in the text of the two alone; and the merges of a longer text, seen there, come in the same order.)
    Returns the number of ids; -1 if a byte has no token; -2 if the sections share no token, so CAPACITY is too small.
    """
    capacity, width, work = load64(encoder + CAPACITY), load64(encoder + WIDTH), load64(encoder + WORK)
    other_work = work + 48 * capacity
    count = begin = token = 0  # `token`: the next to write, as its place in the section at `begin`
    size = min(capacity, length)
    if not merge_section(address, size, work, encoder):
        return -1
    while begin + size < length:
        ids, following = work, work + 8 * capacity
        other_ids, other_following = other_work, other_work + 8 * capacity
        shared = token
        while shared < size - size // 4:
            shared = load64(following + 8 * shared)
        if shared == size:
            return -2
        shift, other = shared, 0
        other_size = min(capacity, length - begin - shift)
        if not merge_section(address + begin + shift, other_size, other_work, encoder):
            return -1
        while shared < size and other < other_size:
            if shared < other + shift:
                shared = load64(following + 8 * shared)
            elif shared > other + shift:
                other = load64(other_following + 8 * other)
            elif load64(ids + 8 * shared) == load64(other_ids + 8 * other):
                break
            else:
                shared = load64(following + 8 * shared)
        if shared >= size or other >= other_size:
            return -2
        while token < shared:
            store_id(out, count, width, load64(ids + 8 * token))
            count += 1
            token = load64(following + 8 * token)
        begin, size, token = begin + shift, other_size, other
        work, other_work = other_work, work
    while token < size:
        store_id(out, count, width, load64(work + 8 * token))
        count += 1
        token = load64(work + 8 * (capacity + token))
    return count
