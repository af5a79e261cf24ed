"""Shared by the tests of the kernels: a text, a tokenizer learnt from it, and kernels at every size."""

import random

import pytest
from helpers.native import take_kernels_from
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS

from tokenization import END_OF_TEXT, Tokenizer
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens


@pytest.fixture(scope="module")
def text() -> str:
    """A text of its own for training: words made of syllables, with Zipf's frequencies."""
    source = random.Random(0)
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "on", "ur")]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(3000)]
    drawn = source.choices(words, weights=[1 / rank for rank in range(1, 3001)], k=20000)
    return SEED_TEXT * 20 + " ".join(drawn) + END_OF_TEXT + SEED_TEXT


@pytest.fixture(scope="module")
def tokenizer(text: str) -> Tokenizer:
    return Tokenizer(*learn_merges(count_pretokens(text, SPECIAL_TOKENS), 2000, SPECIAL_TOKENS), SPECIAL_TOKENS)


@pytest.fixture
def always_compiled(monkeypatch):
    take_kernels_from(0, monkeypatch)
