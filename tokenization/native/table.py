"""The hash table of pre-tokens: slots of 32 bytes, and an arena for what does not fit in them.

    low 8, high 8      the key. A pre-token of up to 15 bytes is its own key, whose top byte is the number of bytes.
                       The key of a longer one is a hash and the length; its top byte is 16, and the arena has the text
    value 8, more 8    counting: how often, and where in the arena
                       encoding: up to 12 bytes of ids, and in the last four their number; or 0, and where in the arena

A slot is free while its high word is 0. If a slot is taken by another key, the next one is tried. Threads that encode
share a table: one that wants a slot first marks it BEING_FILLED, and stores the high word when all the rest is there.
"""

import threading

import numpy as np

from tokenization.native.compiling import compiled, rare
from tokenization.native.instructions import (
    LOW_HALF,
    MIX_1,
    MIX_2,
    add_shared,
    copy_bytes,
    fold_multiply,
    load64,
    load_shared,
    same_bytes,
    shift_right,
    store64,
    store_shared,
    take_shared,
)
from tokenization.native.memory import Head, large_zeros
from tokenization.systems import at_fork

FIRST_SLOTS = 1 << 15
FIRST_ARENA = 1 << 21  # of which only what is used takes memory
MAX_SLOTS, MAX_ARENA = 1 << 20, 1 << 24  # for encoding; tables for counting grow as far as they must

(  # fields of a table's head
    SLOTS,  # address of the slots
    SHIFT,  # 64 - log2(their number)
    USED,  # slots that are not free
    LIMIT,  # slots that may be used
    ARENA,  # address of the arena
    ARENA_USED,  # bytes of it that are used
    ARENA_SIZE,  # bytes of it
) = TABLE_FIELDS = range(0, 7 * 8, 8)

TEXT_PER_PRETOKEN = 333  # bytes of text for each different pre-token, as in 100 MB of English
INLINE_BYTES = 15
LONG = 16 << 56
BEING_FILLED = 17 << 56
CHUNK = 1024  # bytes scanned and then looked up: few enough that their slots arrive in the cache meanwhile
CHUNK_STARTS = CHUNK + 512  # where pre-tokens begin in CHUNK bytes, or parts of them, and 342 in a last one behind
MAX_FREQUENCY = LOW_HALF  # of a word in the cells of the trainer; a more frequent one takes several rows of cells


class Table:
    """The memory of a hash table of pre-tokens."""

    def __init__(self, num_slots: int = FIRST_SLOTS, arena_bytes: int = FIRST_ARENA) -> None:
        self.slots = large_zeros((num_slots, 4), np.int64)
        self.arena = np.empty(arena_bytes, np.uint8)
        self.head = Head(
            TABLE_FIELDS,
            {
                SLOTS: self.slots,
                SHIFT: 65 - num_slots.bit_length(),
                USED: 0,
                LIMIT: num_slots * 5 // 8,
                ARENA: self.arena,
                ARENA_USED: 0,
                ARENA_SIZE: arena_bytes,
            },
        )

    @property
    def unique(self) -> int:
        return self.head[USED]

    @property
    def total(self) -> int:
        return summarize(self.head.address)[0]

    def slots_are_full(self) -> bool:
        return self.head[USED] + CHUNK_STARTS > self.head[LIMIT]

    def release(self) -> None:
        """Gives its memory back; the table must not be used any more."""
        del self.slots, self.arena
        self.head.arrays.clear()

    def with_room_for(self, unique: int) -> "Table":
        """Returns the table, or a copy with so many slots that as many different pre-tokens fit."""
        num_slots = len(self.slots)
        while unique > num_slots * 5 // 8:
            num_slots *= 2
        return self if num_slots == len(self.slots) else self.copy(num_slots, len(self.arena))

    def copy(self, num_slots: int, arena_bytes: int) -> "Table":
        """Copies the table into a larger one. What other threads add to this one meanwhile may be lost."""
        larger = Table(num_slots, arena_bytes)
        rehash(self.head.address, larger.head.address)
        larger.arena[: len(self.arena)] = self.arena
        larger.head[ARENA_USED] = min(self.head[ARENA_USED], len(self.arena))
        return larger

    def larger(self, arena_bytes: int) -> "Table":
        """Copies the table with more slots, or with at least so much more arena, whichever this one lacks."""
        if self.slots_are_full():
            return self.copy(2 * len(self.slots), len(self.arena))
        return self.copy(len(self.slots), len(self.arena) + max(len(self.arena), arena_bytes))

    def renewed(self) -> "Table":
        """Returns a larger table of ids; a small and empty one if this one is as large as it may be."""
        slots, arena = len(self.slots), len(self.arena)
        too_large = 2 * slots > MAX_SLOTS if self.slots_are_full() else 2 * arena > MAX_ARENA
        return Table() if too_large else self.larger(0)


class SharedTable:
    """The table of ids that threads share; a full one is replaced."""

    def __init__(self) -> None:
        self.current = Table()

    def reserve(self, text_bytes: int) -> None:
        """Makes the table as large as a text so long is likely to make it, which saves copying it as it grows."""
        unique = min(text_bytes // TEXT_PER_PRETOKEN, MAX_SLOTS * 5 // 8)
        with _renewing:
            self.current = self.current.with_room_for(unique)

    def renew(self, full: Table) -> Table:
        """Returns the table that follows a full one, which another thread may have made already."""
        with _renewing:
            if self.current is full:
                self.current = full.renewed()
            return self.current


_renewing = threading.Lock()


def _forget_lock() -> None:
    """Gives a forked process a lock of its own: the thread that held this one may not be there to release it."""
    global _renewing
    _renewing = threading.Lock()


at_fork(after_in_child=_forget_lock)


@compiled
def key_of(address: int, length: int) -> tuple[int, int]:
    """Returns the key of a pre-token, (low, high)."""
    if length > INLINE_BYTES:
        return hash_bytes(address, length), LONG | length
    if length <= 8:
        return load64(address) & shift_right(-1, 64 - 8 * length), length << 56
    return load64(address), load64(address + 8) & ((1 << 8 * length - 64) - 1) | length << 56


@compiled
def hash_bytes(address: int, length: int) -> int:
    """Returns a hash of 64 bits."""
    mixed = length
    end = address + length
    while address + 8 <= end:
        mixed = fold_multiply(mixed ^ load64(address) ^ MIX_1, MIX_2 ^ length)
        address += 8
    if address < end:
        rest = load64(address) & shift_right(-1, 64 - 8 * (end - address))
        mixed = fold_multiply(mixed ^ rest ^ MIX_1, MIX_2 ^ length)
    return mixed


@compiled
def home_slot(slots: int, shift: int, low: int, high: int) -> int:
    """Returns the slot at which the search for a key begins."""
    return slots + 32 * shift_right(hash_of_key(low, high), shift)


@compiled
def hash_of_key(low: int, high: int) -> int:
    """Returns 64 bits, of which the highest choose the home slot."""
    return fold_multiply(low ^ MIX_1, high ^ MIX_2)


@compiled
def find_slot(
    slots: int, shift: int, slot: int, low: int, high: int, address: int, length: int, arena: int, text_field: int
) -> tuple[int, bool]:
    """Returns (the slot of the key, True), or (a free slot where it belongs, False).

    Another thread may take the free slot at any time. text_field: the word of a slot that says where a long text is.
    """
    last = slots + (32 << 64 - shift)
    while True:
        taken = load_shared(slot + 8)
        if taken == 0:
            return slot, False
        if taken == high and load64(slot) == low:
            if length <= INLINE_BYTES:
                return slot, True
            if same_bytes(arena + load64(slot + text_field), address, length):
                return slot, True
        slot += 32
        if slot == last:
            slot = slots


@rare
@compiled
def remember(
    table: int, slot: int, low: int, high: int, address: int, length: int, out: int, count: int, width: int
) -> None:
    """Stores the ids of a pre-token, `count` of them at `out`, in its free slot; does nothing if there is no room."""
    value, more = load64(out), load64(out + 8) & LOW_HALF | count << 32
    if length > INLINE_BYTES or count * width > 12:
        text = length if length > INLINE_BYTES else 0
        place = add_shared(table + ARENA_USED, text + count * width)
        if place + text + count * width + 8 > load64(table + ARENA_SIZE):  # 8: ids are read 8 bytes at a time
            return
        copy_bytes(address, load64(table + ARENA) + place, text)
        copy_bytes(out, load64(table + ARENA) + place + text, count * width)
        value, more = place, count
    if load64(table + USED) < load64(table + LIMIT) and take_shared(slot + 8, BEING_FILLED) == 0:
        add_shared(table + USED, 1)
        store64(slot, low)
        store64(slot + 16, value)
        store64(slot + 24, more)
        store_shared(slot + 8, high)


@compiled
def is_full(table: int) -> bool:
    """Tells whether a chunk might fill the table's slots or its arena."""
    return load64(table + USED) + CHUNK_STARTS > load64(table + LIMIT) or load64(
        table + ARENA_USED
    ) + 8 * CHUNK > load64(table + ARENA_SIZE)


@compiled
def rehash(source: int, target: int) -> None:
    """Copies the slots of one table into an empty one, which has room for them and will have the same arena."""
    slots, shift = load64(target + SLOTS), load64(target + SHIFT)
    last = slots + (32 << 64 - shift)
    slot, used = load64(source + SLOTS), 0
    for _ in range(1 << 64 - load64(source + SHIFT)):
        high = load_shared(slot + 8)
        if high and high != BEING_FILLED:
            free = home_slot(slots, shift, load64(slot), high)
            while load64(free + 8):
                free += 32
                if free == last:
                    free = slots
            for field in range(0, 32, 8):
                store64(free + field, load64(slot + field))
            used += 1
        slot += 32
    store64(target + USED, used)


@compiled
def text_of_slot(table: int, slot: int) -> tuple[int, int]:
    """Returns (address, length) of the pre-token in a slot of counts; length 0 for a free slot."""
    high = load64(slot + 8)
    if shift_right(high, 56) == 16:
        return load64(table + ARENA) + load64(slot + 24), high & ~LONG
    return slot, shift_right(high, 56)


@compiled
def summarize(table: int) -> tuple[int, int, int]:
    """Returns (pre-tokens counted, cells for all words of two bytes and more, pairs of bytes in the text)."""
    slot = load64(table + SLOTS)
    pretokens = cells = pairs = 0
    for _ in range(1 << 64 - load64(table + SHIFT)):
        length, amount = text_of_slot(table, slot)[1], load64(slot + 16)
        pretokens += amount
        if length > 1:
            cells += (length + 1) * ((amount + MAX_FREQUENCY - 1) // MAX_FREQUENCY)
            pairs += (length - 1) * amount
        slot += 32
    return pretokens, cells, pairs
