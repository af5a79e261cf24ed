"""Encoding in plain Python, which defines what the kernels must return (handout, section 2.6).

    text -> special tokens and pre-tokens -> bytes -> merges, the oldest first -> ids

The rules for special tokens and pre-tokens are pretokenization.py's, and merging is bpe.py's.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from tokenization.bpe import Ranks, merge_by_rank, rank_merges
from tokenization.errors import InputError
from tokenization.pretokenization import pretokenize, split_on_special_tokens

MAX_CACHED_PRETOKENS = 1 << 18
MAX_CACHED_CHARACTERS = 64  # of a pre-token


class PlainEncoder:
    """Encodes strings, and keeps the ids of the pre-tokens that it has met.

    byte_ids: the id of each of the 256 bytes, or -1. merge_ids: (left, right, merged) of each merge, in order of
    creation, int64, shape (merges, 3). special_ids: the id of each special token. pattern: what splits text before any
    merge.
    """

    def __init__(
        self, byte_ids: Sequence[int], merge_ids: np.ndarray, special_ids: Mapping[str, int], pattern: str
    ) -> None:
        self.byte_ids, self.merge_ids, self.special_ids, self.pattern = byte_ids, merge_ids, special_ids, pattern
        self.special_tokens = list(special_ids)
        self.cache: dict[str, list[int]] = {}

    @cached_property
    def ranks(self) -> Ranks:
        """The rank and the merged id of each pair."""
        return rank_merges(self.merge_ids)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a string, in which surrogate escapes stand for bytes that are not UTF-8."""
        token_ids: list[int] = []
        for index, stretch in enumerate(split_on_special_tokens(text, self.special_tokens)):
            if index % 2:
                token_ids.append(self.special_ids[stretch])
            else:
                token_ids += self.encode_ordinary(stretch)
        return token_ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Returns the token ids of a string in which a special token that is written out is text."""
        token_ids: list[int] = []
        for pretoken in pretokenize(text, self.pattern):
            token_ids += self.cache.get(pretoken) or self._encode_pretoken(pretoken)
        return token_ids

    def _encode_pretoken(self, pretoken: str) -> list[int]:
        data = pretoken.encode(errors="surrogateescape")
        token_ids = [self.byte_ids[value] for value in data]
        if -1 in token_ids:
            missing = data[token_ids.index(-1)]
            raise InputError(f"byte 0x{missing:02x} of {pretoken!r} has no token in this vocabulary")
        token_ids = merge_by_rank(token_ids, self.ranks)
        if len(self.cache) < MAX_CACHED_PRETOKENS and len(pretoken) < MAX_CACHED_CHARACTERS:
            self.cache[pretoken] = token_ids
        return token_ids
