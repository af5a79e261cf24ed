"""Encodes windows of text: a table gives the ids of known pre-tokens, and those of new ones are merged and stored.

All threads of an encoder share one table, and each has working memory of its own. What the table already holds has no
influence on ids.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

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
from tokenization.native.memory import DONE, NO_TOKEN, PADDING, SCRATCH_FULL, TABLE_FULL, Head, address_of
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
KEPT_BYTES = 1 << 16  # of the longest text for which a worker makes no arrays anew
MAX_CACHED = 256  # bytes of the longest pre-token whose ids are stored

Result = TypeVar("Result")


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
        self._idle: list[Worker] = []  # each call takes one out, and makes one if none is left

    def encode(self, window: Window) -> np.ndarray | None:
        """Returns the ids of a window, dtype; None if one of its bytes has no token."""
        worker = self._take_worker()
        try:
            return worker.encode(window, self)
        finally:
            self._idle.append(worker)

    def encode_text(self, text: bytes, convert: Callable[[np.ndarray], Result]) -> Result | None:
        """Returns the ids of valid UTF-8; None if one of its bytes has no token.

        convert: makes a result of the ids, an array of dtype that is overwritten later.
        """
        worker = self._take_worker()
        try:
            ids = worker.encode_text(text, self)
            return None if ids is None else convert(ids)
        finally:
            self._idle.append(worker)

    def _take_worker(self) -> "Worker":
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._head, self.dtype)

    def renew(self, full: Table) -> Table:
        """Returns the table that follows a full one, which another thread may have made already."""
        with _renewing:
            if self.table is full:
                self.table = full.renewed()
            return self.table

    def encode_corpus(self, corpus: Corpus, num_threads: int) -> Iterator[tuple[Window, np.ndarray | None]]:
        """Yields (window, ids) for all files, in order; the ids are None if a byte has no token."""

        def work(window: Window) -> tuple[Window, np.ndarray | None]:
            window = window.valid(corpus.errors)
            return window, self.encode(window)

        return in_order(work, cut_into_windows(corpus, self.special_tokens), num_threads)


_renewing = threading.Lock()


def _forget_lock() -> None:
    """Gives a forked process a lock of its own: the thread that held this one may not be there to release it."""
    global _renewing
    _renewing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


class Worker:
    """The memory of one thread that encodes."""

    def __init__(self, head: Head, dtype: np.dtype) -> None:
        self._head, self._scratch = head.copy(), Scratch()
        self._set_capacity(WORK_TOKENS)
        self._fixed = self._head.address, self._scratch.address, address_of(class_table())
        self._text, self._ids = np.empty(KEPT_BYTES + PADDING, np.uint8), np.empty(KEPT_BYTES + 8, dtype)
        self._view = self._text.data
        self._addresses = address_of(self._text), address_of(self._ids)

    def _set_capacity(self, num_tokens: int) -> None:
        self._head[WORK] = np.empty((num_tokens, WORK_BYTES), np.uint8)
        self._head[CAPACITY] = num_tokens

    def encode(self, window: Window, encoder: Encoder) -> np.ndarray | None:
        """Returns the ids of a window, encoder.dtype; None if one of its bytes has no token."""
        ids = np.empty(window.length + 8, encoder.dtype)
        count = self._run(address_of(window.buffer), window.length, address_of(ids), encoder)
        return None if count < 0 else ids[:count]

    def encode_text(self, text: bytes, encoder: Encoder) -> np.ndarray | None:
        """Returns the ids as `encode` does; of a short text in an array that the next call overwrites."""
        length = len(text)
        if length > KEPT_BYTES:
            return self.encode(Window.of_bytes(text), encoder)
        self._view[:length] = text
        address, ids = self._addresses
        count = self._run(address, length, ids, encoder)
        return None if count < 0 else self._ids[:count]

    def _run(self, position: int, length: int, ids: int, encoder: Encoder) -> int:
        """Writes the ids of a text; returns their number, or -1 if one of its bytes has no token."""
        end, out, table = position + length, ids, encoder.table
        while True:
            status, position, out = encode_window(
                position, end, out, table.head.address, *self._fixed, *encoder.special_tokens.arguments
            )
            if status == DONE:
                return (out - ids) // encoder.dtype.itemsize
            if status == NO_TOKEN:
                return -1
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
