"""The counts file: how often each pre-token occurs, in an order of its own, so that equal counts are equal bytes.

    64 bytes    MAGIC, and three int64: the number of pre-tokens, the bytes of all, the bytes of the text they are from
    pre-tokens  one after another, sorted by length, and then from the last byte to the first; zeros up to 8 bytes
    rows        (length, count) of each, int64
    32 bytes    the SHA-256 of all before

The order is that of the keys of native/table.py, in which it costs least. All numbers are little-endian.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tokenization.errors import InputError
from tokenization.files import writing
from tokenization.kernels import kernels_for

MAGIC = b"counts of pre-tokens, format 1\n".ljust(40, b"\0")
HEAD_BYTES, DIGEST_BYTES = 64, 32
INT64 = np.dtype("<i8")
LENGTH = (1 << 56) - 1  # of a long pre-token, in its key


@dataclass(frozen=True)
class Counts:
    """Pre-tokens and how often they occur, in the order of the file."""

    texts: np.ndarray  # uint8: the pre-tokens one after another
    rows: np.ndarray  # int64, (pre-tokens, 2): length, count
    text_bytes: int  # of the text that was counted

    @classmethod
    def of(cls, counts: Mapping[bytes, int], text_bytes: int) -> "Counts":
        """Sorts counts made in plain Python."""
        pretokens = sorted(counts, key=sort_key)
        numbers = chain.from_iterable((len(pretoken), counts[pretoken]) for pretoken in pretokens)
        rows = np.fromiter(numbers, INT64).reshape(-1, 2)
        return cls(np.frombuffer(b"".join(pretokens), np.uint8), rows, text_bytes)

    @classmethod
    def of_table(cls, table: Any, text_bytes: int) -> "Counts":
        """Sorts the counts of a native.Table."""
        slots = table.slots[table.slots[:, 1] != 0]
        kinds = slots[:, 1] >> 56  # the length of a short pre-token; 16 of a long one
        short, long = slots[kinds < 16], slots[kinds == 16]
        short = short[np.lexsort(short[:, :2].view(np.uint64).T)]
        keys = np.ascontiguousarray(short[:, :2]).view(np.uint8)
        lengths = keys[:, 15]
        texts = keys[:, :15][np.arange(15) < lengths[:, None]]
        words = table.arena.data
        entries = long[:, 1:].tolist()
        rest = cls.of({words[at : at + (high & LENGTH)].tobytes(): count for high, count, at in entries}, 0)
        rows = np.concatenate([np.column_stack([lengths.astype(INT64), short[:, 2]]), rest.rows])
        return cls(np.concatenate([texts, rest.texts]), rows, text_bytes)

    @property
    def total(self) -> int:
        """How many pre-tokens were counted."""
        return int(self.rows[:, 1].sum())

    def as_counter(self) -> Counter[bytes]:
        """The counts for plain Python."""
        text, counts, position = self.texts.tobytes(), Counter[bytes](), 0
        for length, count in self.rows.tolist():
            counts[text[position : position + length]] = count
            position += length
        return counts

    def write(self, path: str | os.PathLike[str]) -> str:
        """Writes the file, whole or not at all, and returns its digest."""
        numbers = np.array([len(self.rows), len(self.texts), self.text_bytes], INT64)
        filling = bytes(-len(self.texts) % 8)
        sha256 = hashlib.sha256()
        with writing(path) as file:
            for data in (MAGIC, numbers.data, self.texts.data, filling, np.ascontiguousarray(self.rows, INT64).data):
                sha256.update(data)
                file.write(data)
            file.write(sha256.digest())
        return sha256.hexdigest()


def sort_key(pretoken: bytes) -> tuple[int, bytes]:
    """Returns what pre-tokens are sorted by."""
    return len(pretoken), pretoken[::-1]


def add_up(parts: Iterator[Counts]) -> Counts:
    """Returns the sum of counts; no more than two of them are in memory at a time."""
    first = next(parts)
    text_bytes = first.text_bytes
    counts, native = for_learning(first)
    for part in parts:
        text_bytes += part.text_bytes
        if native:
            counts = native.add_rows(part.texts, part.rows, counts)
        else:
            counts.update(part.as_counter())
    return Counts.of_table(counts, text_bytes) if native else Counts.of(counts, text_bytes)


def for_learning(counts: Counts) -> tuple[Any, ModuleType | None]:
    """Returns the counts as a native.Table, and the module with the kernels; or as a Counter, and None."""
    native = kernels_for("", counts.text_bytes, "merging").native
    return (native.add_rows(counts.texts, counts.rows), native) if native else (counts.as_counter(), None)


def read_counts(path: Path) -> tuple[Counts, str]:
    """Reads a counts file and its digest. Raises InputError where it is missing, damaged or none."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); count the text again") from None
    body = data[: max(0, len(data) - DIGEST_BYTES)]
    if len(body) < HEAD_BYTES or data[: len(MAGIC)].tobytes() != MAGIC:
        raise InputError(f"{path}: is not a file of counts; delete it, and count the text again")
    sha256 = hashlib.sha256(body.data)
    if sha256.digest() != data[len(body) :].tobytes():
        raise InputError(f"{path}: is damaged, according to its own digest; delete it, and count the text again")
    unique, size, text_bytes = data[len(MAGIC) : HEAD_BYTES].view(INT64).tolist()
    rows = data[HEAD_BYTES + size + -size % 8 : len(body)].view(INT64).reshape(unique, 2)
    return Counts(data[HEAD_BYTES : HEAD_BYTES + size], rows, text_bytes), sha256.hexdigest()
