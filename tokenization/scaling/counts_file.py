"""The counts file: how often each pre-token occurs, in an order of its own, so that equal counts are equal bytes.

    64 bytes    MAGIC, and three int64: the number of pre-tokens, the bytes of all, the bytes of the text they are from
    pre-tokens  one after another, sorted by a hash (`sort_key`); zeros up to 8 bytes
    rows        (length, count) of each, int64
    32 bytes    the SHA-256 of all before

native/table.py holds them nearly in this order, so sorting them, or filling a table with them again, costs little. All
numbers are little-endian. Format 1 was sorted by length, and is not read.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tokenization.errors import InputError
from tokenization.files import writing
from tokenization.kernels import kernels_for

TITLE = b"counts of pre-tokens, format "
FORMAT = 2
MAGIC = (TITLE + b"%d\n" % FORMAT).ljust(40, b"\0")
HEAD_BYTES, DIGEST_BYTES = 64, 32
INT64 = np.dtype("<i8")
MIX_1, MIX_2 = 0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D  # those of native/instructions.py
LOW = (1 << 64) - 1


@dataclass(frozen=True)
class Counts:
    """Pre-tokens and how often they occur, in the order of the file."""

    texts: np.ndarray  # uint8: the pre-tokens one after another
    rows: np.ndarray  # int64, (pre-tokens, 2): length, count
    text_bytes: int  # of the text that was counted

    @classmethod
    def of(cls, counts: Any, native: ModuleType | None, text_bytes: int) -> "Counts":
        """Sorts counts: a native.Table if there is a module with kernels, or else a mapping from bytes to int."""
        if native:
            texts, rows = native.rows_of(counts)
            return cls(texts, rows, text_bytes)
        pretokens = sorted(counts, key=sort_key)
        numbers = chain.from_iterable((len(pretoken), counts[pretoken]) for pretoken in pretokens)
        rows = np.fromiter(numbers, INT64).reshape(-1, 2)
        return cls(np.frombuffer(b"".join(pretokens), np.uint8), rows, text_bytes)

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


def sort_key(pretoken: bytes) -> tuple[int, int, bytes]:
    """Returns what pre-tokens are sorted by: their hash in native/table.py; if that is equal, length and bytes."""
    length = len(pretoken)
    low, high = int.from_bytes(pretoken[:8], "little"), int.from_bytes(pretoken[8:], "little") | length << 56
    if length > 15:
        low, high = length, 16 << 56 | length
        for place in range(0, length, 8):
            part = int.from_bytes(pretoken[place : place + 8], "little")
            low = fold_multiply(low ^ part ^ MIX_1, MIX_2 ^ length)
    return fold_multiply(low ^ MIX_1, high ^ MIX_2), length, pretoken


def fold_multiply(left: int, right: int) -> int:
    """Multiplies to 128 bits and xors the two halves."""
    product = left * right
    return product >> 64 ^ product & LOW


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
    return Counts.of(counts, native, text_bytes)


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
        what = "of another version" if data[: len(TITLE)].tobytes() == TITLE else "not a file of counts"
        raise InputError(f"{path}: is {what}; delete it, and count the text again")
    sha256 = hashlib.sha256(body.data)
    if sha256.digest() != data[len(body) :].tobytes():
        raise InputError(f"{path}: is damaged, according to its own digest; delete it, and count the text again")
    unique, size, text_bytes = data[len(MAGIC) : HEAD_BYTES].view(INT64).tolist()
    rows = data[HEAD_BYTES + size + -size % 8 : len(body)].view(INT64).reshape(unique, 2)
    return Counts(data[HEAD_BYTES : HEAD_BYTES + size], rows, text_bytes), sha256.hexdigest()
