"""Byte-level BPE (Sennrich et al. 2016; handout, section 2): learning merges and applying them, in plain Python.

    learn_merges    counts of pre-tokens -> vocabulary and merges: the most frequent pair of adjacent tokens becomes a
                    new token, everywhere; of equally frequent pairs the one whose byte strings are lexicographically
                    greater, or the older one; and again
    merge_by_rank   the tokens of one pre-token -> the same after all merges, the oldest first

A merge changes only the words that hold the pair, so that counts are corrected there and never made anew. Two merges
that spell the same bytes give one token: the vocabulary maps ids to distinct byte strings.

The compiled kernels in native/ give the same results on large files.
"""

import heapq
import operator
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from tokenization.errors import InputError
from tokenization.pretokenization import check_special_tokens

Vocabulary = dict[int, bytes]
Merges = list[tuple[bytes, bytes]]
Pair = tuple[int, int]
Ranks = dict[int, int]  # left id << 32 | right id -> rank << 32 | merged id; see rank_merges
LOW_HALF = (1 << 32) - 1
TIES = ("lexicographic", "huggingface")


def initial_vocabulary(special_tokens: Sequence[str]) -> Vocabulary:
    """Returns the vocabulary before the first merge: the 256 bytes, whose ids are their values, and the special tokens.

    A special token of a single byte is that byte's token.
    """
    check_special_tokens(special_tokens)
    tokens = dict.fromkeys([bytes([value]) for value in range(256)] + [token.encode() for token in special_tokens])
    return dict(enumerate(tokens))


class PairCounts:
    """The count of each pair of adjacent tokens, the words that hold it, and a heap to find the most frequent one.

    The heap holds (-count, order of the first token, order of the second, pair). Whenever a count changes, the pair
    is pushed again; its older entries are stale, and are dropped when they come to the top.
    """

    def __init__(self, words: list[list[int]], frequencies: list[int], vocab: Vocabulary, ties: str):
        self.words, self.frequencies = words, frequencies
        self.ties = ties
        self.order: dict[int, str | int] = {}
        for token_id, token in vocab.items():
            self.add_token(token_id, token)
        self.counts: dict[Pair, int] = defaultdict(int)
        self.where: dict[Pair, set[int]] = defaultdict(set)
        for index, (word, frequency) in enumerate(zip(words, frequencies, strict=True)):
            for pair in pairwise(word):
                self.counts[pair] += frequency
                self.where[pair].add(index)
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def add_token(self, token_id: int, token: bytes) -> None:
        """Sets the token's place among those of equally frequent pairs."""
        self.order[token_id] = creation_order(token_id) if self.ties == "huggingface" else descending_order(token)

    def _entry(self, pair: Pair) -> tuple[int, str | int, str | int, Pair]:
        return -self.counts[pair], self.order[pair[0]], self.order[pair[1]], pair

    def most_frequent(self) -> Pair | None:
        """Returns the next pair to merge, or None when every word is a single token."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            if self.counts.get(entry[-1]) == -entry[0]:
                return entry[-1]
        return None

    def merge(self, pair: Pair, new_id: int, new_token: bytes) -> None:
        """Replaces the pair by the new token in every word, and corrects the counts."""
        self.add_token(new_id, new_token)
        changed: dict[Pair, int] = defaultdict(int)
        for index in self.where.pop(pair):
            old, frequency = self.words[index], self.frequencies[index]
            new = self.words[index] = merge_word(old, pair, new_id)
            for old_pair in pairwise(old):
                changed[old_pair] -= frequency
            for new_pair in pairwise(new):
                changed[new_pair] += frequency
                self.where[new_pair].add(index)
        for changed_pair, change in changed.items():
            if change:
                self.counts[changed_pair] += change
                if self.counts[changed_pair]:
                    heapq.heappush(self.heap, self._entry(changed_pair))
                else:
                    del self.counts[changed_pair]
                    self.where.pop(changed_pair, None)


_COMPLEMENT = bytes(range(255, -1, -1))


def descending_order(token: bytes) -> str:
    """Returns a sort key that puts the lexicographically greater byte string first, as heapq pops the smallest.

    Complementing each byte reverses the order except for prefixes; the mark at the end puts "ab" before "a".
    """
    return token.translate(_COMPLEMENT).decode("latin-1") + "\u0100"


def creation_order(token_id: int) -> int:
    """Returns a sort key for Hugging Face's order: bytes as in GPT-2's alphabet, printable ones first; then by age."""
    if 33 <= token_id <= 126 or 161 <= token_id <= 172 or 174 <= token_id <= 255:
        return token_id - 512
    return token_id - 256 if token_id < 256 else token_id


def merge_word(word: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replaces a pair in a word: [1, 2, 3, 1, 2] with (1, 2) -> 9 is [9, 3, 9]; from the left: "aaa" is "aa", "a"."""
    merged: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and (word[position], word[position + 1]) == pair:
            merged.append(new_id)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


def learn_merges(
    counts: Mapping[bytes, int],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    ties: str = "lexicographic",
    progress: bool = False,
    seconds: dict[str, float] | None = None,
) -> tuple[Vocabulary, Merges]:
    """Learns merges from the pre-tokens in `counts` until the vocabulary is full or no pair is left.

    seconds: receives the time of each phase. Returns (vocab, merges).
    """
    start = time.perf_counter()
    vocab = initial_vocabulary(special_tokens)
    ids = {token: token_id for token_id, token in vocab.items()}
    merges: Merges = []
    pairs = PairCounts([list(pretoken) for pretoken in counts], list(counts.values()), vocab, ties)
    counted = time.perf_counter()
    from tqdm import tqdm

    with tqdm(total=vocab_size - len(vocab), desc="merging", unit="merge", disable=not progress, delay=0.5) as bar:
        while len(vocab) < vocab_size and (pair := pairs.most_frequent()) is not None:
            left, right = vocab[pair[0]], vocab[pair[1]]
            merges.append((left, right))
            new_id = ids.setdefault(left + right, len(vocab))
            if new_id == len(vocab):
                vocab[new_id] = left + right
                bar.update()
            pairs.merge(pair, new_id, left + right)
    if seconds is not None:
        seconds |= {"initial counts": counted - start, "merges": time.perf_counter() - counted}
    return vocab, merges


def find_merge_ids(merges: Merges, ids: Mapping[bytes, int]) -> np.ndarray:
    """Returns the ids of each merge: left, right and merged, int64, shape (merges, 3). ids: of all tokens.

    Raises InputError for a token that has no id.
    """
    lefts, rights = zip(*merges, strict=True) if merges else ((), ())
    id_of = ids.__getitem__
    try:
        columns = [list(map(id_of, tokens)) for tokens in (lefts, rights, map(operator.add, lefts, rights))]
    except KeyError:
        for rank, (left, right) in enumerate(merges, start=1):
            for token in (left, right, left + right):
                if token not in ids:
                    reason = f"merge {rank}, {left!r} with {right!r}: {token!r} is not in the vocabulary"
                    raise InputError(reason) from None
        raise
    return np.array(columns, np.int64).T


def rank_merges(merge_ids: np.ndarray) -> Ranks:
    """Returns the rank and the merged id of each pair; of a merge that is listed twice, the first counts.

    Each two numbers are one, for pairs of Python's would take more time and memory.
    """
    lefts, rights, merged = merge_ids[::-1].T
    ranks = np.arange(len(merge_ids) - 1, -1, -1)
    return dict(zip((lefts << 32 | rights).tolist(), (ranks << 32 | merged).tolist(), strict=True))


def merge_by_rank(token_ids: list[int], ranks: Ranks, applied: list[int] | None = None) -> list[int]:
    """Applies merges to the token ids of one pre-token, the oldest merge first, each from the left; O(n log n).

    The tokens form a linked list, and the heap holds the pairs that could merge. A pair whose tokens have changed
    since it was pushed is stale, and is skipped. applied: receives the rank of each merge, in the order in which they
    are applied.
    """
    token_ids = list(token_ids)
    end = len(token_ids)
    following, preceding = list(range(1, end + 1)), list(range(-1, end - 1))
    heap: list[tuple[int, int, int, int]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right < end and (merge := ranks.get(token_ids[left] << 32 | token_ids[right])) is not None:
            heapq.heappush(heap, (merge, left, token_ids[left], token_ids[right]))

    for left in range(end - 1):
        push(left, left + 1)
    while heap:
        merge, left, left_id, right_id = heapq.heappop(heap)
        right = following[left]
        if token_ids[left] != left_id or right == end or token_ids[right] != right_id:
            continue
        if applied is not None:
            applied.append(merge >> 32)
        token_ids[left], token_ids[right] = merge & LOW_HALF, -1  # -1: no longer in the list
        following[left] = following[right]
        if following[left] < end:
            preceding[following[left]] = left
        push(preceding[left], left)
        push(left, following[left])
    return [token_id for token_id in token_ids if token_id >= 0]
