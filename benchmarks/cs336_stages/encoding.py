"""Encodes a text in six ways that give the same ids."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, pairwise

import numpy as np

from cs336_stages.clock import Clock, Result, repeat
from tokenization import END_OF_TEXT, Tokenizer
from tokenization.bpe import Pair, find_merge_ids, merge_by_rank, merge_word, rank_merges
from tokenization.pretokenization import pretokenize

PairRanks = dict[Pair, tuple[int, int]]  # (left id, right id) -> (rank, merged id)
WayToEncode = Callable[[list[int]], list[int]]  # a word's bytes -> its tokens


def encode(tokenizer: Tokenizer, text: str, num_characters: int, enough: float) -> None:
    """Prints the bytes that each way encodes in a second of the processor."""
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    ranks = {(ids[a], ids[b]): (rank, ids[a + b]) for rank, (a, b) in enumerate(tokenizer.merges)}
    packed = rank_merges(find_merge_ids(tokenizer.merges, ids))
    by_word: dict[str, WayToEncode] = {
        "every merge is tried": lambda word: all_merges(word, ranks),
        "merges whose pair is absent are passed over": lambda word: present_merges(word, ranks),
        "only the pairs of the word are looked up": lambda word: earliest_pair(word, ranks),
        "a heap of them, by the age of the merge (bpe.py)": lambda word: merge_by_rank(word, packed),
    }
    short = text[:num_characters].replace(END_OF_TEXT, "")
    words = [list(pretoken.encode()) for pretoken in pretokenize(short)]
    rows: dict[str, tuple[str, Callable[[], Sequence[int] | np.ndarray]]] = {
        name: (short, partial(encode_words, way, words)) for name, way in by_word.items()
    }
    rows["the heap, and known words from a table (plain_encoding.py)"] = text, partial(tokenizer.plain.encode, text)
    rows["kernels (native/encoding.py)"] = text, partial(tokenizer.encode_to_numpy, text)
    tokenizer.encode_to_numpy(text)  # loads the kernels
    print(f"\n{f'encoding, {len(ids):,} tokens':<58}{'bytes/s':>14}{'speed':>10}")
    slowest = 0.0
    for name, (given, work) in rows.items():
        found, seconds = repeat(partial(timed, work), enough)
        assert list(found) == tokenizer.plain.encode(given), f"{name}: other ids"
        speed = len(given.encode()) / seconds["encode"]
        slowest = slowest or speed
        print(f"{name:<58}{speed:14,.0f}{speed / slowest:>9,.0f}x")


def encode_words(way: WayToEncode, words: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(map(way, words)))


def timed(work: Callable[[], Result], clock: Clock) -> Result:
    with clock("encode"):
        return work()


def all_merges(word: list[int], ranks: PairRanks) -> list[int]:
    """Tries every merge, the oldest first."""
    for pair, (_, merged) in ranks.items():
        word = merge_word(word, pair, merged)
    return word


def present_merges(word: list[int], ranks: PairRanks) -> list[int]:
    """Passes over the merges whose pair is not in the word."""
    present = set(pairwise(word))
    for pair, (_, merged) in ranks.items():
        if pair in present:
            word = merge_word(word, pair, merged)
            present = set(pairwise(word))
    return word


def earliest_pair(word: list[int], ranks: PairRanks) -> list[int]:
    """Looks up the merges of the word's own pairs, and does the oldest."""
    while known := [pair for pair in pairwise(word) if pair in ranks]:
        pair = min(known, key=lambda pair: ranks[pair])
        word = merge_word(word, pair, ranks[pair][1])
    return word
