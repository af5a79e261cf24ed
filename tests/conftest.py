"""Shared by the tokenizer's tests: GPT-2's own vocabulary, rebuilt from its merges; a small tokenizer; random text.
What only one file needs stands in that file."""

import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

from tokenization import END_OF_TEXT, Tokenizer, formats
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens

FIXTURES = Path(__file__).parent / "fixtures"

STORY = """Once upon a time there was a little cat. The cat's name was Tom, and Tom didn't like the rain.
One day it rained and rained.  "We'll play inside," said the cat. They played all day, and they were happy.
"""


@pytest.fixture(scope="session")
def gpt2_files(tmp_path_factory) -> Path:
    """A folder with GPT-2's vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("gpt2")
    text = gzip.decompress((FIXTURES / "gpt2_merges.txt.gz").read_bytes()).decode()
    pairs = [tuple(line.split(" ")) for line in text.splitlines()]
    tokens = [*formats.byte_alphabet().values(), *(left + right for left, right in pairs), END_OF_TEXT]
    table = {token: token_id for token_id, token in enumerate(tokens)}
    formats.write_text(folder / "vocab.json", json.dumps(table))
    formats.write_text(folder / "merges.txt", "#version: 0.2\n" + text)
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_files) -> Tokenizer:
    return Tokenizer.load(gpt2_files)


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """300 tokens learnt from STORY; <|endoftext|> is 256."""
    return Tokenizer(*learn_merges(count_pretokens(STORY), 300, [END_OF_TEXT]), [END_OF_TEXT])


def _stable_characters() -> dict[str, list[str]]:
    """Characters of every plane by kind, only those whose kind every Unicode version since 3.2 agrees on."""
    kinds: dict[str, list[str]] = {"L": [], "N": [], "M": [], "other": []}
    for character in map(chr, range(0x110000)):
        old, new = unicodedata.ucd_3_2_0.category(character), unicodedata.category(character)
        if old[0] == new[0] and new not in ("Cn", "Cs"):
            kinds.get(new[0], kinds["other"]).append(character)
    return kinds


@pytest.fixture(scope="session")
def random_text():
    """random_text(seed, length) -> letters, numbers, marks, signs of every plane, white space, contractions."""
    kinds = _stable_characters()
    spaces = [" "] * 8 + list("\n\n\n\t\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2009\u200b\u2028\u2029\u202f\u205f\u3000")
    snippets = [
        "'s",
        "'ll",
        "'ve",
        "'re",
        "'d",
        "'m",
        "'t",
        "'S",
        "' s",
        "\u2019s",
        "don't",
        "  ",
        "\r\n",
        "\0",
        "😀",
        "👩‍👩‍👧",
    ]

    def make(seed: int, length: int = 60) -> str:
        rng = random.Random(seed)
        pools = [list("abcdeXYZ"), list("0123456789"), spaces, snippets, *kinds.values()]
        return "".join(
            rng.choice(rng.choices(pools, (6, 2, 6, 2, 2, 1, 1, 1))[0]) for _ in range(rng.randint(0, length))
        )

    return make
