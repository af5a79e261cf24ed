"""Proves that the fast reading of vocab.json and merges.txt gives what gpt2.py's gives, and leaves to gpt2.py whatever
that refuses: on made vocabularies of all bytes, and with random edits of their files."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tokenization import InputError
from tokenization.bpe import find_merge_ids
from tokenization.formats import own_files
from tokenization.formats.contents import read_json, read_text
from tokenization.formats.folder import read_folder, write_folder
from tokenization.formats.gpt2 import parse_merge_ids, parse_vocabulary
from tokenization.formats.own_files import KEY_BYTES, read_own_files
from tokenization.pretokenization import GPT2_PATTERN

SPECIAL = ["<|end|>", '"quoted\\"', "<|pad|>"]
EDITS = [b"", b'"', b"\\", b'\\"', b"\\\\", b"\\n", b"\\u0041", b" ", b"\n", b"\r\n", b"\t", b",", b": ", b"0", b"9"]
EDITS += [b"\x80", b"\xc4", b"\xc1\x81", b"\xe4\xa0", b"\xff", b"x", b"x y\n", b"{", b"}", b"\x01", b"\x02"]
EDITS += [character.encode() for character in "é漢Ġ😀\u2028"]


def write(folder: Path, seed: int, special_tokens: list[str] = SPECIAL, shuffled: bool = False) -> tuple[bytes, bytes]:
    """Writes a made vocabulary, whose tokens are of all bytes and up to 40 long; returns its two files."""
    rng = random.Random(seed)
    tokens = [bytes([value]) for value in range(256)]
    merges = []
    while len(merges) < 300:
        left, right = rng.choice([*tokens[-60:], b'"', b"\\"]), rng.choice([*tokens, b'"', b"\\"])
        if len(left + right) <= 40 and left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    tokens += [token.encode() for token in special_tokens]
    if shuffled:
        rng.shuffle(tokens)
    ids = rng.sample(range(1_000_000_000), len(tokens)) if shuffled else range(len(tokens))
    vocab = dict(zip(ids, tokens, strict=True))
    merge_ids = find_merge_ids(merges, {token: token_id for token_id, token in vocab.items()})
    assert max(map(len, tokens)) > 2 * KEY_BYTES
    write_folder(folder, vocab, merge_ids, special_tokens, GPT2_PATTERN)
    return contents(folder)


def contents(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "vocab.json").read_bytes(), (folder / "merges.txt").read_bytes()


def read_plainly(folder: Path, special_tokens: list[str] = SPECIAL):
    table = read_json(folder / "vocab.json")
    vocab = parse_vocabulary(folder / "vocab.json", table, special_tokens)
    merges = folder / "merges.txt"
    return vocab, parse_merge_ids(merges, read_text(merges), table, special_tokens)


def check_equal(own, plain) -> None:
    assert list(own[0].items()) == list(plain[0].items())
    assert own[1].dtype == np.int64
    assert np.array_equal(own[1], plain[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_we_write_is_read_as_gpt2_py_reads_it(tmp_path, seed, shuffled):
    own = read_own_files(*write(tmp_path, seed, shuffled=shuffled), SPECIAL)
    assert own is not None
    check_equal(own, read_plainly(tmp_path))


@pytest.mark.parametrize("seed", range(2))
def test_edited_files_are_read_alike_or_left_to_gpt2_py(tmp_path, seed):
    """Edits at random places, most of them at the ends of a line, where all that is not a token stands."""
    whole, rng, num_read = write(tmp_path, seed, shuffled=seed == 1), random.Random(seed), 0
    for number in range(300):
        files = list(whole)
        content = files[number % 2]
        place = rng.randrange(len(content))
        if rng.random() < 0.6:
            place = max(content.find(b"\n", place) + rng.randrange(-9, 4), 0)
        files[number % 2] = content[:place] + rng.choice(EDITS) + content[place + rng.choice([0, 0, 1, 1, 2, 5]) :]
        for name, content in zip(("vocab.json", "merges.txt"), files, strict=True):
            (tmp_path / name).write_bytes(content)
        if (own := read_own_files(*files, SPECIAL)) is not None:
            num_read += 1
            check_equal(own, read_plainly(tmp_path))
    assert num_read > 2  # not all edits do harm


@pytest.mark.parametrize("special", ["<|é|>", "a b", "line\n", "\x01!", "<\u2028>"])
def test_special_tokens_beyond_printable_ascii_are_left_to_gpt2_py(tmp_path, special):
    assert read_own_files(*write(tmp_path, 0, [*SPECIAL, special]), [*SPECIAL, special]) is None


def test_a_folder_is_read_so_and_only_with_its_digests(tmp_path, monkeypatch):
    write(tmp_path, 0)
    definition = read_folder(tmp_path)
    monkeypatch.setattr(own_files, "read_own_files", lambda *_: None)
    plain = read_folder(tmp_path)
    check_equal((definition.vocab, definition.merge_ids), (plain.vocab, plain.merge_ids))
    assert (definition.special_tokens, definition.pattern) == (plain.special_tokens, plain.pattern)
    (tmp_path / "merges.txt").write_bytes(contents(tmp_path)[1][:-1])
    with pytest.raises(InputError, match=r"merges\.txt: is not the one"):
        read_folder(tmp_path)


@pytest.mark.parametrize("layout", ["ours", "ours, otherwise laid out", "older", "another program's"])
def test_what_is_checked_is_what_is_read(tmp_path, monkeypatch, layout):
    """Each file is read once, so that none can change between its check and its use."""
    write(tmp_path, 0)
    if layout == "ours, otherwise laid out":
        monkeypatch.setattr(own_files, "read_own_files", lambda *_: None)
    if layout == "older":
        settings = {"special_tokens": SPECIAL, "pattern": GPT2_PATTERN}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if layout == "another program's":
        write(tmp_path, 0, ["<|endoftext|>"])
        (tmp_path / "tokenizer_config.json").write_text("{}")
        (tmp_path / "merges.txt").write_bytes(contents(tmp_path)[1].replace(b" with tokenizer_config.json", b"", 1))
    real, names = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.append(path.name) or real(path))
    read_folder(tmp_path)
    assert sorted(names) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
