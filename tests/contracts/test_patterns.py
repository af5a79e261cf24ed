"""Proves that the kernels split by every pattern they claim as plain Python does, and are not used for any other."""

import random

import pytest
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, random_text

from tokenization import Tokenizer, kernels
from tokenization.bpe import learn_merges
from tokenization.kernels import kernels_for
from tokenization.pretokenization import CL100K_PATTERN, PATTERNS, count_pretokens


def compiled_is_plain(pattern: str) -> None:
    """Compares the ids of hard texts by the code that kernels_for chooses, at any size, with plain Python's."""
    learnt = learn_merges(count_pretokens(SEED_TEXT, SPECIAL_TOKENS, pattern), 400, SPECIAL_TOKENS)
    tokenizer = Tokenizer(*learnt, SPECIAL_TOKENS, pattern)
    native = kernels_for(pattern, 1 << 40, "encoding").native
    assert (native is not None) == kernels.have_kernels(pattern)
    if native is None:
        return
    encoder, source = tokenizer.switch.encoder_of(native), random.Random(0)
    for text in (SEED_TEXT, *(random_text(source) for _ in range(300))):
        compiled = encoder.encode(native.Window.of_bytes(text.encode())).tolist()
        assert compiled == tokenizer.encode_bytes(text.encode()), repr(text)


@pytest.mark.parametrize("name", PATTERNS)
def test_compiled_is_plain(name):
    compiled_is_plain(PATTERNS[name])


def test_a_pattern_that_is_only_declared(monkeypatch):
    """As if somebody let cl100k's pattern through, and gave it no scanner."""
    monkeypatch.setattr(kernels, "have_kernels", lambda pattern: True)
    with pytest.raises(AssertionError):
        compiled_is_plain(CL100K_PATTERN)
