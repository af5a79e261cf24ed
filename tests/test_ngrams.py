"""Proves that the n-gram tables are the formula, by counting with dictionaries, and that choosing and limits hold."""

import math
from collections import Counter

import numpy as np
import pytest

from lm import ngrams
from lm.ngrams import Counts, ngram_losses, num_held_out, split


def chance(gram: tuple[int, ...], longest: list[tuple[int, ...]], vocab_size: int, settings: list[tuple[float, float]]):
    """p_n(w | h) of an n-gram (h, w), counted among the beginnings of the longest n-grams."""
    if not gram:
        return 1 / vocab_size
    n = len(gram)
    counted = Counter(key[:n] for key in longest)
    context = sum(count for key, count in counted.items() if key[:-1] == gram[:-1])
    followers = sum(key[:-1] == gram[:-1] for key in counted)
    discount, strength = settings[n - 1]
    left = (strength + discount * followers) * chance(gram[1:], longest, vocab_size, settings)
    return (max(counted[gram] - discount, 0) + left) / (context + strength)


@pytest.mark.parametrize("vocab_size", [3, 7])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_the_formula(order, vocab_size, dtype):
    rng = np.random.default_rng(order * vocab_size)
    training = (rng.integers(0, vocab_size, 200) * rng.integers(0, 2, 200)).astype(dtype)
    text = rng.integers(0, vocab_size, 40).astype(dtype)
    longest = [tuple(map(int, training[i : i + order])) for i in range(len(training) - order + 1)]
    settings = [(0.1 * n, 0.5 + n) for n in range(order)]
    shorter: np.ndarray | float = 1 / vocab_size
    for n, seen in enumerate(Counts(training, vocab_size, order).look_up(text), 1):
        shorter = seen.interpolate(*settings[n - 1], shorter)
        grams = [tuple(map(int, text[i - n + 1 : i + 1])) for i in range(order - 1, len(text))]
        assert shorter == pytest.approx([chance(gram, longest, vocab_size, settings) for gram in grams], rel=1e-12)


def test_chances_add_up_to_one():
    """Over all tokens that may follow a context, seen or not."""
    training = np.random.default_rng(0).integers(0, 6, 300).astype(np.uint16)
    counts = Counts(training, 6, 3)
    for context in ([0, 1], [5, 5], [2, 3]):
        total = 0.0
        for token in range(6):
            shorter: np.ndarray | float = 1 / 6
            for seen in counts.look_up(np.array([*context, token], np.uint16)):
                shorter = seen.interpolate(0.7, 0.25, shorter)
            total += float(shorter[0])
        assert total == pytest.approx(1)


def test_a_source_of_known_entropy():
    """A Markov chain of order 2: trigrams come close to its entropy, unigrams and bigrams cannot."""
    rng = np.random.default_rng(1)
    table = rng.integers(0, 8, (8, 8))
    tokens = [0, 1]
    for noise in rng.random(60_000):
        tokens.append(int(table[tokens[-2], tokens[-1]]) if noise < 0.9 else int(rng.integers(0, 8)))
    entropy = -(0.9125 * math.log(0.9125) + 7 * 0.0125 * math.log(0.0125))
    unigram, bigram, trigram, fourgram = ngram_losses(*np.split(np.array(tokens, np.uint16), [50_000]), 8)
    assert unigram > bigram > trigram + 0.3
    assert trigram == pytest.approx(entropy, abs=0.03)
    assert fourgram == pytest.approx(entropy, abs=0.05)


def test_tokens_never_seen_and_large_vocabularies():
    training, text = np.arange(3000) % 50, np.arange(100) + 60_000
    assert len(ngram_losses(training.astype(np.uint16), text.astype(np.uint16), 65_536)) == 4
    losses = ngram_losses(training.astype(np.uint32), text.astype(np.uint32), 200_000)
    assert len(losses) == 3  # n-grams of four do not fit 64 bits
    assert all(math.log(200_000) < loss < math.inf for loss in losses)
    highest = np.full(500, 65_535, np.uint16)
    assert ngram_losses(highest, highest, 65_536)[3] < 0.01


def test_the_order_of_a_text_hardly_matters():
    """Two kinds of text, of which the end has but one; of the small one, all would be held out at the end."""
    rng = np.random.default_rng(4)
    parts = [rng.integers(0, 40, 60_000) ** 2 // 40, 40 + rng.integers(0, 40, 3_000) ** 2 // 40]
    text = 40 + (rng.integers(0, 40, 2_000) ** 2 // 40).astype(np.uint16)
    found = [ngram_losses(np.concatenate(order).astype(np.uint16), text, 80) for order in (parts, parts[::-1])]
    assert found[0] == pytest.approx(found[1], abs=0.1)


def test_what_is_held_out_is_not_counted():
    tokens = np.arange(100_000, dtype=np.uint32)
    counted, held_out = split(tokens, num_held_out(len(tokens)))
    assert len(held_out) == 5000
    assert np.array_equal(np.sort(np.concatenate([counted, held_out])), tokens)
    assert len(np.flatnonzero(np.diff(held_out) > 1)) == 49  # fifty stretches


def test_chunks_make_no_difference(monkeypatch):
    tokens = np.random.default_rng(3).integers(0, 9, 2000, np.uint16)
    expected = ngram_losses(tokens[:1500], tokens[1500:], 9)
    monkeypatch.setattr(ngrams, "CHUNK", 7)
    assert ngram_losses(tokens[:1500], tokens[1500:], 9) == expected
