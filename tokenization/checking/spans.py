"""Finds validation text that is also in training, by runs of words: the hash of each is looked up in validation's.

Validation is read first. A run of training that is found marks the validation run as seen; in the end the seen runs of
a validation document cover some of its words.
"""

from typing import NamedTuple

import numpy as np


class Covered(NamedTuple):
    """How much of a validation document is in training."""

    longest: int  # words of the longest stretch that the seen runs cover
    words: int  # covered, in all
    training: int  # the first training document that has the beginning of the longest stretch


class SpanIndex:
    """The runs of the validation documents, and in which training document each was seen first.

    hashes: (runs,) uint64 of all validation runs in order. documents: (runs,) the document of each.
    """

    def __init__(self, hashes: np.ndarray, documents: np.ndarray, run_words: int):
        self.known, self._numbers = np.unique(hashes, return_inverse=True)  # known: sorted, to look hashes up in
        self._documents, self._run_words = documents, run_words
        self._seen_in = np.full(len(self.known), -1)

    def see(self, numbers: np.ndarray, documents: np.ndarray) -> None:
        """Notes that training documents have these runs. numbers: their places in `known`."""
        new = self._seen_in[numbers] < 0
        self._seen_in[numbers[new][::-1]] = documents[new][::-1]  # of equal places the last counts

    def covered(self) -> dict[int, Covered]:
        """Returns the validation documents that have a seen run, by their numbers."""
        seen_in = self._seen_in[self._numbers]
        bounds = np.searchsorted(self._documents, found := np.unique(self._documents[seen_in >= 0]))
        ends = np.searchsorted(self._documents, found, "right")
        return {
            int(document): self._cover(seen_in[begin:end])
            for document, begin, end in zip(found, bounds, ends, strict=True)
        }

    def _cover(self, seen_in: np.ndarray) -> Covered:
        """Returns what the seen runs of one document cover. seen_in: of each of its runs, -1 if not seen."""
        change = np.zeros(len(seen_in) + self._run_words + 1, np.int64)
        begins = np.flatnonzero(seen_in >= 0)
        change[begins] += 1
        change[begins + self._run_words] -= 1
        covered = np.concatenate([[0], np.cumsum(change) > 0])  # of each word, between two that are not
        first, behind = (np.flatnonzero(np.diff(covered) == step) for step in (1, -1))
        lengths = behind - first
        longest = int(lengths.argmax())
        return Covered(int(lengths[longest]), int(lengths.sum()), int(seen_in[first[longest]]))


def look_up(hashes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of the hashes are known, as their places, and the place in `known` of each. known: sorted."""
    if not len(known):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found = np.flatnonzero(known[places] == hashes)
    return found, places[found]
