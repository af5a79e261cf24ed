"""Proves that a document's digest depends on the document alone, and that shared documents are counted as by hand."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from tokenization import END_OF_TEXT
from tokenization.tokens import document_digests
from tokenization.tokens.document_digests import count_shared, digests_path, read_digests
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_index import write_index

SEPARATOR = 299


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Gives short documents digests, too, so that those of the tests may be short."""
    monkeypatch.setattr(document_digests, "SHORTEST", 1)


def write(path: Path, documents: list[list[int]], parts: int = 1, vocab_size: int = 300) -> Path:
    """Writes documents, each but the last closed by SEPARATOR, in so many parts."""
    ids = [token for document in documents for token in (*document, SEPARATOR)][:-1]
    path.parent.mkdir(exist_ok=True)
    with TokenFileWriter(path, vocab_size, "tokenizer", SEPARATOR) as writer:
        for part in np.array_split(np.array(ids), parts):
            writer.write(part)
    return path


def random_documents(seed: int, count: int, longest: int = 30) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("vocab_size", [300, 70_000])
@pytest.mark.parametrize(("head", "longest"), [(4096, 8), (4096, 30), (16, 60)])
def test_a_digest_depends_on_the_document_alone(tmp_path, monkeypatch, vocab_size, head, longest):
    monkeypatch.setattr(document_digests, "HEAD", head)
    documents = random_documents(longest, 400, longest)
    (once,) = read_digests(write(tmp_path / "1.bin", documents, 1, vocab_size))
    for parts in (2, 7, 100, 1000):
        (again,) = read_digests(write(tmp_path / f"{parts}.bin", documents, parts, vocab_size))
        assert again.tolist() == once.tolist()
    known = dict(zip(map(tuple, documents), once.tolist(), strict=True))
    assert [known[tuple(document)] for document in documents] == once.tolist()
    if longest == 8:  # every token of theirs is a sample
        assert len(set(known.values())) == len(known) < 400


def test_empty_documents_have_none(tmp_path):
    documents = [[], [1, 2], [], [], [3], [1, 2], []]
    for parts in (1, 3, 8):
        (digests,) = read_digests(write(tmp_path / "t.bin", documents, parts))
        assert len(digests) == 3
        assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_short_documents_have_none(parts, monkeypatch, tmp_path):
    """Two files that end with a line break share no document."""
    monkeypatch.setattr(document_digests, "SHORTEST", 8)
    train = write(tmp_path / "train.bin", [[1], list(range(7)), list(range(8)), [5]], parts)
    valid = write(tmp_path / "valid.bin", [list(range(9)), list(range(7)), [1], [5]], parts)
    assert [len(digests) for path in (train, valid) for digests in read_digests(path)] == [1, 1]
    assert count_shared([train], valid) == (0, 1)
    assert read_digests(write(tmp_path / "short.bin", [[1], [2]], 2)) == []


@pytest.mark.parametrize("seed", range(3))
def test_shared_documents_are_those_counted_by_hand(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(document_digests, "AT_ONCE", 7)
    train, valid = random_documents(seed, 60, 6), random_documents(seed + 10, 40, 6)
    expected = sum(document in train for document in valid)
    assert 0 < expected < 40
    one, other = write(tmp_path / "one.bin", train), write(tmp_path / "valid.bin", valid)
    assert count_shared([one], other) == (expected, 40)
    shards = [train[:20], train[20:25], train[25:]]
    for number, part in enumerate(shards):
        write(tmp_path / "train.tokens" / f"{number}.bin", part)
    write_index(tmp_path / "train.tokens")
    assert count_shared([tmp_path / "train.tokens"], other) == (expected, 40)
    assert count_shared([tmp_path / "train.tokens" / f"{number}.bin" for number in range(3)], other) == (expected, 40)
    assert count_shared([other], tmp_path / "train.tokens") == (sum(document in valid for document in train), 60)


def test_text_and_records_have_the_same_digests(tmp_path, small):
    stories = ["The cat. ", "It rained.", "The cat. ", "Tom was happy"]
    (tmp_path / "t.txt").write_text(END_OF_TEXT.join(stories))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    for name in ("txt", "jsonl"):
        small.encode_files([tmp_path / f"t.{name}"], tmp_path / f"{name}.bin", num_processes=1)
    assert digests_path(tmp_path / "txt.bin").read_bytes() == digests_path(tmp_path / "jsonl.bin").read_bytes()
    assert count_shared([tmp_path / "txt.bin"], tmp_path / "jsonl.bin") == (4, 4)
    assert len(np.unique(read_digests(tmp_path / "txt.bin")[0])) == 3


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "of other ids", "folder", "no token file"])
def test_without_digests_of_these_ids_nothing_is_said(tmp_path, damage):
    train, valid = (write(tmp_path / name, [[1, 2], [3]]) for name in ("train.bin", "valid.bin"))
    assert count_shared([train], valid) == (2, 2)
    path = digests_path(train)
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.touch()
    elif damage == "of other ids":
        path.write_bytes(digests_path(write(tmp_path / "other.bin", [[1, 2], [4]])).read_bytes())
    elif damage == "folder":
        path.mkdir()
    elif damage == "no token file":
        train.with_name("train.bin.json").write_text("{}")
    assert count_shared([train], valid)[0] == 0
    assert count_shared([tmp_path / "none.bin", tmp_path], valid)[0] == 0


def test_a_file_without_a_separator_has_no_digests(tmp_path):
    with TokenFileWriter(tmp_path / "t.bin", 300, "tokenizer") as writer:
        writer.write(np.arange(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.bin", "t.bin.json"]
