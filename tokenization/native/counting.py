"""Counts pre-tokens: every thread in a table of its own, and all tables added up in the end."""

import queue
from collections.abc import Sequence

from tokenization.native.chunks import HOME, HOME_BYTES, HOME_HIGH, HOME_LOW, HOMES, Scratch, find_homes
from tokenization.native.compiling import compiled
from tokenization.native.instructions import copy_bytes, load64, shift_right, store64
from tokenization.native.memory import DONE, TABLE_FULL, Head, address_of
from tokenization.native.scanner import CODE, call
from tokenization.native.splitting import scanner_head
from tokenization.native.table import (
    ARENA,
    ARENA_SIZE,
    ARENA_USED,
    CHUNK,
    CHUNK_STARTS,
    INLINE_BYTES,
    LIMIT,
    LONG,
    SHIFT,
    SLOTS,
    USED,
    Table,
    find_slot,
    home_slot,
)
from tokenization.native.text import SPECIAL_LENGTH, SPECIAL_ROW, SpecialTokens, next_special
from tokenization.native.windows import Window, cut_into_windows, in_order
from tokenization.text.corpus import Corpus


def count_corpus(corpus: Corpus, special_tokens: Sequence[str], pattern: str, num_threads: int) -> Table:
    """Counts how often each pre-token of a pattern that kernels know occurs in all the files together."""
    special = SpecialTokens(dict.fromkeys(corpus.boundaries(special_tokens), 0))
    scanner = scanner_head(pattern)
    counters: queue.SimpleQueue[Counter] = queue.SimpleQueue()
    for _ in range(num_threads):
        counters.put(Counter())

    def work(window: Window) -> None:
        counter = counters.get()
        try:
            counter.count(window.valid(corpus.errors), special, scanner)
        finally:
            counters.put(counter)

    for _ in in_order(work, cut_into_windows(corpus, special, scanner), num_threads):
        pass
    total = counters.get()
    while not counters.empty():
        total.add(counters.get().table)
    return total.table


class Counter:
    """The counts of one thread."""

    def __init__(self) -> None:
        self.table, self._scratch = Table(), Scratch()

    def count(self, window: Window, special: SpecialTokens, scanner: Head) -> None:
        """Counts the pre-tokens of a window, whose text is valid UTF-8."""
        position = address_of(window.buffer)
        end, status = position + window.length, None
        while status != DONE:
            if status is not None:
                self.table = self.table.larger(end - position)
            status, position = count_window(
                position,
                end,
                self.table.head.address,
                self._scratch.address,
                scanner.address,
                *special.arguments,
            )

    def add(self, other: Table) -> None:
        """Adds the counts of another table, whose own counts are 0 afterwards."""
        # Large enough at once: in the order of its slots, the other's keys would crowd in the front of a growing table.
        self.table = self.table.with_room_for(self.table.unique + other.unique)
        while add_table(other.head.address, self.table.head.address) != DONE:
            self.table = self.table.larger(other.head[ARENA_USED])


@compiled
def count_window(
    position: int,
    end: int,
    table: int,
    scratch: int,
    scanner: int,
    specials: int,
    num_specials: int,
    first_bytes: int,
    num_first_bytes: int,
) -> tuple[int, int]:
    """Counts the pre-tokens of [position, end) without special tokens; returns (status, address that it came to).

    scratch: the memory of a Scratch.
    """
    homes = scratch + HOMES
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if load64(table + USED) + CHUNK_STARTS > load64(table + LIMIT):
                return TABLE_FULL, position
            count = call(load64(scanner + CODE), position, stop, CHUNK, scanner, scratch)
            find_homes(scratch, count, homes, load64(table + SLOTS), load64(table + SHIFT))
            for index in range(count):
                home = homes + HOME_BYTES * index
                slot, low, high = load64(home + HOME), load64(home + HOME_LOW), load64(home + HOME_HIGH)
                if load64(slot) == low and load64(slot + 8) == high and high < LONG:
                    store64(slot + 16, load64(slot + 16) + 1)
                    continue
                address = load64(scratch + 8 * index)
                length = load64(scratch + 8 * index + 8) - address
                if not add_count(table, slot, low, high, address, length, 1):
                    return TABLE_FULL, address
            position = load64(scratch + 8 * count)
        if special >= 0:
            position += load64(specials + SPECIAL_ROW * special + SPECIAL_LENGTH)
    return DONE, position


@compiled
def add_count(table: int, slot: int, low: int, high: int, address: int, length: int, amount: int) -> bool:
    """Adds to the count of a pre-token; a new one takes a slot, and room in the arena if it is long.

    slot: its home slot. Returns False, with nothing changed, if the arena is too small.
    """
    slots, arena = load64(table + SLOTS), load64(table + ARENA)
    slot, known = find_slot(slots, load64(table + SHIFT), slot, low, high, address, length, arena, 24)
    if not known:
        if length > INLINE_BYTES:
            used = load64(table + ARENA_USED)
            if used + length > load64(table + ARENA_SIZE):
                return False
            copy_bytes(address, arena + used, length)
            store64(slot + 24, used)
            store64(table + ARENA_USED, used + length)
        store64(slot, low)
        store64(slot + 8, high)
        store64(table + USED, load64(table + USED) + 1)
    store64(slot + 16, load64(slot + 16) + amount)
    return True


@compiled
def add_table(source: int, target: int) -> int:
    """Adds the counts of one table to another, and sets each to 0 once it is added.

    Returns DONE, or TABLE_FULL if the target is too small; counts not yet added are still in the source.
    """
    slot, arena = load64(source + SLOTS), load64(source + ARENA)
    for _ in range(1 << 64 - load64(source + SHIFT)):
        low, high, amount = load64(slot), load64(slot + 8), load64(slot + 16)
        if amount:
            if load64(target + USED) + 1 > load64(target + LIMIT):
                return TABLE_FULL
            length = high & ~LONG if shift_right(high, 56) == 16 else INLINE_BYTES
            home = home_slot(load64(target + SLOTS), load64(target + SHIFT), low, high)
            if not add_count(target, home, low, high, arena + load64(slot + 24), length, amount):
                return TABLE_FULL
            store64(slot + 16, 0)
        slot += 32
    return DONE
