"""Words as numbers, and hashes of every run of n words, a batch of documents at a time.

A word is what stands between white space, in lower case. Scripts that put no space between words (Chinese,
Japanese, Thai, Lao, Burmese, Khmer; Korean, too) give a word for each character.

The hash of a run is a polynomial in the words' hashes, modulo 2^64, from prefix sums: its cost does not depend on n.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple
from zlib import crc32

import numpy as np

UNSPACED = re.compile(  # a character of such a script, in UTF-8
    rb"[\xe3-\xed][\x80-\xbf]{2}|\xe0[\xb8-\xbb][\x80-\xbf]|\xe1[\x80-\x82\x9e\x9f][\x80-\xbf]"
)
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
BASE_INVERSE = pow(BASE, -1, 1 << 64)


def words_of(text: str) -> list[bytes]:
    """Returns the words of a text, as UTF-8."""
    data = text.lower().encode()
    return data.split() if data.isascii() else UNSPACED.sub(rb" \g<0> ", data).split()


class Runs(NamedTuple):
    """Every run of n words that lies within a document of a batch."""

    hashes: np.ndarray  # (runs,) uint64
    documents: np.ndarray  # (runs,) int64, the document of each
    places: np.ndarray  # (runs,) int64, its first word among the words of the batch


class HashedWords:
    """The words of a batch as numbers."""

    def __init__(self, documents: Sequence[Sequence[bytes]]):
        self.num_documents = len(documents)
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        self._documents = np.repeat(np.arange(len(documents)), lengths)
        hashes = np.fromiter(map(crc32, chain.from_iterable(documents)), np.uint64, len(self._documents))
        powers = np.full(len(hashes), BASE, np.uint64)
        self._prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(hashes) * np.multiply.accumulate(powers))])
        self._inverses = np.multiply.accumulate(np.full(len(hashes), BASE_INVERSE, np.uint64))

    def runs(self, count: int) -> Runs:
        """Returns the runs of `count` words."""
        places = np.arange(max(0, len(self._documents) - count + 1))
        places = places[self._documents[places] == self._documents[places + count - 1]]
        sums = self._prefix[places + count] - self._prefix[places]
        return Runs(mix(sums * self._inverses[places]), self._documents[places], places)


def mix(numbers: np.ndarray) -> np.ndarray:
    """Returns uint64 numbers whose every bit depends on all bits of those given: the last steps of SplitMix64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed
