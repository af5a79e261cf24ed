"""Proves that documents are drawn evenly from the whole text, whole, and again for the same seed."""

from collections import Counter
from pathlib import Path

import pytest

from tokenization import END_OF_TEXT, InputError, samples
from tokenization.samples import beginning, draw_documents
from tokenization.text import corpus, reading


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(documents: list[str], name: str = "text.txt") -> None:
    Path(name).write_text(END_OF_TEXT.join(documents), encoding="utf-8", newline="")


@pytest.mark.parametrize("block", [1, 3, 13, 1000])
def test_documents_are_what_stands_between_the_separators_wherever_reading_stops(monkeypatch, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    monkeypatch.setattr(reading, "HEAD_BYTES", block)
    wanted = ["one\n", " é漢字😀 ", "<|endoftext", "last"]
    write(["", wanted[0], " \n\t", *wanted[1:]])
    drawn = draw_documents("text.txt", 10, seed=0)
    assert (drawn.texts, drawn.found) == (wanted, 4)
    assert drawn.num_bytes == sum(len(text.encode()) for text in wanted)


def test_the_end_of_a_file_ends_a_document():
    Path("texts").mkdir()
    for name in "ab":
        write([f"{name}1", f"{name}2"], f"texts/{name}.txt")
    assert draw_documents("texts", 10, seed=0).texts == ["a1", "a2", "b1", "b2"]
    assert draw_documents("texts/b*", 10, seed=0).texts == ["b1", "b2"]


def test_every_document_is_drawn_as_often_as_any_other():
    wanted = [f"document {number}" for number in range(20)]
    write(wanted)
    counts: Counter[str] = Counter()
    for seed in range(500):
        drawn = draw_documents("text.txt", 5, seed)
        assert drawn.texts == sorted(set(drawn.texts), key=wanted.index)  # none twice, in their order
        assert (len(drawn.texts), drawn.found) == (5, 20)
        counts.update(drawn.texts)
    assert counts.keys() == set(wanted)
    assert all(80 < count < 170 for count in counts.values())  # 125 expected, 9.7 the standard deviation


def test_the_same_seed_draws_the_same_documents():
    write([f"document {number}" for number in range(1000)])
    first, again, other = (draw_documents("text.txt", 10, seed).texts for seed in (1, 1, 2))
    assert first == again != other


def test_what_cannot_be_sampled_is_refused(monkeypatch):
    write([" ", "\n"])
    with pytest.raises(InputError, match=r"^text\.txt: has no document that is not blank; there is nothing to"):
        draw_documents("text.txt", 10, seed=0)
    Path("empty.txt").touch()
    with pytest.raises(InputError, match=r"^empty\.txt: is empty; there is nothing to compare"):
        beginning("empty.txt", 10)
    monkeypatch.setattr(samples, "MAX_DOCUMENT", 10)
    write(["short", "a long document"])
    with pytest.raises(InputError, match=r"^text\.txt: has a document of more than 10 char.*<\|endoftext\|> between"):
        draw_documents("text.txt", 10, seed=0)


def test_the_beginning_is_as_long_as_asked_and_may_span_files():
    write(["abc"], "a.txt")
    write(["defgh"], "b.txt")
    assert beginning("*.txt", 5).texts == ["abcde"]
    assert beginning("*.txt", 500).texts == ["abcdefgh"]


def test_the_beginning_is_counted_in_bytes(tmp_path):
    path = tmp_path / "zh.txt"
    path.write_text("中文文本" * 100, encoding="utf-8")
    for size, characters in ((0, 1), (1, 1), (3, 1), (8, 2), (300, 100), (10_000, 400)):
        (text,) = beginning(str(path), size).texts
        assert text == ("中文文本" * 100)[:characters]
