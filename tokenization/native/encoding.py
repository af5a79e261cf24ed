"""Encodes windows of text: a table gives the ids of known pre-tokens, and those of new ones are merged and stored.

All threads of an encoder share one table, and each works in memory of its own (worker.py).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tokenization.native.compiling import built_in_of
from tokenization.native.joints import joints_of
from tokenization.native.listing import list_ids, numbers_below
from tokenization.native.memory import Head, address_of, large_zeros
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
    fill_merges,
)
from tokenization.native.splitting import scanner_head
from tokenization.native.table import SharedTable
from tokenization.native.text import SpecialTokens
from tokenization.native.windows import Window, cut_into_windows, in_order
from tokenization.native.words import WordCutter, check_first_id
from tokenization.native.worker import Worker
from tokenization.pretokenization import END_OF_TEXT
from tokenization.text.corpus import Corpus
from tokenization.text.documents import BETWEEN, BETWEEN_CHARACTER


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
            ids = worker.encode(window, self._of_documents if window.are_documents else self.special_tokens)
        finally:
            self._idle.append(worker)
        return ids if ids is None or not window.are_documents or self._has_separator else ids[ids != self._mark]

    def encode_text(self, text: bytes) -> list[int] | None:
        """Returns the ids of valid UTF-8; None if one of its bytes has no token."""
        worker = self._take_worker()
        try:
            _, address, count = worker.encode_text(text, self.special_tokens, self.ends_of([text]))
            return None if count < 0 else self._list(address, count, self._width, self._numbers)
        finally:
            self._idle.append(worker)

    def encode_to_array(self, text: bytes) -> np.ndarray | None:
        """Returns the ids of valid UTF-8, dtype; None if one of its bytes has no token."""
        worker = self._take_worker()
        try:
            ids, _, count = worker.encode_text(text, self.special_tokens, self.ends_of([text]))
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
            ids, address, count = worker.encode_text(BETWEEN.join(texts), self._and_between, self.ends_of(texts))
            if count < 0:
                return None
            ends = [*np.flatnonzero(ids[:count] == self._mark).tolist(), count]
            spans = zip([0, *(end + 1 for end in ends)], ends, strict=False)
            width, numbers = self._width, self._numbers
            return [self._list(address + width * start, end - start, width, numbers) for start, end in spans]
        finally:
            self._idle.append(worker)

    def _take_worker(self) -> Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._head, self._scanner, self.table, self.dtype)

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
