"""Encodes windows of text: a table gives the ids of known pre-tokens, and those of new ones are merged and stored.

All threads of an encoder share one table, and each has working memory of its own. What the table already holds has no
influence on ids.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenization.native.chunks import (
    HOME,
    HOME_BYTES,
    HOME_HIGH,
    HOME_LOW,
    HOMES,
    PARTS,
    UNKNOWN,
    Scratch,
    find_homes,
)
from tokenization.native.compiling import built_in_of, compiled
from tokenization.native.given import give_ends
from tokenization.native.instructions import (
    load64,
    load_shared,
    shift_right,
    store64,
)
from tokenization.native.joints import LONGEST_CUT, find_parts, joints_of, may_have_joints
from tokenization.native.lanes import LANES_ROOM, learn, merge_pretoken
from tokenization.native.listing import list_ids, numbers_below
from tokenization.native.memory import DONE, NO_TOKEN, PADDING, SCRATCH_FULL, TABLE_FULL, Head, address_of, large_zeros
from tokenization.native.merging import (
    BYTE_IDS,
    BYTE_MERGES,
    CAPACITY,
    ENCODER_FIELDS,
    ID_BITS,
    JOINTS,
    MERGED_IDS,
    MERGES,
    MERGES_SHIFT,
    RANK_BITS,
    WIDTH,
    WORK,
    WORK_BYTES,
    fill_merges,
    store_id,
)
from tokenization.native.scanner import CODE, call
from tokenization.native.splitting import scanner_head
from tokenization.native.table import (
    ARENA,
    CHUNK,
    LONG,
    SHIFT,
    SLOTS,
    SharedTable,
    find_slot,
    is_full,
    remember,
)
from tokenization.native.text import SPECIAL_ID, SPECIAL_LENGTH, SPECIAL_ROW, SpecialTokens, next_special
from tokenization.native.windows import Window, cut_into_windows, in_order
from tokenization.native.words import WordCutter, check_first_id
from tokenization.pretokenization import END_OF_TEXT
from tokenization.text.corpus import Corpus
from tokenization.text.documents import BETWEEN, BETWEEN_CHARACTER

WORK_TOKENS = LONGEST_CUT  # tokens that a worker's memory has room for at first
MAX_CACHED = 256  # bytes of the longest pre-token whose ids are stored
KEPT_BYTES = 1 << 17  # of the longest text for which a worker makes no arrays anew


def can_encode(vocab_size: int, num_merges: int) -> bool:
    """Tells whether ids and ranks have few enough bits for the table of merges."""
    return vocab_size < 1 << ID_BITS and num_merges < (1 << RANK_BITS) - 1


class Encoder:
    """A tokenizer's merges and ids as kernels read them, and a table of pre-tokens that all threads share.

    byte_ids: 256, -1 where a byte has no token. merge_ids: left, right and merged id of each merge, the oldest first.
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        merge_ids: np.ndarray,
        special_ids: Mapping[str, int],
        pattern: str,
        dtype: np.dtype,
    ) -> None:
        self.dtype, self._scanner = dtype, self.scanner_of(pattern)
        self._tables = byte_ids, merge_ids, special_ids
        self.special_tokens = SpecialTokens(special_ids)
        self._mark = int(np.iinfo(dtype).max)
        self._and_between = SpecialTokens({**special_ids, BETWEEN_CHARACTER: self._mark})
        self._has_separator = END_OF_TEXT in special_ids
        self._of_documents = SpecialTokens({BETWEEN_CHARACTER: special_ids.get(END_OF_TEXT, self._mark)})
        bits = max(4, (2 * len(merge_ids) + 1).bit_length())
        self._head = Head(
            ENCODER_FIELDS,
            {
                MERGES: large_zeros(1 << bits, np.int64),
                MERGES_SHIFT: 67 - bits,
                MERGED_IDS: np.zeros(len(merge_ids) + 1, np.uint32),
                BYTE_MERGES: np.empty(1 << 16, np.uint32),
                BYTE_IDS: np.array(byte_ids, np.int64),
                WIDTH: dtype.itemsize,
                WORK: 0,  # each worker has its own
                CAPACITY: 0,
                JOINTS: joints_of(byte_ids, merge_ids),
            },
        )
        largest = max(*byte_ids, *special_ids.values(), int(merge_ids[:, 2].max(initial=0)))
        self._mark_is_free = self._mark > largest
        self._numbers, self._width = address_of(numbers_below(largest + 1)), dtype.itemsize
        self._list: Callable[..., Any] = built_in_of(list_ids)
        rows = np.ascontiguousarray(merge_ids, np.int64)
        fill_merges(address_of(rows), len(rows), self._head.address)
        self.table = SharedTable()
        self._idle: list[Worker] = []  # each call takes one out, and makes one if none is left

    @functools.cached_property
    def cutter(self) -> WordCutter:
        """Cuts long words."""
        return WordCutter(self.encode, self._scanner, *self._tables)

    def scanner_of(self, pattern: str) -> Head:
        """Returns the head of what finds the pre-tokens."""
        return scanner_head(pattern)

    def ends_of(self, texts: Sequence[bytes]) -> np.ndarray | None:
        """Returns what `give_ends` takes of texts with a byte between them; None where a scanner finds pre-tokens."""
        return None

    def encode(self, window: Window) -> np.ndarray | None:
        """Returns the ids of a window, dtype; None if one of its bytes has no token, or no id is free for a mark."""
        if window.are_documents and not self._has_separator and not self._mark_is_free:
            return None
        worker = self._take_worker()
        try:
            ids = worker.encode(window, self, self._of_documents if window.are_documents else self.special_tokens)
        finally:
            self._idle.append(worker)
        return ids if ids is None or not window.are_documents or self._has_separator else ids[ids != self._mark]

    def encode_text(self, text: bytes) -> list[int] | None:
        """Returns the ids of valid UTF-8; None if one of its bytes has no token."""
        worker = self._take_worker()
        try:
            _, address, count = worker.encode_text(text, self, self.special_tokens, self.ends_of([text]))
            return None if count < 0 else self._list(address, count, self._width, self._numbers)
        finally:
            self._idle.append(worker)

    def encode_to_array(self, text: bytes) -> np.ndarray | None:
        """Returns the ids of valid UTF-8, dtype; None if one of its bytes has no token."""
        worker = self._take_worker()
        try:
            ids, _, count = worker.encode_text(text, self, self.special_tokens, self.ends_of([text]))
            return None if count < 0 else ids[:count].copy()
        finally:
            self._idle.append(worker)

    def encode_texts(self, texts: Sequence[bytes]) -> list[list[int]] | None:
        """Returns the ids of each of some texts, all valid UTF-8; None if a byte has no token, or no id is free.

        They are encoded as one text, with a byte between them that UTF-8 never has, and the free id for it.
        """
        if not self._mark_is_free:
            return None
        worker = self._take_worker()
        try:
            ids, address, count = worker.encode_text(BETWEEN.join(texts), self, self._and_between, self.ends_of(texts))
            if count < 0:
                return None
            ends = [*np.flatnonzero(ids[:count] == self._mark).tolist(), count]
            spans = zip([0, *(end + 1 for end in ends)], ends, strict=False)
            width, numbers = self._width, self._numbers
            return [self._list(address + width * start, end - start, width, numbers) for start, end in spans]
        finally:
            self._idle.append(worker)

    def _take_worker(self) -> "Worker":
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._head, self._scanner, self.dtype)

    def encode_corpus(self, corpus: Corpus, num_threads: int) -> Iterator[tuple[Window, np.ndarray | None]]:
        """Yields (window, ids) for all files, in order; the ids are None if a byte has no token."""

        def work(window: Window) -> tuple[Window, np.ndarray | None]:
            window = window.valid(corpus.errors)
            ids = self.encode(window)
            if ids is not None:
                check_first_id(window, int(ids[0]))
            return window, ids

        self.table.reserve(corpus.file_bytes)
        windows = cut_into_windows(corpus, self.special_tokens, self._scanner, self.cutter.cut)
        return in_order(work, windows, num_threads)


class Worker:
    """The memory of one thread that encodes."""

    def __init__(self, head: Head, scanner: Head, dtype: np.dtype) -> None:
        self._head, self._scanner, self._scratch = head.copy(), scanner.copy(), Scratch()
        self._set_capacity(WORK_TOKENS)
        self._fixed = self._head.address, self._scratch.address, self._scanner.address
        self._text, self._ids = np.empty(KEPT_BYTES + PADDING, np.uint8), np.empty(KEPT_BYTES + 8, dtype)
        self._view, self._encode_window = self._text.data, built_in_of(encode_window)
        self._addresses = address_of(self._text), address_of(self._ids)

    def _set_capacity(self, num_tokens: int) -> None:
        self._head[WORK] = np.empty(max(WORK_BYTES * num_tokens, LANES_ROOM), np.uint8)
        self._head[CAPACITY] = num_tokens

    def encode(self, window: Window, encoder: Encoder, specials: SpecialTokens) -> np.ndarray | None:
        """Returns the ids of a window, encoder.dtype; None if one of its bytes has no token."""
        ids = np.empty(window.length + 8, encoder.dtype)
        count = self._run(address_of(window.buffer), window.length, address_of(ids), encoder, specials)
        return None if count < 0 else ids[:count]

    def encode_text(
        self, text: bytes, encoder: Encoder, specials: SpecialTokens, ends: np.ndarray | None
    ) -> tuple[np.ndarray, int, int]:
        """Returns an array that begins with the ids, its address, and their number; -1 if a byte has no token.

        The next call overwrites the array, unless the text is long. ends: see Encoder.ends_of.
        """
        length = len(text)
        if length > KEPT_BYTES:
            window, ids = Window.of_bytes(text), np.empty(length + 8, encoder.dtype)
            position, address = address_of(window.buffer), address_of(ids)
        else:
            self._view[:length] = text
            ids, (position, address) = self._ids, self._addresses
        if ends is not None:
            give_ends(self._scanner, position, ends)
        return ids, address, self._run(position, length, address, encoder, specials)

    def _run(self, position: int, length: int, ids: int, encoder: Encoder, specials: SpecialTokens) -> int:
        """Writes the ids of a text; returns their number, or -1 if one of its bytes has no token."""
        end, out, table = position + length, ids, encoder.table.current
        while True:
            status, position, out = self._encode_window(
                position, end, out, table.head.address, *self._fixed, *specials.arguments
            )
            if status == DONE:
                return (out - ids) // encoder.dtype.itemsize
            if status == NO_TOKEN:
                return -1
            if status == SCRATCH_FULL:
                self._set_capacity(4 * self._head[CAPACITY])
            else:
                table = encoder.table.renew(table)


@compiled
def encode_window(
    position: int,
    end: int,
    out: int,
    table: int,
    encoder: int,
    scratch: int,
    scanner: int,
    specials: int,
    num_specials: int,
    first_bytes: int,
    num_first_bytes: int,
) -> tuple[int, int, int]:
    """Writes the ids of [position, end); returns (status, address that it came to, end of what it wrote).

    out: room for an id per byte and 16 bytes more. scratch: the memory of a Scratch.
    """
    parts, unknown, homes = scratch + PARTS, scratch + UNKNOWN, scratch + HOMES
    width, joints = load64(encoder + WIDTH), load64(encoder + JOINTS)
    word_bits = 2 if width == 2 else 1  # log2 of the ids in 8 bytes
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if is_full(table):
                return TABLE_FULL, position, out
            slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
            starts = scratch
            count = call(load64(scanner + CODE), position, stop, CHUNK, scanner, starts)
            if may_have_joints(position, load64(starts + 8 * count)):
                count, starts = find_parts(starts, count, parts, homes, slots, shift, joints), parts
            else:
                find_homes(starts, count, homes, slots, shift)
            learnt = 0
            for index in range(count):
                home = homes + HOME_BYTES * index
                slot, low, high = load64(home + HOME), load64(home + HOME_LOW), load64(home + HOME_HIGH)
                if load_shared(slot + 8) != high or load64(slot) != low or high >= LONG:
                    address = load64(starts + 8 * index)
                    length = load64(starts + 8 * index + 8) - address
                    slot, known = find_slot(slots, shift, slot, low, high, address, length, arena, 16)
                    if not known and not learnt:
                        learn(starts, homes, unknown, index, count, table, encoder)
                        learnt = 1
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
                if shift_right(number - 1, word_bits):  # more than 8 bytes of ids, or 0: they are in the arena
                    store64(out + 8, more)
                    if number == 0:
                        number = more
                        text = 0 if high < LONG else high & ~LONG
                        source = arena + load64(slot + 16) + text
                        for offset in range(0, number * width, 8):
                            store64(out + offset, load64(source + offset))
                out += number * width
            position = load64(starts + 8 * count)
        if special >= 0:
            store_id(out, 0, width, load64(specials + SPECIAL_ROW * special + SPECIAL_ID))
            out += width
            position += load64(specials + SPECIAL_ROW * special + SPECIAL_LENGTH)
    return DONE, position, out
