"""Digests of the documents of a token file, 8 bytes each, beside it: to see whether two files share documents.

    train.bin.documents   MAGIC, the SHA-256 of the token ids, then a little-endian uint64 for each document in order

A digest is made of a document's length and of SAMPLES of its tokens, spread evenly over the first HEAD: so it costs
next to nothing while encoding. Equal documents have equal digests; others do only if they are as long and nearly equal.
A file without digests, or with those of other ids, is one of which nothing is known. Documents of fewer than SHORTEST
tokens have none: a line break at the end of two files, or a "Yes.", says nothing about where a text comes from.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tokenization.errors import InputError
from tokenization.tokens.token_format import read_description
from tokenization.tokens.token_index import parse_index

SUFFIX = ".documents"
MAGIC = b"documents 1\n"
SAMPLES_SHIFT = 3
SAMPLES = 1 << SAMPLES_SHIFT  # tokens
HEAD = 4096  # tokens
SHORTEST = 8  # tokens
AT_ONCE = 1 << 20  # digests
_SPREAD = np.arange(SAMPLES)
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, SAMPLES + 2)], np.uint64)


def digests_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of the digests beside a token file."""
    return Path(f"{os.fspath(path)}{SUFFIX}")


class DocumentDigests:
    """Makes the digests of documents from their tokens, which come in parts. separator_id: closes a document."""

    def __init__(self, separator_id: int | None):
        self._separator_id = separator_id
        self._digests: list[np.ndarray] = []
        self._begun, self._begun_length = np.empty(0, np.uint16), 0  # the document at the end, at most HEAD of it

    def take(self, token_ids: np.ndarray) -> int:
        """Takes the next tokens, of shape (n,), and returns how many documents end among them."""
        if self._separator_id is None:
            return 0
        ends = np.flatnonzero(token_ids == self._separator_id)
        if len(ends):
            self._continue(token_ids[: ends[0]])
            self._end()
            starts = ends[:-1] + 1
            lengths = ends[1:] - starts
            enough = lengths >= SHORTEST
            if enough.any():
                self._digests.append(digest(token_ids, starts[enough], lengths[enough]))
        self._continue(token_ids[ends[-1] + 1 :] if len(ends) else token_ids)
        return len(ends)

    def _continue(self, token_ids: np.ndarray) -> None:
        """Adds tokens to the document that has not ended."""
        self._begun = np.concatenate([self._begun, token_ids[: HEAD - len(self._begun)]])
        self._begun_length += len(token_ids)

    def _end(self) -> None:
        """Ends the document, and makes its digest if it is long enough."""
        if self._begun_length >= SHORTEST:
            self._digests.append(digest(self._begun, np.array([0]), np.array([self._begun_length])))
        self._begun, self._begun_length = self._begun[:0], 0

    def content(self, data_sha256: str) -> bytes:
        """Returns what is written beside the token file; ends the last document, so that no tokens may follow."""
        self._end()
        digests = np.concatenate([np.empty(0, np.uint64), *self._digests])
        return MAGIC + bytes.fromhex(data_sha256) + digests.astype("<u8").tobytes()


def digest(token_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the digests of documents, (documents,) uint64. starts, lengths: of each; HEAD tokens of it suffice."""
    places = starts[:, None] + (np.minimum(lengths, HEAD)[:, None] * _SPREAD >> SAMPLES_SHIFT)
    words = np.take(token_ids, places).view(np.uint64)  # some tokens in each
    words ^= words >> np.uint64(32)
    digests: np.ndarray = lengths.astype(np.uint64) * _FACTORS[SAMPLES]
    for column in range(words.shape[1]):
        digests += words[:, column] * _FACTORS[column]
    return digests


def count_shared(train: Iterable[str | os.PathLike[str]], valid: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns how many documents of a validation token file or set are in those for training, and how many it has.

    Only documents with a digest count: 0 of 0 where nothing is known.
    """
    theirs = [digests for path in train for digests in read_digests(Path(path))]
    ours = np.concatenate([np.empty(0, np.uint64), *read_digests(Path(valid))]) if theirs else np.empty(0, np.uint64)
    ours.sort()
    seen = np.zeros(len(ours), bool)
    for digests in theirs:
        for begin in range(0, len(digests), AT_ONCE):
            some = np.sort(digests[begin : begin + AT_ONCE])
            seen |= some[np.minimum(np.searchsorted(some, ours), len(some) - 1)] == ours
    return int(np.count_nonzero(seen)), len(ours)


def read_digests(path: Path) -> list[np.ndarray]:
    """Returns the digests beside a token file, or beside each shard of a set, (documents,) and on the disk.

    Those that are missing, cut, or of other ids are left out.
    """
    try:
        if path.is_dir():
            files = [(path / shard.path, shard.data_sha256) for shard in parse_index(path).shards]
        else:
            files = [(path, read_description(path).data_sha256)]
    except InputError:
        return []
    return [digests for file, data_sha256 in files if len(digests := _read(digests_path(file), data_sha256))]


def _read(path: Path, data_sha256: str) -> np.ndarray:
    """Returns the digests in a file, none if it is not there or not of these ids."""
    head = MAGIC + bytes.fromhex(data_sha256)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - len(head)
            if file.read(len(head)) == head and size > 0 and size % 8 == 0:
                return np.memmap(file, "<u8", mode="r", offset=len(head)).view(np.ndarray)
    except OSError:
        pass
    return np.empty(0, np.uint64)
