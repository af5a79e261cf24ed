"""Proves that OpenAI's published ranks give tiktoken's ids, in plain Python and by the kernels, whatever the text.

The ranks are too large for this repository: a folder with cl100k_base.tiktoken.gz and o200k_base.tiktoken.gz is looked
for in TOKENIZATION_TEST_DATA, and in shared/data beside the repository. GPT-2's are compared in test_tokenizer.py.

Only characters that one of the two engines puts into another class may change the ids: `regex` and tiktoken know
different versions of Unicode. These characters are found by asking both, and texts are compared without them.
"""

import functools
import gzip
import os
import random
from pathlib import Path

import pytest
import regex
import tiktoken
from helpers.split_patterns import hard_text
from helpers.texts import random_text
from tiktoken.load import load_tiktoken_bpe

from tokenization import Tokenizer
from tokenization.interchange import KNOWN_SPECIAL_TOKENS, import_tiktoken
from tokenization.pretokenization import PATTERNS

ROOT = Path(__file__).parents[2]
PLACES = [os.environ.get("TOKENIZATION_TEST_DATA", ""), ROOT / "../shared/data", ROOT / "../../shared/data"]


def find_ranks(name: str) -> Path:
    for folder in filter(None, PLACES):
        if (path := Path(folder) / f"{name}_base.tiktoken.gz").is_file():
            return path
    pytest.skip(f"{name}_base.tiktoken.gz is not at hand; name its folder in TOKENIZATION_TEST_DATA")


def load_both(name: str, folder: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Our tokenizer and tiktoken's, from the same ranks."""
    path, special = folder / f"{name}.tiktoken", KNOWN_SPECIAL_TOKENS[name]
    path.write_bytes(gzip.decompress(find_ranks(name).read_bytes()))
    ranks = load_tiktoken_bpe(str(path))
    theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
    return import_tiktoken(path, PATTERNS[name], special), theirs


@pytest.mark.parametrize("name", ["cl100k", pytest.param("o200k", marks=pytest.mark.slow)])
def test_published_ranks_give_tiktokens_ids(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy is kept
    tokenizer, theirs = load_both(name, tmp_path)
    source = random.Random(8)
    texts = [draw(source) for _ in range(500) for draw in (random_text, hard_text)]
    tokens = theirs.token_byte_values()[::97]
    texts += ["<|endoftext|>".join(texts[:20]), "", *(token.decode(errors="ignore") for token in tokens)]
    expected = [theirs.encode(text, allowed_special="all") for text in texts]
    assert [tokenizer.plain.encode(text) for text in texts] == expected
    assert tokenizer.switch.encoder is None
    tokenizer.switch.load()
    assert tokenizer.switch.encoder is not None
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.decode_batch(expected) == [theirs.decode(ids) for ids in expected]


# --- versions of Unicode ---

# What the patterns tell apart, and what their (?i) makes equal:
LETTERS = {r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}"}
CLASSES = LETTERS | {r"\p{M}", r"\p{N}", r"\s", *(f"(?i:{letter})" for letter in "sdmtlver")}
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


@functools.cache
def found_by_tiktoken(pattern: str) -> set[str]:
    """The characters that a pattern matches in tiktoken, which drops all others when it encodes."""
    ranks = {bytes([value]): value for value in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(encoding.decode(encoding.encode_ordinary(CHARACTERS)))


@functools.cache
def found_by_regex(pattern: str) -> set[str]:
    return set(regex.findall(pattern, CHARACTERS))


@functools.cache
def in_other_classes() -> set[str]:
    """The characters on which the engines do not agree."""
    return set().union(*(found_by_tiktoken(pattern) ^ found_by_regex(pattern) for pattern in CLASSES))


@pytest.mark.slow
def test_the_engines_differ_in_their_versions_of_unicode_alone():
    """A character in two different classes is not assigned in one version, or its letter has another case."""
    unassigned = found_by_tiktoken(r"\p{Cn}") | found_by_regex(r"\p{Cn}")
    letters = [set().union(*map(found, LETTERS)) for found in (found_by_tiktoken, found_by_regex)]
    assert in_other_classes() - unassigned <= letters[0] & letters[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_a_million_random_texts_give_tiktokens_ids(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    tokenizer, theirs = load_both(name, tmp_path)
    tokenizer.switch.load()
    source = random.Random(9)
    for _ in range(500_000):
        for text in (random_text(source), hard_text(source)):
            if tokenizer.encode(text) != theirs.encode(text, allowed_special="all"):
                known = "".join(character for character in text if character not in in_other_classes())
                assert known != text, ascii(text)
                assert tokenizer.encode(known) == theirs.encode(known, allowed_special="all"), ascii(known)
