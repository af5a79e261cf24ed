"""Proves that OpenAI's published ranks give tiktoken's ids, in plain Python and by the kernels, whatever the text.

The ranks are too large for this repository: a folder with cl100k_base.tiktoken.gz and o200k_base.tiktoken.gz is looked
for in TOKENIZATION_TEST_DATA, and in shared/data beside the repository. GPT-2's are compared in test_tokenizer.py.
"""

import gzip
import os
import random
from pathlib import Path

import pytest
import tiktoken
from helpers.split_patterns import hard_text
from helpers.texts import random_text
from tiktoken.load import load_tiktoken_bpe

from tokenization.interchange import KNOWN_SPECIAL_TOKENS, import_tiktoken
from tokenization.pretokenization import PATTERNS

ROOT = Path(__file__).parents[2]
PLACES = [os.environ.get("TOKENIZATION_TEST_DATA", ""), ROOT / "../shared/data", ROOT / "../../shared/data"]


def find_ranks(name: str) -> Path:
    for folder in filter(None, PLACES):
        if (path := Path(folder) / f"{name}_base.tiktoken.gz").is_file():
            return path
    pytest.skip(f"{name}_base.tiktoken.gz is not at hand; name its folder in TOKENIZATION_TEST_DATA")


@pytest.mark.parametrize("name", ["cl100k", pytest.param("o200k", marks=pytest.mark.slow)])
def test_published_ranks_give_tiktokens_ids(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # no copy is kept
    path, special = tmp_path / f"{name}.tiktoken", KNOWN_SPECIAL_TOKENS[name]
    path.write_bytes(gzip.decompress(find_ranks(name).read_bytes()))
    tokenizer = import_tiktoken(path, PATTERNS[name], special)
    ranks = load_tiktoken_bpe(str(path))
    theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
    source = random.Random(8)
    texts = [draw(source) for _ in range(500) for draw in (random_text, hard_text)]
    texts += ["<|endoftext|>".join(texts[:20]), "", *(token.decode(errors="ignore") for token in list(ranks)[::97])]
    expected = [theirs.encode(text, allowed_special="all") for text in texts]
    assert [tokenizer.encode_plainly(text) for text in texts] == expected
    assert tokenizer.switch.encoder is None
    tokenizer.switch.load()
    assert tokenizer.switch.encoder is not None
    assert [tokenizer.encode(text) for text in texts] == expected
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.decode_batch(expected) == [theirs.decode(ids) for ids in expected]
