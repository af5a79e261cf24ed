"""Proves that a token set reads as the one file of its shards, with whatever places are asked for; that each shard is
verified once, when it is first used; and that a set which is not whole and unchanged is refused in one line."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tokenization import InputError, TokenFile
from tokenization.__main__ import main
from tokenization.tokens import token_set
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_index import INDEX, is_token_set, parse_index, write_index

SIZES = (5, 1, 12, 2, 9)
IDS = np.random.default_rng(0).integers(0, 300, sum(SIZES)).astype(np.uint16)
PARTS = np.split(IDS, np.cumsum(SIZES)[:-1])


def write(path: Path, token_ids: np.ndarray, vocab_size: int = 300, tokenizer: str = "a tokenizer") -> None:
    with TokenFileWriter(path, vocab_size, tokenizer, separator_id=0) as writer:
        writer.write(token_ids)
        writer.num_bytes = 3 * len(token_ids)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A token set of five shards, with IDS in them."""
    for name, part in zip("abcde", PARTS, strict=True):
        write(tmp_path / "set.tokens" / f"{name}.bin", part)
    write_index(tmp_path / "set.tokens")
    return tmp_path / "set.tokens"


def test_the_index_is_that_of_one_file(folder, tmp_path):
    write(tmp_path / "one.bin", IDS)
    index, one = json.loads((folder / INDEX).read_text()), TokenFile.open(tmp_path / "one.bin").description
    assert TokenFile.open(folder).description == one
    digest = index.pop("index_sha256")
    assert digest == hashlib.sha256(json.dumps(index).encode()).hexdigest()
    assert index.pop("format") == 1
    shards = index.pop("shards")
    assert index == vars(one)
    for name, part, shard in zip("abcde", PARTS, shards, strict=True):
        data = part.astype("<u2").tobytes()
        assert shard == {
            "path": f"{name}.bin",
            "tokens": len(part),
            "documents": int((part == 0).sum()),
            "bytes": 3 * len(part),
            "data_sha256": hashlib.sha256(data).hexdigest(),
        }


def test_every_slice_is_that_of_the_array(folder):
    tokens = TokenFile.open(folder).tokens
    assert len(tokens) == len(IDS)
    assert tokens.dtype == np.uint16
    for start in range(len(IDS) + 1):
        for stop in range(len(IDS) + 1):
            found = tokens[start:stop]
            assert found.dtype == np.uint16
            assert found.tolist() == IDS[start:stop].tolist()
    for place in (slice(None), slice(-7, None), slice(3, -3), slice(90, 100), slice(None, None, 3), slice(20, 2, -4)):
        assert tokens[place].tolist() == IDS[place].tolist()
    assert [int(tokens[place]) for place in range(-len(IDS), len(IDS))] == [*IDS.tolist()] * 2
    with pytest.raises(IndexError):
        tokens[len(IDS)]
    assert np.asarray(tokens).tolist() == IDS.tolist()
    assert np.array(tokens, np.int64).dtype == np.int64


def test_a_slice_of_one_shard_is_no_copy(folder):
    tokens = TokenFile.open(folder).tokens
    assert np.shares_memory(tokens[7:12], tokens[6:18])
    assert not tokens[7:12].flags.writeable


@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_few_files_are_open_at_a_time(folder, monkeypatch, most):
    monkeypatch.setattr(token_set, "MOST_MAPPED", most)
    tokens = TokenFile.open(folder).tokens
    for start in np.random.default_rng(1).integers(0, len(IDS) - 9, 50).tolist():
        assert tokens[start : start + 9].tolist() == IDS[start : start + 9].tolist()
    assert len(tokens._mapped) == most


def test_each_shard_is_verified_once_when_it_is_first_used(folder, monkeypatch):
    read, verify = [], token_set.verify_tokens
    monkeypatch.setattr(
        token_set, "verify_tokens", lambda path, *rest: (read.append(path.name), verify(path, *rest))[1]
    )
    file = TokenFile.open(folder)
    assert read == []
    for place in (slice(6, 9), slice(7, 18), slice(0, 2), slice(4, 6), slice(0, 6)):
        file.tokens[place]
    assert read == ["c.bin", "a.bin", "b.bin"]
    for _ in range(2):
        file.verify_rest()
        np.asarray(file.tokens)
    assert read == ["c.bin", "a.bin", "b.bin", "d.bin", "e.bin"]
    np.asarray(TokenFile.open(folder, verify=False).tokens)
    assert len(read) == 5


def test_a_damaged_shard_is_refused_whenever_it_is_read(folder):
    data = bytearray((folder / "c.bin").read_bytes())
    data[3] ^= 1
    (folder / "c.bin").write_bytes(data)
    file = TokenFile.open(folder)
    assert file.tokens[:6].tolist() == IDS[:6].tolist()
    for read in (lambda: file.tokens[5:7], lambda: file.tokens[6:8], file.verify_rest, lambda: np.asarray(file.tokens)):
        with pytest.raises(InputError, match=r"set\.tokens/c\.bin: (has changed|token id \d+ lies outside)") as error:
            read()
        assert "\n" not in str(error.value)
    assert file.tokens[20:].tolist() == IDS[20:].tolist()


def edit(folder: Path, sign: bool = True, **changes) -> None:
    """Changes values of the index; signed, it has the right digest of itself."""
    index = json.loads((folder / INDEX).read_text())
    del index["index_sha256"]
    index |= changes
    digest = hashlib.sha256(json.dumps(index).encode()).hexdigest() if sign else "0" * 64
    (folder / INDEX).write_text(json.dumps(index | {"index_sha256": digest}, indent=2) + "\n")


def shards(folder: Path) -> list[dict]:
    return json.loads((folder / INDEX).read_text())["shards"]


def replace_shard(folder: Path, **settings) -> None:
    write(folder / "b.bin", PARTS[1] + np.uint16(1), **settings)


def of_another_dtype(folder: Path) -> None:
    write(folder / "b.bin", PARTS[1], vocab_size=70_000)


DAMAGE = {
    "no index": (lambda f: (f / INDEX).unlink(), r"no index\.json; write it with `tokenization index"),
    "interrupted": (
        lambda f: ((f / INDEX).unlink(), (f / "plan.json").touch()),
        "encoding was interrupted; the same `tokenization encode`",
    ),
    "a folder": (lambda f: ((f / INDEX).unlink(), (f / INDEX).mkdir()), r"index\.json: cannot be read"),
    "half": (lambda f: (f / INDEX).write_text((f / INDEX).read_text()[:99]), "is not the index of a token set"),
    "a list": (lambda f: (f / INDEX).write_text("[]"), "is not the index of a token set"),
    "deep": (lambda f: (f / INDEX).write_text("[" * 10**5), "is not the index of a token set"),
    "no UTF-8": (lambda f: (f / INDEX).write_bytes(b"\xff"), "is not the index of a token set"),
    "another's": (lambda f: (f / INDEX).write_text('{"format": 1, "shards": 5}'), "is not the index of a token set"),
    "a newer one": (lambda f: edit(f, format=2), "is of format 2, and this version reads format 1"),
    "an edited one": (lambda f: edit(f, sign=False, tokens=30), r"index\.json: has changed since it was written"),
    "a wrong sum": (lambda f: edit(f, tokens=30), "has changed"),
    "a wrong type": (lambda f: edit(f, tokens=29.0), "is not the index"),
    "no shards": (lambda f: edit(f, shards=[], tokens=0), "has changed"),
    "an unknown dtype": (lambda f: edit(f, dtype="int8"), "has changed"),
    "twice": (lambda f: edit(f, shards=[*shards(f), shards(f)[1]], tokens=30), "lists a shard twice"),
    "of elsewhere": (
        lambda f: edit(f, shards=[shard | {"path": f"../{shard['path']}"} for shard in shards(f)]),
        "or one of another folder",
    ),
    "missing": (lambda f: (f / "b.bin").unlink(), r"set\.tokens/b\.bin: is missing, and index\.json lists it"),
    "cut": (lambda f: (f / "c.bin").write_bytes(bytes(22)), r"c\.bin: holds 11 tokens, but c\.bin\.json says 12"),
    "undescribed": (
        lambda f: (f / "b.bin.json").unlink(),
        r"b\.bin: is not a token file, for .*b\.bin\.json is missing",
    ),
    "one too many": (lambda f: write(f / "f.bin", IDS), r"holds f\.bin, which index\.json does not list"),
    "another file": (replace_shard, r"b\.bin: is not the file that index\.json lists \(digest "),
    "another tokenizer": (
        lambda f: replace_shard(f, tokenizer="b"),
        r"b\.bin: was encoded by another tokenizer, not that of the set",
    ),
    "another vocabulary": (
        lambda f: replace_shard(f, vocab_size=400),
        r"b\.bin: vocab_size is 400, and .* the set 300",
    ),
    "another dtype": (of_another_dtype, r"b\.bin: vocab_size is 70000"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_set_that_is_not_whole_is_refused(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        TokenFile.open(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_any_flipped_bit_of_the_index_is_noticed(folder):
    whole = (folder / INDEX).read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / INDEX).write_bytes(flipped)
        with pytest.raises(InputError, match=r"index\.json"):
            parse_index(folder)


def test_a_folder_is_a_set_by_its_name_or_its_index(folder, tmp_path):
    assert is_token_set(folder)
    assert is_token_set(f"{folder}/")
    (tmp_path / "texts").mkdir()
    assert not is_token_set(tmp_path / "texts")
    (tmp_path / "texts" / INDEX).write_text('{"format": 1}')
    assert not is_token_set(tmp_path / "texts")
    shutil.copy(folder / INDEX, tmp_path / "texts" / INDEX)
    assert is_token_set(tmp_path / "texts")
    assert not is_token_set(tmp_path / "none.tokens")
    (tmp_path / "file.tokens").touch()
    assert not is_token_set(tmp_path / "file.tokens")


def test_what_a_shard_does_not_know_the_set_does_not(folder):
    with TokenFileWriter(folder / "f.bin", 300, "a tokenizer") as writer:
        writer.write(IDS)
    about = write_index(folder).description
    assert (about.tokens, about.documents, about.bytes) == (2 * len(IDS), 0, 0)


# --- the command -----------------------------------------------------------------------------------------------------


def test_token_files_are_indexed_by_name(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / INDEX).unlink()
    write(folder / "B.bin", IDS[:3])
    write(folder / "no-suffix", IDS[3:5])
    for path in ("notes.txt", ".hidden.bin", "other.json"):
        (folder / path).write_text("{}")
    assert main(["index", "set.tokens"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "written: set.tokens/index.json"
    order = [*IDS[:3], *IDS, *IDS[3:5]]
    assert np.asarray(TokenFile.open(folder).tokens).tolist() == order
    before = (folder / INDEX).read_bytes()
    write(folder / "z.bin", IDS[:1])
    assert main(["index", "set.tokens"]) == 2
    assert "index.json: exists already; replace it with --overwrite" in capsys.readouterr().err
    assert (folder / INDEX).read_bytes() == before
    assert main(["index", "set.tokens", "--overwrite"]) == 0
    assert len(TokenFile.open(folder)) == len(order) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (shutil.rmtree(f), f.mkdir()), "holds no token file"),
        (lambda f: (f / INDEX).write_text("{}"), r"index\.json: exists, and is not the index of a token set"),
        (lambda f: (f / "b.bin.json").unlink(), r"b\.bin: is not a token file, for .*b\.bin\.json is missing"),
        (lambda f: (f / "b.bin").unlink(), r"b\.bin: is missing, though b\.bin\.json is there"),
        (lambda f: (f / "b.bin").write_bytes(b"\1\1"), r"b\.bin: has changed since it was made"),
        (lambda f: replace_shard(f, tokenizer="b"), r"b\.bin: was encoded by another tokenizer, not that of a\.bin"),
        (of_another_dtype, r"b\.bin: vocab_size is 70000, and that of a\.bin 300"),
        (lambda f: ((f / INDEX).unlink(), (f / "plan.json").touch()), "is not the plan of an interrupted encoding"),
    ],
)
def test_what_makes_no_set_is_refused(folder, capsys, change, message):
    change(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    assert main(["index", str(folder), "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_an_index_is_written_last_and_whole(folder, monkeypatch):
    (folder / INDEX).unlink()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenization.tokens.token_index.verify_tokens", fail)
    with pytest.raises(KeyboardInterrupt):
        write_index(folder)
    assert not (folder / INDEX).exists()
