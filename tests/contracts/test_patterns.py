"""Proves that the kernels split by every pattern they claim as plain Python does, and are not used for any other."""

import random

import pytest
from helpers import split_patterns
from helpers.split_patterns import LLAMA_3, PUBLISHED, check_complete, hard_text, known_parts
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS, random_text

from tokenization import Tokenizer, kernels, patterns
from tokenization.bpe import learn_merges
from tokenization.kernels import kernels_for
from tokenization.pretokenization import CL100K_PATTERN, count_pretokens

UNKNOWN = {"words": r"\w+|\W", "digits in threes": CL100K_PATTERN.replace("{1,3}+", "{3}")}


def compiled_is_plain(pattern: str) -> None:
    """Compares the ids of hard texts by the code that kernels_for chooses, at any size, with plain Python's."""
    known_parts(pattern)
    source = random.Random(0)
    text = SEED_TEXT + "".join(hard_text(source)[:50] for _ in range(300))  # long words take long to learn from
    learnt = learn_merges(count_pretokens(text, SPECIAL_TOKENS, pattern), 600, SPECIAL_TOKENS)
    tokenizer = Tokenizer(*learnt, SPECIAL_TOKENS, pattern)
    native = kernels_for(pattern, 1 << 40, "encoding").native
    assert native is not None, "the kernels cannot be loaded"
    encoder = tokenizer.switch.encoder_of(native)
    for text in (SEED_TEXT, *(draw(source) for _ in range(150) for draw in (random_text, hard_text))):
        compiled = encoder.encode(native.Window.of_bytes(text.encode())).tolist()
        assert compiled == tokenizer.encode_bytes(text.encode()), repr(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_pattern_is_known_and_complete(name):
    """The other tests of patterns take both for granted."""
    known_parts(PUBLISHED[name])
    check_complete(PUBLISHED[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_compiled_is_plain(name):
    compiled_is_plain(PUBLISHED[name])


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_kernel_splits_by_an_unknown_pattern(name):
    assert kernels_for(UNKNOWN[name], 1 << 40, "encoding").native is None
    with pytest.raises(AssertionError, match="no kernel knows a part of it"):
        compiled_is_plain(UNKNOWN[name])


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_pattern_that_is_only_declared(name, monkeypatch):
    """As if somebody let a pattern through, and gave it no scanner."""
    monkeypatch.setattr(split_patterns, "parts_of", lambda pattern: True)
    monkeypatch.setattr(kernels, "have_kernels", lambda pattern: True)
    with pytest.raises(AssertionError, match="the kernels cannot be loaded"):
        compiled_is_plain(UNKNOWN[name])


def test_a_pattern_that_leaves_something_out(monkeypatch):
    with pytest.raises(AssertionError, match="must match all of any text, but leaves out"):
        check_complete(LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}{3}"))


@pytest.mark.parametrize(
    ("table", "spelling", "like"),
    [
        ("_NUMBERS", r"\p{N}{3}|", r"\p{N}{1,3}|"),
        ("_NUMBERS", r"\p{Nd}{1,3}|", r"\p{N}{1,3}|"),
        ("_WORDS", r"[^\r\n\p{L}]?\p{L}+|", r"[^\r\n\p{L}\p{N}]?\p{L}+|"),
        ("_SIGNS", r" ?[^\s\p{L}\p{N}]+[\r\n]?|", r" ?[^\s\p{L}\p{N}]+[\r\n]*|"),
        ("_WHITE_SPACE", r"\s*[\r\n]+?|\s+", r"\s*[\r\n]+|\s+(?!\S)|\s+"),
    ],
)
def test_a_spelling_that_is_declared_to_be_another(table, spelling, like, monkeypatch):
    """As if somebody added a spelling that does not mean quite the same."""
    known = getattr(patterns, table)
    pattern = LLAMA_3.replace(like, spelling)
    assert pattern != LLAMA_3
    assert patterns.parts_of.__wrapped__(pattern) is None
    monkeypatch.setitem(known, spelling, known[like])
    with pytest.raises(AssertionError):
        compiled_is_plain(pattern)
