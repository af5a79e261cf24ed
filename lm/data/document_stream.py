"""Reads a token file document by document, in a new order each pass, and cuts this stream into windows.

    pass p      all documents one after another, in an order that follows from (seed, p)
    window i    of pass i // W: the C tokens that begin at a multiple of C, and the next; a second order chooses it

C is the context length, N the number of tokens in the file. W = (N - 1) // C windows hold the whole stream but its last
few tokens, which differ from pass to pass. So a pass sees all other tokens once, where random windows leave out a share
of 1 / e and repeat others. The next pass sees each document after another one and cut at other places. Windows that all
begin at a document would have to drop what does not fit, or to fill it with padding. The second order keeps the pieces
of a long document out of one batch.

Both orders are keyed permutations, computed place by place. What must be stored are offsets, eight bytes a document: of
the file, and of the current pass, in files without a name, which take no memory of the process.
"""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from tokenization.tokens.token_set import Tokens

CHUNK = 1 << 24  # tokens or documents at a time
ROUNDS = 6
DOCUMENTS, WINDOWS = 0, 1  # what an order is of


def permute(numbers: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Returns where a permutation of range(size) takes some of its numbers, int64: (n,) -> (n,).

    It is a Feistel network with round keys from the key. Its domain is a power of 4, at least size: a number that it
    takes beyond the range goes through it again, until it is back (cycle walking).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (mixed(right ^ round_key) & mask)
        return left << half | right

    places = network(numbers.astype(np.uint64))
    while (outside := places >= np.uint64(size)).any():
        places[outside] = network(places[outside])
    return places.astype(np.int64)


def mixed(words: np.ndarray) -> np.ndarray:
    """Returns words, uint64, every bit of which depends on all bits of the given one (the finalizer of SplitMix64)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def on_disk(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the joined chunks, int64, in a file without a name, which lasts as long as the array."""
    with tempfile.TemporaryFile() as file:
        for chunk in chunks:
            file.write(chunk.astype(np.int64).data)
        file.flush()
        return np.memmap(file, np.int64, mode="r").view(np.ndarray)


class DocumentStream:
    """The windows of a token file, each a pure function of (seed, its number).

    end_id: the token that ends a document.
    """

    def __init__(self, tokens: Tokens, end_id: int, context_length: int, seed: int):
        self.tokens, self.context_length, self.seed = tokens, context_length, seed
        self.bounds = on_disk(self._find_bounds(end_id))
        self.documents = len(self.bounds) - 1
        self.windows = (len(tokens) - 1) // context_length  # of each pass
        self.current, self.ends = -1, self.bounds  # a pass, and where its documents end in it

    def _find_bounds(self, end_id: int) -> Iterator[np.ndarray]:
        """Yields where the documents begin, and at last where the file ends."""
        yield np.zeros(1, np.int64)
        for start in range(0, len(self.tokens), CHUNK):
            yield np.flatnonzero(self.tokens[start : start + CHUNK] == end_id) + (start + 1)
        if self.tokens[len(self.tokens) - 1] != end_id:
            yield np.array([len(self.tokens)])

    def _begin_pass(self, number: int) -> None:
        self.current, self.ends = number, on_disk(self._find_ends(number))

    def _find_ends(self, number: int) -> Iterator[np.ndarray]:
        end = 0
        for first in range(0, self.documents, CHUNK):
            documents = self._order(number, np.arange(first, min(first + CHUNK, self.documents)))
            ends = end + np.cumsum(self.bounds[documents + 1] - self.bounds[documents])
            yield ends
            end = int(ends[-1])

    def _order(self, number: int, ranks: np.ndarray) -> np.ndarray:
        """Returns which documents come at these ranks of a pass."""
        return permute(ranks, self.documents, (self.seed, DOCUMENTS, number))

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Returns the windows of these numbers: (n,) -> (n, context_length + 1), int64."""
        rows = np.empty((len(windows), self.context_length + 1), np.int64)
        numbers, places = np.divmod(windows, self.windows)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            if number != self.current:
                self._begin_pass(number)
            order = permute(places[chosen], self.windows, (self.seed, WINDOWS, number))
            rows[chosen] = self._gather(number, order * self.context_length)
        return rows

    def _gather(self, number: int, starts: np.ndarray) -> np.ndarray:
        """Returns the tokens of a pass from each start on: (n,) -> (n, context_length + 1)."""
        rows = np.empty((len(starts), self.context_length + 1), np.int64)
        first = np.searchsorted(self.ends, starts, "right")
        counts = np.searchsorted(self.ends, starts + rows.shape[1], "left") + 1 - first  # of documents
        documents = self._order(number, np.concatenate(list(map(np.arange, first, first + counts))))
        begins, ends = self.bounds[documents], self.bounds[documents + 1]
        of_first = np.cumsum(counts) - counts
        begins[of_first] = ends[of_first] - (self.ends[first] - starts)  # a window begins within its first one
        pieces = zip(begins.tolist(), ends.tolist(), strict=True)
        for row, count in zip(rows, counts.tolist(), strict=True):
            filled = 0
            for begin, end in islice(pieces, count):
                piece = self.tokens[begin : min(end, begin + len(row) - filled)]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
        return rows
