"""Proves that the compiled kernels learn the merges of the plain-Python reference and of Hugging Face's trainer."""

import gzip
import random
import weakref
from itertools import accumulate
from pathlib import Path

import pytest
import tokenizers
from helpers.native import NEVER, take_kernels_from
from helpers.texts import SEED_TEXT, SPECIAL_TOKENS
from tokenizers import models, pre_tokenizers, trainers

from tokenization import END_OF_TEXT, Tokenizer, TrainingReport, native, train_bpe
from tokenization.encoding import EncodingReport
from tokenization.native import learning
from tokenization.native import table as table_module
from tokenization.native.counting import Counter
from tokenization.native.memory import PAIRS_FULL, PLACES_FULL
from tokenization.native.pairs import Trainer
from tokenization.native.table import Table

# --- training ---


def train(
    path: Path, size: int, ties: str, monkeypatch, from_bytes: int, special_tokens=(END_OF_TEXT,), threads: int = 2
):
    take_kernels_from(from_bytes, monkeypatch)
    report = TrainingReport()
    result = train_bpe(path, size, special_tokens, ties=ties, num_processes=threads, report=report)
    assert report.path.startswith("plain Python" if from_bytes else "compiled kernels")
    return result, (report.text_bytes, report.pretokens, report.unique_pretokens, report.longest_token)


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
@pytest.mark.parametrize("size", [257, 300, 3000])
def test_merges_equal_the_reference(text, tmp_path, monkeypatch, ties, size):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    expected = train(path, size, ties, monkeypatch, NEVER)
    assert train(path, size, ties, monkeypatch, 0) == expected
    assert train(path, size, ties, monkeypatch, 0, threads=1) == expected


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
def test_merges_of_a_pattern_that_no_kernel_knows(text, tmp_path, monkeypatch, ties):
    """`regex` splits, the kernels merge; the smallest table grows, by slots and by text."""
    monkeypatch.setattr(table_module.Table.__init__, "__defaults__", (1 << 11, 1 << 8))
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    results = []
    for from_bytes in (NEVER, 0):
        take_kernels_from(from_bytes, monkeypatch)
        report = TrainingReport()
        result = train_bpe(path, 900, SPECIAL_TOKENS, pattern=r"\w+\W?|\W+", ties=ties, num_processes=1, report=report)
        results.append((result, report.pretokens, report.unique_pretokens, report.longest_token))
        assert report.path.endswith("for the merges") == (from_bytes == 0)
    assert results[0] == results[1]


@pytest.mark.parametrize("ties", ["lexicographic", "huggingface"])
def test_merges_on_random_text(tmp_path, monkeypatch, ties):
    """Few letters, many ties, runs, special tokens within."""
    source, path = random.Random(ties), tmp_path / "text.txt"
    pools = [["a"], *map(list, ["ab", "abc", "ab ", "ab \n'st", "é中a b", "-=- ", "\x00\x00a ", "abcdefghij  "])]
    pools += [[unit * length + " " for length in range(1, 40)] for unit in ("a", "ab", "-=-")]
    for _ in range(100):
        pool, length = source.choice(pools), source.choice([2, 30, 300, 3000])
        special_tokens = source.choice([(), (END_OF_TEXT,), ("ab", "b a", END_OF_TEXT)])
        path.write_text("x" + END_OF_TEXT.join("".join(source.choices(pool, k=length)) for _ in range(2)), newline="")
        monkeypatch.setattr("tokenization.native.learning.FLOOR_SHARE", source.choice([1, 128]))
        size = 259 + source.choice([0, 5, 50, 500])
        expected = train(path, size, ties, monkeypatch, NEVER, special_tokens, threads=1)
        assert train(path, size, ties, monkeypatch, 0, special_tokens, threads=1) == expected


def test_lists_that_grow(text, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    expected = train(path, 3000, "lexicographic", monkeypatch, 0)
    enlarge = Trainer.enlarge
    calls = []

    def note(trainer, status):
        calls.append(status)
        enlarge(trainer, status)

    monkeypatch.setattr(Trainer, "enlarge", note)
    monkeypatch.setattr("tokenization.native.pairs.SPARE_PLACES", 0)
    monkeypatch.setattr("tokenization.native.pairs.FIRST_PAIRS", 2000)
    assert train(path, 3000, "lexicographic", monkeypatch, 0) == expected
    assert {PLACES_FULL, PAIRS_FULL} == set(calls)


def test_counts_of_threads_are_added_in_linear_time(monkeypatch):
    """In the order of a table's slots, into one that grows by doubling, each would be in the way of all before it."""
    copy, copies = Table.copy, []
    monkeypatch.setattr(Table, "copy", lambda table, *sizes: copies.append(sizes) or copy(table, *sizes))
    counts, counter = {b"%d" % number: number for number in range(1, 40_000)}, Counter()
    table = native.table_of(counts)
    copies.clear()
    counter.add(table)
    assert len(copies) == 1
    texts, rows = native.rows_of(counter.table)
    lengths, numbers = rows.T.tolist()
    stops = list(accumulate(lengths))
    found = {texts[stop - length : stop].tobytes(): n for stop, length, n in zip(stops, lengths, numbers, strict=True)}
    assert found == counts


def test_the_counts_take_no_memory_while_merges_are_learnt(monkeypatch):
    table = native.table_of({b"abc" * length: length for length in range(1, 9)})
    slots, arena = weakref.ref(table.slots), weakref.ref(table.arena)
    run_trainer = learning.run_trainer

    def run(*arguments):
        assert slots() is None
        assert arena() is None
        return run_trainer(*arguments)

    monkeypatch.setattr(learning, "run_trainer", run)
    tokens, _ = native.learn_merges(table, [bytes([value]) for value in range(256)], 258, None, progress=False)
    assert tokens[256:] == [b"bc", b"abc"]


def test_merges_of_huggingface(text, tmp_path, always_compiled):
    path = tmp_path / "text.txt"
    path.write_text(text, newline="")
    vocab, merges = train_bpe(path, 1200, [END_OF_TEXT], ties="huggingface")
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1199, initial_alphabet=alphabet, show_progress=False)
    other.train_from_iterator(text.split(END_OF_TEXT), trainer)
    other.model.save(str(tmp_path))
    Tokenizer(vocab, merges, [END_OF_TEXT]).save(tmp_path / "ours")
    theirs, ours = (
        path.read_text().split("\n")[1:] for path in (tmp_path / "merges.txt", tmp_path / "ours/merges.txt")
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_the_size_of_the_text_decides_and_not_that_of_the_file(tmp_path, monkeypatch, name):
    data = SEED_TEXT.encode() * 50
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for from_bytes, path in ((len(data), "compiled kernels"), (len(data) + 1, "plain Python")):
        take_kernels_from(from_bytes, monkeypatch)
        training, encoding = TrainingReport(), EncodingReport()
        tokenizer = Tokenizer(*train_bpe(tmp_path / name, 300, report=training))
        tokenizer.encode_files([tmp_path / name], tmp_path / f"{from_bytes}.bin", 1, report=encoding)
        assert training.path.startswith(path)
        assert encoding.path == training.path


def test_merges_that_run_out_are_learnt_once(tmp_path, monkeypatch):
    begin, floors = learning.begin_training, []

    def watched(trainer, vocab, tie_order, floor):
        floors.append(floor)
        begin(trainer, vocab, tie_order, floor)

    monkeypatch.setattr(learning, "begin_training", watched)
    (tmp_path / "text.txt").write_text("once upon a time " * 10)
    (vocab, _), _ = train(tmp_path / "text.txt", 50_000, "lexicographic", monkeypatch, 0)
    assert len(vocab) < 50_000
    assert floors == [1]
