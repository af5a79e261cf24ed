"""Around the kernels: their tables and memory, windows of text for them, and threads.

    files -> windows (cut where no pre-token and no special token is) -> threads -> counts, or ids in order

Kernels let go of Python's lock, so threads are enough. When counting, each has a table of its own, and all are added up
at the end; when encoding, all share one. Nothing here decides a result: where a window ends, which thread takes it and
what a table already holds have no influence on counts or ids.
"""

import functools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numba
import numpy as np
import regex
from tqdm import tqdm

from tokenization import kernels
from tokenization.corpus import Corpus, not_utf8
from tokenization.errors import InputError

WINDOW_BYTES = 1 << 20
FIRST_SLOTS = 1 << 15
FIRST_ARENA = 1 << 18
MAX_SLOTS, MAX_ARENA = 1 << 20, 1 << 24  # for encoding; tables for counting grow as far as they must
FLOOR_SHARE = 128  # at first, pairs rarer than this part of all pairs per token are left out
STEPS = 1000  # merges between two looks at the progress, and at Ctrl-C
WORK_TOKENS = 1 << 10  # tokens that the encoder's working memory holds at first

Item = TypeVar("Item")
Result = TypeVar("Result")


_TRAINING = (
    *(kernels.first_invalid, kernels.last_cut, kernels.count_window, kernels.rehash, kernels.add_table),
    *(kernels.summarize, kernels.fill_cells, kernels.add_token, kernels.list_byte_pairs, kernels.learn_merges),
)
_ENCODING = (kernels.first_invalid, kernels.last_cut, kernels.fill_merges, kernels.encode_window, kernels.rehash)
_KERNELS = {"training": _TRAINING, "encoding": _ENCODING}


def compile_kernels(work: str) -> None:
    """Compiles the kernels for this work, or loads them from Numba's cache, before anything is timed."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    for kernel in _KERNELS[work]:
        kernel.compile((numba.int64,) * kernel.py_func.__code__.co_argcount)


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@functools.cache
def class_table() -> np.ndarray:
    """The class of each code point, uint8, as `regex` sees it: one Unicode version for the kernels and the pattern."""
    classes = np.zeros(0x110000, np.uint8)
    text = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = ((kernels.LETTER, r"\p{L}+"), (kernels.NUMBER, r"\p{N}+"), (kernels.SPACE, r"\s+"))
    for stretch in regex.finditer(r"[\p{L}\p{N}\s]+", text):
        for kind, pattern in kinds:
            for match in regex.finditer(pattern, text, pos=stretch.start(), endpos=stretch.end()):
                classes[match.start() : match.end()] = kind
    return classes


class SpecialTokens:
    """Special tokens as the kernels want them: rows of (address, length, id), the longest first."""

    def __init__(self, ids: Mapping[str, int]):
        tokens = sorted(((text.encode(), token_id) for text, token_id in ids.items()), key=lambda item: -len(item[0]))
        self.longest = len(tokens[0][0]) if tokens else 1
        self._text = np.frombuffer(b"".join(token for token, _ in tokens) + bytes(kernels.PADDING), np.uint8)
        self._first = np.frombuffer(bytes({token[0] for token, _ in tokens}) + b"\0", np.uint8)
        self._rows = np.zeros((len(tokens) + 1, 3), np.int64)
        place = address(self._text)
        for row, (token, token_id) in zip(self._rows, tokens, strict=False):
            row[:] = place, len(token), token_id
            place += len(token)
        self.table = address(self._rows), len(tokens)
        self.arguments = *self.table, address(self._first), len(self._first) - 1


class Window(NamedTuple):
    """A stretch of a file that can be tokenized by itself."""

    buffer: np.ndarray  # uint8; the text and PADDING
    length: int
    number: int  # of the file
    file: Path
    offset: int  # in the file's text, in bytes

    @classmethod
    def of_bytes(cls, text: bytes) -> "Window":
        return cls(padded(text), len(text), 0, Path(), 0)

    @property
    def text(self) -> str:
        return self.buffer[: self.length].tobytes().decode()

    def text_behind(self, separator: str | None) -> tuple[bool, bool]:
        """Whether the separator is in the text, and whether there is anything but white space behind the last one."""
        data = self.buffer[: self.length].tobytes()
        _, found, rest = data.rpartition(separator.encode()) if separator else (b"", b"", data)
        return bool(found), bool(rest.decode().strip())

    def valid(self, errors: str) -> "Window":
        """The same with valid UTF-8: an InputError says where it is not, or U+FFFD takes its place."""
        start = address(self.buffer)
        if kernels.first_invalid(start, start + self.length) == start + self.length:
            return self
        try:
            text = self.buffer[: self.length].tobytes().decode(errors=errors).encode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.file, self.offset + error.start, error.object[error.start]) from None
        return self._replace(buffer=padded(text), length=len(text))


def padded(text: bytes) -> np.ndarray:
    buffer = np.empty(len(text) + kernels.PADDING, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return buffer


def windows(corpus: Corpus, special_tokens: SpecialTokens) -> Iterator[Window]:
    """All files in windows of about WINDOW_BYTES; one grows where a text offers no place to cut."""
    for number, file in enumerate(corpus.files):
        with corpus.opened(file) as (fill, offset):
            buffer = np.empty(WINDOW_BYTES + kernels.PADDING, np.uint8)
            length = searched = 0
            while True:
                room = len(buffer) - kernels.PADDING
                count = 1
                while count and length < room:
                    count = fill(buffer.data[length:room])
                    length += count
                if not count:
                    break
                cut = find_cut(buffer, searched, length, special_tokens)
                if not cut:  # doubling: looking for a cut in vain costs linear time in all
                    searched = length - special_tokens.longest
                    buffer = np.concatenate([buffer, np.empty(room, np.uint8)])
                    continue
                rest = np.empty(WINDOW_BYTES + max(0, length - cut - WINDOW_BYTES // 2) + kernels.PADDING, np.uint8)
                rest[: length - cut] = buffer[cut:length]
                yield Window(buffer, cut, number, file, offset)
                buffer, offset, length, searched = rest, offset + cut, length - cut, 0
        if length:
            yield Window(buffer, length, number, file, offset)


def find_cut(buffer: np.ndarray, searched: int, length: int, special_tokens: SpecialTokens) -> int:
    """Where the text, which goes on, can be cut; 0 where it cannot. Below `searched` there is no white space to cut."""
    start = address(buffer)
    end = start + length - special_tokens.longest + 1  # a special token behind it may be incomplete
    lowest = start + max(searched, 0)
    return kernels.last_cut(start, lowest, end, address(class_table()), *special_tokens.table) - start


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """function(item) for every item, in order; only a few are under way at a time, however many there are."""
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) > num_threads + 1:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


class Table:
    """The kernels' hash table of pre-tokens."""

    def __init__(self, num_slots: int = FIRST_SLOTS, arena_bytes: int = FIRST_ARENA) -> None:
        self.slots = np.zeros((num_slots, 4), np.int64)
        self.arena = np.empty(arena_bytes, np.uint8)
        self.head = np.zeros(kernels.ARENA_SIZE // 8 + 1, np.int64)
        self.head[:4] = address(self.slots), 65 - num_slots.bit_length(), 0, num_slots * 5 // 8
        self.head[4:] = address(self.arena), 0, arena_bytes

    @property
    def unique(self) -> int:
        return int(self.head[2])

    @property
    def total(self) -> int:
        return kernels.summarize(address(self.head))[0]

    def slots_are_full(self) -> bool:
        return bool(self.head[2] + kernels.CHUNK + 256 > self.head[3])

    def copy(self, num_slots: int, arena_bytes: int) -> "Table":
        """The same in a larger table. Other threads may go on filling this one; what they add later is lost."""
        larger = Table(num_slots, arena_bytes)
        kernels.rehash(address(self.head), address(larger.head))
        larger.arena[: len(self.arena)] = self.arena
        larger.head[5] = min(self.head[5], len(self.arena))
        return larger

    def larger(self, arena_bytes: int) -> "Table":
        """The same with more slots, or with so much more arena, whichever this one lacks."""
        if self.slots_are_full():
            return self.copy(2 * len(self.slots), len(self.arena))
        return self.copy(len(self.slots), len(self.arena) + max(len(self.arena), arena_bytes))

    def renewed(self) -> "Table":
        """A larger one for ids; a small and empty one where this one is as large as it may be."""
        slots, arena = len(self.slots), len(self.arena)
        too_large = 2 * slots > MAX_SLOTS if self.slots_are_full() else 2 * arena > MAX_ARENA
        return Table() if too_large else self.larger(0)


def new_scratch() -> np.ndarray:
    return np.empty(16 * (kernels.CHUNK + 256), np.uint8)


# --- counting ---


def count_corpus(corpus: Corpus, special_tokens: Sequence[str], num_threads: int) -> Table:
    """How often each pre-token occurs in all the files together."""
    special = SpecialTokens(dict.fromkeys(special_tokens, 0))
    counters: queue.SimpleQueue[Counter] = queue.SimpleQueue()
    for _ in range(num_threads):
        counters.put(Counter())

    def work(window: Window) -> None:
        counter = counters.get()
        try:
            counter.count(window.valid(corpus.errors), special)
        finally:
            counters.put(counter)

    for _ in in_order(work, windows(corpus, special), num_threads):
        pass
    total = counters.get()
    while not counters.empty():
        total.add(counters.get().table)
    return total.table


class Counter:
    """One thread's counts."""

    def __init__(self) -> None:
        self.table, self.scratch = Table(), new_scratch()

    def count(self, window: Window, special: SpecialTokens) -> None:
        position = address(window.buffer)
        end, status = position + window.length, None
        while status != kernels.DONE:
            if status is not None:
                self.table = self.table.larger(end - position)
            status, position = kernels.count_window(
                position,
                end,
                address(self.table.head),
                address(self.scratch),
                address(class_table()),
                *special.arguments,
            )

    def add(self, other: Table) -> None:
        while kernels.add_table(address(other.head), address(self.table.head)) != kernels.DONE:
            self.table = self.table.larger(int(other.head[5]))


# --- learning merges ---


class Trainer:
    """The memory of the kernel that learns merges: a row of int64, and the arrays whose addresses are in it.

    Fields are offsets in bytes, as the kernels name them.
    """

    def __init__(self) -> None:
        self.head = np.zeros(kernels.HEAP_USED // 8 + 1, np.int64)
        self.arrays: dict[int, np.ndarray] = {}

    def __getitem__(self, field: int) -> int:
        return int(self.head[field // 8])

    def __setitem__(self, field: int, value: int | np.ndarray) -> None:
        if isinstance(value, np.ndarray):
            self.arrays[field] = value
            value = address(value)
        self.head[field // 8] = value

    def set_lists(self, num_places: int, num_pairs: int) -> None:
        """Makes the lists that grow, or makes them larger."""
        self.resize(kernels.PLACES, (num_places,), np.uint32)
        self.resize(kernels.PAIRS, (num_pairs, kernels.PAIR_ROW // 8), np.int64)
        self.resize(kernels.HEAP, (num_pairs, 2), np.int64)
        self[kernels.PLACES_SIZE], self[kernels.PAIRS_SIZE] = num_places, num_pairs

    def resize(self, field: int, shape: tuple[int, ...], dtype: type) -> None:
        old = self.arrays.get(field)
        if old is None or old.shape != shape:
            self[field] = np.empty(shape, dtype)
            if old is not None:
                self.arrays[field][: len(old)] = old

    def enlarge_lists(self) -> None:
        self.set_lists(2 * self[kernels.PLACES_SIZE], 2 * self[kernels.PAIRS_SIZE])


def learn_merges(
    counts: Table, vocab: Sequence[bytes], vocab_size: int, tie_order: Sequence[int] | None, progress: bool
) -> tuple[list[bytes], list[tuple[int, int]]]:
    """All tokens, beginning with those of `vocab`, and the merges as pairs of ids, in order of creation.

    tie_order: of the 256 bytes, the later tokens following by age; None is lexicographic order.
    """
    num_pairs = kernels.summarize(address(counts.head))[2]
    for floor in (max(1, num_pairs // (FLOOR_SHARE * vocab_size)), 1):
        trainer = prepare_trainer(counts, vocab, vocab_size, tie_order, floor)
        if run_trainer(trainer, vocab_size, progress) == kernels.DONE:
            break
    parts = trainer.arrays[kernels.TOKENS][len(vocab) : trainer[kernels.NUM_TOKENS], 3:]
    return learnt_tokens(trainer), [(left, right) for left, right in parts.tolist()]


def run_trainer(trainer: Trainer, vocab_size: int, progress: bool) -> int:
    """Until the vocabulary is full (DONE) or no pair is as frequent as the floor (UNDER_FLOOR)."""
    known = trainer[kernels.NUM_TOKENS]
    with tqdm(total=vocab_size - known, desc="merging", unit="merge", disable=not progress, delay=0.5) as bar:
        while trainer[kernels.NUM_TOKENS] < vocab_size:
            status = kernels.learn_merges(address(trainer.head), STEPS)
            if status == kernels.UNDER_FLOOR:
                return status
            if status == kernels.LISTS_FULL:
                trainer.enlarge_lists()
            bar.update(trainer[kernels.NUM_TOKENS] - known - bar.n)
    return kernels.DONE


def prepare_trainer(
    counts: Table, vocab: Sequence[bytes], vocab_size: int, tie_order: Sequence[int] | None, floor: int
) -> Trainer:
    num_cells = kernels.summarize(address(counts.head))[1]
    text = b"".join(vocab)
    first, num_cells = len(text), len(text) + 1 + num_cells
    if num_cells > kernels.NO_SYMBOL:
        raise InputError(f"{num_cells / 1e9:.1f} GB of different pre-tokens are more than 4 GB; give less text")
    trainer = Trainer()
    trainer[kernels.TEXT] = np.zeros(num_cells + kernels.PADDING, np.uint8)
    trainer[kernels.CELLS] = np.empty(num_cells, np.int64)
    trainer.arrays[kernels.TEXT][:first] = np.frombuffer(text, np.uint8)
    trainer.arrays[kernels.CELLS][:first] = kernels.NO_SYMBOL
    kernels.fill_cells(address(counts.head), trainer[kernels.CELLS], trainer[kernels.TEXT], first)

    trainer[kernels.MAX_TOKENS] = vocab_size
    trainer[kernels.TOKENS] = np.empty((vocab_size + 1, kernels.TOKEN_ROW // 8), np.int64)
    trainer[kernels.BY_AGE] = int(tie_order is not None)
    place = 0
    for token in vocab:
        kernels.add_token(address(trainer.head), place, len(token))
        place += len(token)
    for byte, order in enumerate(tie_order or ()):
        trainer.arrays[kernels.TOKENS][byte, 2] = -order

    trainer[kernels.NEIGHBOURS] = np.zeros((vocab_size + 1, kernels.NEIGHBOUR_ROW // 8), np.int64)
    trainer[kernels.TOUCHED] = np.empty(2 * (vocab_size + 1), np.int64)
    trainer[kernels.FLOOR] = floor
    trainer.set_lists(num_cells + (1 << 16), 1 << 17)
    rows = np.zeros((1 << 16, 2), np.int64)
    kernels.list_byte_pairs(address(trainer.head), first, num_cells - 1, address(rows))
    return trainer


def learnt_tokens(trainer: Trainer) -> list[bytes]:
    text = trainer.arrays[kernels.TEXT]
    rows = trainer.arrays[kernels.TOKENS][: trainer[kernels.NUM_TOKENS], :2]
    return [text[place : place + length].tobytes() for place, length in rows.tolist()]


# --- encoding ---


def can_encode(vocab_size: int, num_merges: int) -> bool:
    """Whether ids and ranks have few enough bits for the table of merges."""
    return vocab_size <= 1 << kernels.ID_BITS and num_merges < (1 << kernels.RANK_BITS) - 1


class Encoder:
    """A tokenizer's merges and ids as the kernels want them, with tables of pre-tokens that threads share out.

    byte_ids: 256, -1 where a byte has no token. ranks: {(left id, right id): (rank, merged id)}.
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        ranks: Mapping[tuple[int, int], tuple[int, int]],
        special_ids: Mapping[str, int],
        dtype: np.dtype,
    ):
        self.dtype = dtype
        self.special_tokens = SpecialTokens(special_ids)
        bits = (2 * len(ranks) + 1).bit_length()
        rows = np.fromiter((value for pair, merge in ranks.items() for value in (*pair, *merge)), np.int64)
        self._merges = np.zeros(1 << bits, np.int64)
        self._merged_ids = np.zeros(max((rank for rank, _ in ranks.values()), default=0) + 1, np.uint32)
        self._byte_merges = np.empty(1 << 16, np.uint32)
        self._byte_ids = np.array(byte_ids, np.int64)
        self.head = np.zeros(kernels.CAPACITY // 8 + 1, np.int64)
        self.head[:2] = address(self._merges), 64 - bits
        self.head[2:5] = address(self._merged_ids), address(self._byte_merges), address(self._byte_ids)
        self.head[5] = dtype.itemsize
        kernels.fill_merges(address(rows), len(ranks), address(self.head))
        self.table = Table()
        self._lock = threading.Lock()
        self._workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()

    def encode(self, window: Window) -> np.ndarray | None:
        """The ids of a window, dtype; None where one of its bytes has no token."""
        try:
            worker = self._workers.get_nowait()
        except queue.Empty:
            worker = Worker(self.head)
        try:
            return worker.encode(window, self)
        finally:
            self._workers.put(worker)

    def renew(self, full: Table) -> Table:
        """The table to go on with, where one is full: another thread may have made it already."""
        with self._lock:
            if self.table is full:
                self.table = full.renewed()
            return self.table

    def encode_corpus(self, corpus: Corpus, num_threads: int) -> Iterator[tuple[Window, np.ndarray | None]]:
        """(window, ids) for all files, in order."""

        def work(window: Window) -> tuple[Window, np.ndarray | None]:
            window = window.valid(corpus.errors)
            return window, self.encode(window)

        return in_order(work, windows(corpus, self.special_tokens), num_threads)


class Worker:
    """One thread's working memory."""

    def __init__(self, head: np.ndarray):
        self.head, self.scratch = head.copy(), new_scratch()
        self.set_capacity(WORK_TOKENS)

    def set_capacity(self, num_tokens: int) -> None:
        self.work = np.empty((num_tokens, kernels.WORK_BYTES), np.uint8)
        self.head[6:] = address(self.work), num_tokens

    def encode(self, window: Window, encoder: Encoder) -> np.ndarray | None:
        position = address(window.buffer)
        end = position + window.length
        ids = np.empty(window.length + 8, encoder.dtype)
        out, table = address(ids), encoder.table
        while True:
            status, position, out = kernels.encode_window(
                position,
                end,
                out,
                address(table.head),
                address(self.head),
                address(self.scratch),
                address(class_table()),
                *encoder.special_tokens.arguments,
            )
            if status == kernels.DONE:
                return ids[: (out - address(ids)) // ids.itemsize]
            if status == kernels.NO_TOKEN:
                return None
            if status == kernels.SCRATCH_FULL:
                self.set_capacity(4 * len(self.work))
            else:
                table = encoder.renew(table)
