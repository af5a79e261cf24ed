"""Cuts a word that is longer than a window, so that a text without any space is encoded in bounded memory.

A sequence of tokens encodes its text if and only if every two neighbours encode theirs (see merge_long). So a word is
encoded as far as it is known, and cut before one of its tokens. If the rest, encoded by itself, begins with that token,
the ids of both parts are those of the whole; if not, no file is written.

Ids that are yielded cannot be taken back, so a stream is cut where no rest can begin otherwise. However the word goes
on, one of its tokens begins at the end of what is known, or begins before it and ends behind it. Few places allow
that, for what is known from there on must be the beginning of a token. If what is known up to each such place begins
with the same token, so does every rest.
"""

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tokenization.bpe import Ranks, merge_by_rank
from tokenization.errors import InputError
from tokenization.native.memory import Head, address_of
from tokenization.native.scanner import DIGITS, NO_LIMIT
from tokenization.native.text import first_invalid, uniform_run
from tokenization.native.windows import Window

CERTAIN = 16  # bytes at the beginning of a run in which it is not cut
TRIED = 100  # places to cut, where special tokens stand
DECIDING = 256  # bytes behind a cut, and as many more as the longest token has, that decide on its first token


class WordCutter:
    """Finds places where a word can be cut.

    encode: returns the ids of a window. byte_ids, merge_ids, special_ids: those of its Encoder.
    """

    def __init__(
        self,
        encode: Callable[[Window], np.ndarray | None],
        scanner: Head,
        byte_ids: Sequence[int],
        merge_ids: np.ndarray,
        special_ids: Mapping[str, int],
    ) -> None:
        self._encode, self._scanner = encode, scanner
        self._byte_ids, self._merge_ids, self._special_ids = byte_ids, merge_ids, special_ids

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        """How many bytes each token has, by id."""
        largest = max(*self._byte_ids, *self._special_ids.values(), int(self._merge_ids[:, 2].max(initial=0)))
        sizes = [0] * (largest + 1)
        for token_id in self._byte_ids:
            if token_id >= 0:
                sizes[token_id] = 1
        for text, token_id in self._special_ids.items():
            sizes[token_id] = len(text.encode())
        for left, right, merged in self._merge_ids.tolist():
            sizes[merged] = sizes[left] + sizes[right]
        return np.array(sizes, np.int64)

    def cut(self, window: Window, behind: int | None = None) -> tuple[int, int]:
        """Returns where a text that goes on can be cut within its last word, and the id that follows; or (0, -1).

        behind: how many bytes stay behind the cut at least; None is a 16th of them.
        """
        start = address_of(window.buffer)
        end = first_invalid(start, start + window.length)
        length, begin = end - start, uniform_run(start, end, self._scanner.address) - start
        lowest, highest = max(begin + CERTAIN, length // 2), length - (length // 16 if behind is None else behind)
        if window.length - length > 3 or lowest > highest:  # more than an incomplete character
            return 0, -1
        ids = self._encode(window._replace(length=length))
        if ids is None or (sizes := self._sizes[ids]).sum() != length:
            return 0, -1
        places = np.cumsum(sizes) - sizes
        possible = (places >= lowest) & (places <= highest) & (window.buffer[places] & 0xC0 != 0x80)
        if self._is_limited_number(window.buffer, begin):
            possible &= (places - begin) % self._scanner[DIGITS] == 0
        for index in np.flatnonzero(possible)[-TRIED:][::-1].tolist():
            place = int(places[index])
            if not self._is_near_special(window.buffer, place):
                return place, int(ids[index])
        return 0, -1

    def certain_cut(self, data: bytes, tokens: Sequence[bytes], ranks: Ranks) -> int:
        """Returns where a text that goes on, valid UTF-8, can be cut within its last word, whatever follows; or 0.

        tokens: all of them, sorted. ranks: the merges, see `rank_merges`.
        """
        longest = max(map(len, tokens))
        window = Window.of_bytes(data)
        place, first_id = self.cut(window, DECIDING + longest)
        if not place or self._is_limited_number(window.buffer, place):  # which is a pre-token by itself
            return place
        for end in range(len(data) - longest, len(data) + 1):
            known = data[end:]
            index = bisect_left(tokens, known)
            goes_on = index < len(tokens) and tokens[index].startswith(known)
            if goes_on or len(data) - end <= CERTAIN:  # the last characters may belong to the next pre-token
                token_ids = [self._byte_ids[value] for value in data[place:end]]
                if merge_by_rank(token_ids, ranks)[0] != first_id:
                    return 0
        return place

    def _is_limited_number(self, buffer: np.ndarray, place: int) -> bool:
        """Returns whether the pattern cuts the number at this place into parts of DIGITS digits."""
        return self._scanner[DIGITS] < NO_LIMIT and buffer[place : place + 1].tobytes().isdigit()

    def _is_near_special(self, buffer: np.ndarray, place: int) -> bool:
        """Returns whether a special token stands across a place, or close to it."""
        tokens = [text.encode() for text in self._special_ids]
        longest = max(map(len, tokens), default=0)
        around = buffer[max(0, place - longest) : place + longest].tobytes()
        return any(token in around for token in tokens)


def check_first_id(window: Window, first_id: int) -> None:
    """Raises InputError where a word was cut before a window whose ids do not begin as they must."""
    if window.first_id not in (-1, first_id):
        raise InputError(
            f"{window.file}: the word at byte {window.offset} is too long to be encoded in parts; put a space into it"
        )
