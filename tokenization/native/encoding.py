"""Encodes windows of text: a table gives the ids of known pre-tokens, and those of new ones are merged and stored.

All threads of an encoder share one table, and each has working memory of its own. What the table already holds has no
influence on ids.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tokenization.corpus import Corpus
from tokenization.native.compiling import compiled
from tokenization.native.instructions import (
    LOW_HALF,
    add_shared,
    copy_bytes,
    load64,
    load_shared,
    shift_right,
    store64,
    store_shared,
    take_shared,
)
from tokenization.native.memory import DONE, NO_TOKEN, SCRATCH_FULL, TABLE_FULL, Head, address_of
from tokenization.native.merging import (
    BYTE_IDS,
    BYTE_MERGES,
    CAPACITY,
    ENCODER_FIELDS,
    ID_BITS,
    MERGED_IDS,
    MERGES,
    MERGES_SHIFT,
    RANK_BITS,
    WIDTH,
    WORK,
    WORK_BYTES,
    fill_merges,
    merge_pretoken,
    store_id,
)
from tokenization.native.scanner import class_table, find_starts
from tokenization.native.table import (
    ARENA,
    ARENA_SIZE,
    ARENA_USED,
    BEING_FILLED,
    CHUNK,
    CHUNK_STARTS,
    INLINE_BYTES,
    LIMIT,
    SHIFT,
    SLOTS,
    USED,
    Scratch,
    Table,
    find_homes,
    find_slot,
    key_of,
)
from tokenization.native.text import SPECIAL_ID, SPECIAL_LENGTH, SPECIAL_ROW, SpecialTokens, next_special
from tokenization.native.windows import Window, cut_into_windows, in_order

WORK_TOKENS = 1 << 10  # tokens that a worker's memory has room for at first
MAX_CACHED = 256  # bytes of the longest pre-token whose ids are stored


def can_encode(vocab_size: int, num_merges: int) -> bool:
    """Tells whether ids and ranks have few enough bits for the table of merges."""
    return vocab_size <= 1 << ID_BITS and num_merges < (1 << RANK_BITS) - 1


class Encoder:
    """A tokenizer's merges and ids as kernels read them, and a table of pre-tokens that all threads share.

    byte_ids: 256, -1 where a byte has no token. ranks: {(left id, right id): (rank, merged id)}.
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        ranks: Mapping[tuple[int, int], tuple[int, int]],
        special_ids: Mapping[str, int],
        dtype: np.dtype,
    ) -> None:
        self.dtype = dtype
        self.special_tokens = SpecialTokens(special_ids)
        bits = (2 * len(ranks) + 1).bit_length()
        self._head = Head(
            ENCODER_FIELDS,
            {
                MERGES: np.zeros(1 << bits, np.int64),
                MERGES_SHIFT: 64 - bits,
                MERGED_IDS: np.zeros(max((rank for rank, _ in ranks.values()), default=0) + 1, np.uint32),
                BYTE_MERGES: np.empty(1 << 16, np.uint32),
                BYTE_IDS: np.array(byte_ids, np.int64),
                WIDTH: dtype.itemsize,
                WORK: 0,  # each worker has its own
                CAPACITY: 0,
            },
        )
        rows = np.fromiter((value for pair, merge in ranks.items() for value in (*pair, *merge)), np.int64)
        fill_merges(address_of(rows), len(ranks), self._head.address)
        self.table = Table()
        self._lock = threading.Lock()
        self._workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def encode(self, window: Window) -> np.ndarray | None:
        """Returns the ids of a window, dtype; None if one of its bytes has no token."""
        try:
            worker = self._workers.get_nowait()
        except queue.Empty:
            worker = Worker(self._head)
        try:
            return worker.encode(window, self)
        finally:
            self._workers.put(worker)

    def renew(self, full: Table) -> Table:
        """Returns the table that follows a full one, which another thread may have made already."""
        with self._lock:
            if self.table is full:
                self.table = full.renewed()
            return self.table

    def encode_corpus(self, corpus: Corpus, num_threads: int) -> Iterator[tuple[Window, np.ndarray | None]]:
        """Yields (window, ids) for all files, in order; the ids are None if a byte has no token."""

        def work(window: Window) -> tuple[Window, np.ndarray | None]:
            window = window.valid(corpus.errors)
            return window, self.encode(window)

        return in_order(work, cut_into_windows(corpus, self.special_tokens), num_threads)


class Worker:
    """The memory of one thread that encodes."""

    def __init__(self, head: Head) -> None:
        self._head, self._scratch = head.copy(), Scratch()
        self._set_capacity(WORK_TOKENS)

    def _set_capacity(self, num_tokens: int) -> None:
        self._head[WORK] = np.empty((num_tokens, WORK_BYTES), np.uint8)
        self._head[CAPACITY] = num_tokens

    def encode(self, window: Window, encoder: Encoder) -> np.ndarray | None:
        """Returns the ids of a window, encoder.dtype; None if one of its bytes has no token."""
        position = address_of(window.buffer)
        end = position + window.length
        ids = np.empty(window.length + 8, encoder.dtype)
        out, table = address_of(ids), encoder.table
        while True:
            status, position, out = encode_window(
                position,
                end,
                out,
                table.head.address,
                self._head.address,
                self._scratch.address,
                address_of(class_table()),
                *encoder.special_tokens.arguments,
            )
            if status == DONE:
                return ids[: (out - address_of(ids)) // ids.itemsize]
            if status == NO_TOKEN:
                return None
            if status == SCRATCH_FULL:
                self._set_capacity(4 * self._head[CAPACITY])
            else:
                table = encoder.renew(table)


@compiled
def encode_window(
    position: int,
    end: int,
    out: int,
    table: int,
    encoder: int,
    scratch: int,
    classes: int,
    specials: int,
    num_specials: int,
    first_bytes: int,
    num_first_bytes: int,
) -> tuple[int, int, int]:
    """Writes the ids of [position, end); returns (status, address that it came to, end of what it wrote).

    out: room for an id per byte and 16 bytes more. scratch: 16 bytes for each of CHUNK_STARTS pre-tokens.
    """
    homes = scratch + 8 * CHUNK_STARTS
    width = load64(encoder + WIDTH)
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if is_full(table):
                return TABLE_FULL, position, out
            slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
            count = find_starts(position, stop, CHUNK, classes, scratch)
            find_homes(scratch, count, homes, slots, shift)
            for index in range(count):
                address = load64(scratch + 8 * index)
                length = load64(scratch + 8 * index + 8) - address
                low, high = key_of(address, length)
                slot = load64(homes + 8 * index)
                if load_shared(slot + 8) != high or load64(slot) != low or length > INLINE_BYTES:
                    slot, known = find_slot(slots, shift, slot, low, high, address, length, arena, 16)
                    if not known:
                        number = merge_pretoken(address, length, out, encoder)
                        if number < 0:
                            return (NO_TOKEN if number == -1 else SCRATCH_FULL), address, out
                        if length <= MAX_CACHED:
                            remember(table, slot, low, high, address, length, out, number, width)
                        out += number * width
                        continue
                more = load64(slot + 24)
                number = shift_right(more, 32)
                store64(out, load64(slot + 16))
                store64(out + 8, more)
                if number == 0:
                    number = more
                    source = arena + load64(slot + 16) + (length if length > INLINE_BYTES else 0)
                    for offset in range(0, number * width, 8):
                        store64(out + offset, load64(source + offset))
                out += number * width
            position = load64(scratch + 8 * count)
        if special >= 0:
            store_id(out, 0, width, load64(specials + SPECIAL_ROW * special + SPECIAL_ID))
            out += width
            position += load64(specials + SPECIAL_ROW * special + SPECIAL_LENGTH)
    return DONE, position, out


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
