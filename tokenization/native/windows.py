"""Windows: stretches of files that can be tokenized by themselves, and threads that take them in turn.

    files -> windows, cut where no pre-token and no special token stands -> threads -> counts, or ids in order

Kernels release Python's lock, so threads are enough. Nothing here decides a result: neither the size of a window nor
the thread that takes it has any influence on counts or ids.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from tokenization.native.memory import PADDING, Head, address_of
from tokenization.native.text import SpecialTokens, first_invalid, last_cut
from tokenization.text.corpus import Corpus, not_utf8
from tokenization.text.documents import BETWEEN, holds_documents
from tokenization.text.places import Place

WINDOW_BYTES = 1 << 21
LONGEST_WINDOW = 2  # times WINDOW_BYTES: then a word is cut, if that is possible

Item = TypeVar("Item")
Result = TypeVar("Result")


class Window(NamedTuple):
    """A stretch of a file that can be tokenized by itself."""

    buffer: np.ndarray  # uint8; the text and PADDING
    length: int
    number: int  # of the file
    file: Place
    offset: int  # in the file's text, in bytes
    are_documents: bool = False  # with BETWEEN in between
    first_id: int = -1  # with which its ids must begin, where a word was cut before it

    @classmethod
    def of_bytes(cls, text: bytes) -> "Window":
        """Returns a window on a text that comes from no file."""
        return cls(padded(text), len(text), 0, Path(), 0)

    @property
    def text(self) -> str:
        return self.buffer[: self.length].tobytes().decode(errors="surrogateescape" if self.are_documents else "strict")

    def valid(self, errors: str) -> "Window":
        """Returns the window with valid UTF-8.

        Invalid bytes raise an InputError that says where they are, or become U+FFFD, as `errors` says. Documents were
        checked when they were read.
        """
        if self.are_documents:
            return self
        start = address_of(self.buffer)
        if first_invalid(start, start + self.length) == start + self.length:
            return self
        try:
            text = self.buffer[: self.length].tobytes().decode(errors=errors).encode()
        except UnicodeDecodeError as error:
            raise not_utf8(self.file, self.offset + error.start, error.object[error.start]) from None
        return self._replace(buffer=padded(text), length=len(text))


def padded(text: bytes | np.ndarray) -> np.ndarray:
    """Copies a text, uint8, with PADDING behind it."""
    buffer = np.empty(len(text) + PADDING, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return buffer


def cut_into_windows(
    corpus: Corpus,
    special_tokens: SpecialTokens,
    scanner: Head,
    cut_word: Callable[[Window], tuple[int, int]] | None = None,
) -> Iterator[Window]:
    """Yields all files in windows of about WINDOW_BYTES; one grows where its text offers no place to cut.

    cut_word: returns where within a word a long window can be cut (0 if nowhere), and the id that follows.
    """
    for number, file in enumerate(corpus.files):
        are_documents = holds_documents(file.name)
        with corpus.opened(file) as (fill, offset):
            buffer = np.empty(WINDOW_BYTES + PADDING, np.uint8)
            length = searched = 0
            first_id = following = -1
            while True:
                room = len(buffer) - PADDING
                count = 1
                while count and length < room:
                    count = fill(buffer.data[length:room])
                    length += count
                if not count:
                    break
                end = buffer.data[:length].tobytes().rfind(BETWEEN, max(searched, 1)) if are_documents else 0
                cut = end if end > 0 else find_cut(buffer, searched, length, special_tokens, scanner)
                if not cut and cut_word and not are_documents and length >= LONGEST_WINDOW * WINDOW_BYTES:
                    cut, following = cut_word(Window(buffer, length, number, file, offset))
                if not cut:  # doubling keeps the total time of vain searches linear
                    searched = length - special_tokens.longest
                    buffer = np.concatenate([buffer, np.empty(room, np.uint8)])
                    continue
                rest = np.empty(WINDOW_BYTES + max(0, length - cut - WINDOW_BYTES // 2) + PADDING, np.uint8)
                rest[: length - cut] = buffer[cut:length]
                yield Window(buffer, cut, number, file, offset, are_documents, first_id)
                buffer, offset, length, searched = rest, offset + cut, length - cut, 0
                first_id, following = following, -1
        if length:
            yield Window(buffer, length, number, file, offset, are_documents, first_id)


def find_cut(buffer: np.ndarray, searched: int, length: int, special_tokens: SpecialTokens, scanner: Head) -> int:
    """Returns where a text that goes on can be cut; 0 if nowhere. No place below `searched` is a cut."""
    start = address_of(buffer)
    end = start + length - special_tokens.longest + 1  # a special token that begins behind it may be incomplete
    lowest = start + max(searched, 0)
    return last_cut(start, lowest, end, scanner.address, *special_tokens.table) - start


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yields function(item) for every item, in order; however many there are, only a few are in progress at a time."""
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        in_progress: deque[Future[Result]] = deque()
        try:
            for item in items:
                in_progress.append(pool.submit(function, item))
                if len(in_progress) > num_threads + 1:
                    yield in_progress.popleft().result()
            while in_progress:
                yield in_progress.popleft().result()
        finally:
            for future in in_progress:
                future.cancel()
