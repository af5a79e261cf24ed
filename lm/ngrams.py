"""Predicts each token from the few before it, by counting: the baselines that a language model has to beat.

    p_n(w | h) = (max(c(h w) - d, 0) + (k + d t(h)) p_(n-1)(w | h')) / (c(h) + k)

c counts occurrences in the training tokens. h are the n - 1 tokens before w, h' is h without its first token, and t(h)
is the number of different tokens that follow h. The table of the shorter context takes over what the discount d and the
strength k leave, down to p_0 = 1 / vocab_size. This is the interpolation of the hierarchical Pitman-Yor model (Teh
2006); k = 0 is absolute discounting. Each order has its own d and k, chosen on training tokens that are not counted.
"""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

NAMES = ("unigram", "bigram", "trigram", "4-gram")  # by the number of tokens, from 1
MOST_TOKENS = 20_000_000  # of training text that are counted
MOST_HELD_OUT = 50_000  # tokens on which discount and strength are chosen
STRETCH = 100  # of them next to each other
DISCOUNTS = [step / 10 for step in range(10)]
STRENGTHS = [4.0**step for step in range(-2, 8)]
LARGEST_KEY = 1 << 64
CHUNK = 1 << 20  # keys


class Seen(NamedTuple):
    """What was counted for each token of a text, in float64: (tokens,) each."""

    together: np.ndarray  # c(h w)
    context: np.ndarray  # c(h)
    followers: np.ndarray  # t(h)

    def interpolate(self, discount: float, strength: float, shorter: np.ndarray | float) -> np.ndarray:
        """Returns p_n of each token from p_(n-1), (tokens,)."""
        left = strength + discount * self.followers
        chances: np.ndarray = (np.maximum(self.together - discount, 0) + left * shorter) / (self.context + strength)
        return chances


class Counts:
    """The n-grams of a text, counted up to an order. One sorted list of the longest ones holds all shorter ones, too.

    An n-gram is packed into one number with the base vocab_size, so that those that begin alike stand in one stretch.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int):
        self.base, self.order = vocab_size, order
        self.keys = self.pack(tokens, order)
        self.keys.sort()

    def pack(self, tokens: np.ndarray, n: int) -> np.ndarray:
        """Returns the number of each n-gram of a text, (tokens - n + 1,), uint64."""
        keys = np.zeros(len(tokens) - n + 1, np.uint64)
        for place in range(n):
            keys *= np.uint64(self.base)
            keys += tokens[place : place + len(keys)]
        return keys

    def stretches(self, ngrams: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the keys that begin with each n-gram start and end: (ngrams,) each."""
        if not n:
            return np.zeros(len(ngrams), np.int64), np.full(len(ngrams), len(self.keys))
        width = np.uint64(self.base ** (self.order - n))
        first = ngrams * width
        return np.searchsorted(self.keys, first), np.searchsorted(self.keys, first + (width - np.uint64(1)), "right")

    def different(self, n: int) -> np.ndarray:
        """Returns the place of the first key that begins with each n-gram, ascending."""
        width, places = np.uint64(self.base ** (self.order - n)), [np.zeros(min(1, len(self.keys)), np.int64)]
        for start in range(0, len(self.keys), CHUNK):
            begins = self.keys[start : start + CHUNK + 1] // width
            places.append(np.flatnonzero(begins[1:] != begins[:-1]) + start + 1)
        return np.concatenate(places)

    def look_up(self, tokens: np.ndarray) -> Iterator[Seen]:
        """Yields what each token but the first order - 1 has been seen with, for n = 1 to the order."""
        number = len(tokens) - self.order + 1
        for n in range(1, self.order + 1):
            ngrams, of_ngram = np.unique(self.pack(tokens, n)[-number:], return_inverse=True)
            contexts, of_context = np.unique(self.pack(tokens[:-1], n - 1)[-number:], return_inverse=True)
            start, end = self.stretches(ngrams, n)
            context_start, context_end = self.stretches(contexts, n - 1)
            different = self.different(n)
            followers = np.searchsorted(different, context_end) - np.searchsorted(different, context_start)
            found = (end - start)[of_ngram], (context_end - context_start)[of_context], followers[of_context]
            yield Seen(*(counts.astype(float) for counts in found))


def ngram_losses(training: np.ndarray, validation: np.ndarray, vocab_size: int, order: int = 4) -> list[float]:
    """Returns the mean loss of validation tokens under n-gram tables of training tokens, in nats, for n = 1 to order.

    training, validation: unsigned token ids, (tokens,), at least 2 order tokens each. The first order - 1 validation
    tokens are read, and not predicted. The order is lowered where the n-grams of a vocabulary do not fit 64 bits: to 3
    for more than 65,536 tokens. All takes one sort of 8 bytes for each training token.
    """
    while vocab_size**order > LARGEST_KEY:
        order -= 1
    counted, held_out = split(training, num_held_out(len(training), order))
    counts = Counts(counted, vocab_size, order)
    losses: list[float] = []
    chosen_by: np.ndarray | float = 1 / vocab_size
    scored: np.ndarray | float = 1 / vocab_size
    tables = zip(counts.look_up(held_out), counts.look_up(validation), strict=True)
    for seen_held_out, seen in tables:
        discount, strength = choose(seen_held_out, chosen_by)
        chosen_by = seen_held_out.interpolate(discount, strength, chosen_by)
        scored = seen.interpolate(discount, strength, scored)
        losses.append(mean_loss(scored))
    return losses


def num_held_out(num_tokens: int, order: int = 4) -> int:
    """Returns how many of the training tokens are not counted."""
    wanted = min(MOST_HELD_OUT, max(2 * order, num_tokens // 20))
    stretches = max(1, wanted // STRETCH)
    return wanted // stretches * stretches


def split(training: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens to be counted and those held out: stretches from all over the text, which may change its kind.

    The few n-grams across the cuts, which the text does not have, are counted with the others.
    """
    ends = np.linspace(0, len(training), max(1, held_out // STRETCH) + 1).astype(int)
    size = held_out // (len(ends) - 1)
    pieces = list(pairwise(ends.tolist()))
    counted = np.concatenate([training[start : end - size] for start, end in pieces])
    return counted, np.concatenate([training[end - size : end] for _, end in pieces])


def choose(seen: Seen, shorter: np.ndarray | float) -> tuple[float, float]:
    """Returns the discount and the strength that predict best, of DISCOUNTS and STRENGTHS."""
    return min(product(DISCOUNTS, STRENGTHS), key=lambda pair: mean_loss(seen.interpolate(pair[0], pair[1], shorter)))


def mean_loss(chances: np.ndarray) -> float:
    return -float(np.log(chances).mean())
