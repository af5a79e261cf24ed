"""How a tokenizer comes to its tokens: the merges of one word, step by step, and the merges behind one token.

This is BPE as it is defined: of all pairs of neighbours that a merge joins, join the one whose merge was learnt first,
the leftmost of equals; and again, until no pair is left. It searches all pairs at every step, which is quadratic:
`merge_by_rank` (bpe.py) gives the same tokens in little more than linear time.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from tokenization.bpe import Merges

RankOf = Mapping[tuple[bytes, bytes], int]  # of each pair that a merge joins: 0 is the merge that was learnt first


class Step(NamedTuple):
    """One merge within a pre-token."""

    rank: int
    left: bytes
    right: bytes
    parts: list[bytes]  # of the whole pre-token, after the merge


class Origin(NamedTuple):
    """A token in the tree of the merges behind another one."""

    depth: int  # 0 for the token itself, 1 for its two parts, 2 for theirs
    token: bytes
    rank: int | None  # of the first merge that makes it; None where none does


def rank_pairs(merges: Merges) -> dict[tuple[bytes, bytes], int]:
    """Returns the rank of each pair; of a merge that is listed twice, the first one counts."""
    return {pair: rank for rank, pair in reversed(list(enumerate(merges)))}


def merge_steps(pretoken: bytes, rank_of: RankOf) -> Iterator[Step]:
    """Yields the merges of one pre-token in the order in which encoding does them."""
    parts = [pretoken[place : place + 1] for place in range(len(pretoken))]
    while pairs := [(rank_of[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in rank_of]:
        rank, place = min(pairs)
        left, right = parts[place : place + 2]
        parts = [*parts[:place], left + right, *parts[place + 2 :]]
        yield Step(rank, left, right, parts)


def origins(token: bytes, merges: Merges) -> Iterator[Origin]:
    """Yields a token, then the whole tree of its left part, then that of its right part.

    Two merges may spell the same token; the one that was learnt first counts. One with an empty part makes nothing.
    """
    rank_of = {left + right: rank for rank, (left, right) in reversed(list(enumerate(merges))) if left and right}
    waiting = [(0, token)]
    while waiting:
        depth, token = waiting.pop()
        rank = rank_of.get(token)
        yield Origin(depth, token, rank)
        if rank is not None:
            left, right = merges[rank]
            waiting += [(depth + 1, right), (depth + 1, left)]
