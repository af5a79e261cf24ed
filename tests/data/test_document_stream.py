"""Proves that each pass is all documents, whole and in an order of its own, cut into windows of which each comes once;
that a batch follows from its number alone, for ever; and that what cannot be read so is refused."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.events import read_events
from helpers.runs import SETTINGS, same

from lm.data import document_stream
from lm.data.datamodule import TokenDataModule
from lm.data.document_stream import DocumentStream, permute
from lm.data.windows import DocumentWindows
from lm.runs.checkpoint import load_checkpoint
from tokenization import InputError, TokenFile, Tokenizer
from tokenization.tokens.token_file import TokenFileWriter
from tokenization.tokens.token_index import write_index

END, CONTEXT = 0, 5


def texts(count: int, seed: int = 0, last_is_cut: bool = False) -> tuple[list[list[int]], np.ndarray]:
    """Documents of 1 to 14 tokens, of which no token but the end comes twice, and the tokens of their file."""
    lengths = np.random.RandomState(seed).randint(0, 14, count)
    fresh = itertools.count(1)
    documents = [[*itertools.islice(fresh, int(length)), END] for length in lengths]
    if last_is_cut:
        documents[-1][-1] = next(fresh)
    return documents, np.array([token for document in documents for token in document], np.uint16)


def stream_of(tokens: np.ndarray, **changes) -> DocumentStream:
    return DocumentStream(**{"tokens": tokens, "end_id": END, "context_length": CONTEXT, "seed": 3} | changes)


def documents_of(tokens: list[int], ends: set[int]) -> list[tuple[int, ...]]:
    """Cuts a list behind each of the ends."""
    places = [0, *(place + 1 for place, token in enumerate(tokens) if token in ends)]
    return [tuple(tokens[a:b]) for a, b in itertools.pairwise([*places, len(tokens)]) if a < b]


def joined_pass(stream: DocumentStream, number: int) -> list[int]:
    """Puts the windows of a pass together: each is the one that begins with the last token of another, by content."""
    count = stream.windows
    rows = stream.read(np.arange(number * count, (number + 1) * count)).tolist()
    order = permute(np.arange(count), count, (stream.seed, document_stream.WINDOWS, number)).tolist()
    assert sorted(order) == list(range(count))
    placed = dict(zip(order, rows, strict=True))
    for place in range(count - 1):
        assert placed[place][-1] == placed[place + 1][0]
    return [token for place in range(count) for token in placed[place][:-1]] + placed[count - 1][-1:]


@pytest.mark.parametrize("last_is_cut", [False, True])
@pytest.mark.parametrize("count", [3, 40])
def test_a_pass_is_all_documents_in_an_order_of_its_own(count, last_is_cut):
    documents, tokens = texts(count, last_is_cut=last_is_cut)
    stream, orders = stream_of(tokens), []
    assert stream.windows == (len(tokens) - 1) // CONTEXT
    for number in (0, 1, 5):
        seen = joined_pass(stream, number)
        ends = {END, documents[-1][-1]}
        found = documents_of(seen, ends)
        whole, cut = found[:-1], found[-1]  # what is left out is the end of the pass, less than a window
        assert 0 <= len(tokens) - len(seen) < CONTEXT
        left = Counter(map(tuple, documents)) - Counter(whole)
        assert sum(left.values()) == count - len(whole)
        assert any(document[: len(cut)] == cut for document in left)
        orders.append(whole)
    assert count < 10 or len(set(map(tuple, orders))) == 3
    assert count < 10 or orders[0] != list(map(tuple, documents))[: len(orders[0])]


def test_a_window_is_a_function_of_seed_and_number(monkeypatch):
    _, tokens = texts(30)
    whole = stream_of(tokens).read(np.arange(200)).tolist()  # several passes
    again = stream_of(tokens)
    for number in (150, 3, 199, 60, 3):
        assert again.read(np.array([number])).tolist() == [whole[number]]
    assert stream_of(tokens, seed=4).read(np.arange(200)).tolist() != whole
    monkeypatch.setattr(document_stream, "CHUNK", 7)  # tokens and documents that are found a few at a time
    assert stream_of(tokens).read(np.arange(200)).tolist() == whole
    batches = DocumentWindows(stream_of(tokens), batch_size=8, num_batches=20, first_window=16)
    inputs, targets = batches[3]
    assert len(batches) == 20
    assert (inputs.dtype, inputs.tolist()) == (torch.int64, [row[:-1] for row in whole[40:48]])
    assert targets.tolist() == [row[1:] for row in whole[40:48]]


def test_the_windows_are_the_same_for_ever():
    _, tokens = texts(30)
    assert stream_of(tokens).read(np.array([0, 77])).tolist() == [
        [146, 147, 148, 149, 150, 0],
        [154, 155, 156, 157, 158, 159],
    ]


@pytest.mark.parametrize("tokens", [np.full(12, END, np.uint16), np.arange(1, 12).astype(np.uint16)])
def test_empty_documents_and_a_single_one(tokens):
    stream = stream_of(tokens)
    assert stream.documents == (12 if tokens[0] == END else 1)
    seen = joined_pass(stream, 2)
    assert seen == tokens[: len(seen)].tolist()


def test_a_permutation_takes_each_number_once_and_all_places_alike():
    for size in (*range(1, 70), 255, 256, 257, 1000):
        assert sorted(permute(np.arange(size), size, (0, size)).tolist()) == list(range(size))
    places = np.array([permute(np.arange(10), 10, (seed,)) for seed in range(4000)])
    for row in places.T:  # chi-square with 9 degrees of freedom is below 34 but once in 10,000
        counts = np.bincount(row, minlength=10)
        assert ((counts - 400) ** 2 / 400).sum() < 34
    following = (places[:, 1:] - places[:, :-1] == 1).mean()  # 9 of 90 pairs of places
    assert following == pytest.approx(0.1, abs=0.01)
    assert len({int(permute(np.array([5]), 1 << 40, (seed,))[0]) for seed in range(50)}) == 50


# --- the data module and a run ---------------------------------------------------------------------------------------


def module(token_data, **changes) -> TokenDataModule:
    settings = {"train_path": str(token_data / "train.bin"), "val_path": str(token_data / "valid.bin")}
    settings |= {"tokenizer": str(token_data / "tok"), "context_length": 16, "vocab_size": 320, "batch_size": 4}
    return TokenDataModule(**settings | {"windows": "documents"} | changes)


def test_a_token_set_gives_the_batches_of_one_file(token_data, tmp_path):
    file = TokenFile.open(token_data / "train.bin")
    about, end_id = file.description, Tokenizer.load(token_data / "tok").end_of_text_id
    for number, part in enumerate(np.array_split(file.tokens, 5)):
        with TokenFileWriter(tmp_path / f"{number}.bin", about.vocab_size, about.tokenizer_sha256, end_id) as writer:
            writer.write(part)
    write_index(tmp_path)
    one, several = module(token_data), module(token_data, train_path=str(tmp_path))
    for data in (one, several):
        data.setup("fit")
    passes = range(len(file.tokens) // 16 // 4 * 2)
    assert all(map(torch.equal, one.training_batches(passes), several.training_batches(passes)))


def test_what_cannot_be_read_by_documents_is_refused(token_data, tmp_path):
    mixed = f"{token_data / 'train.bin'}:1,{token_data / 'valid.bin'}:2"
    with pytest.raises(ValueError, match=r"windows documents reads one source, and data\.train_path names 2"):
        module(token_data, train_path=mixed)
    with pytest.raises(ValueError, match="windows is 'sorted'; it can be random, documents"):
        module(token_data, windows="sorted")
    plain = Tokenizer({number: bytes([number]) for number in range(256)}, [])
    plain.save(tmp_path / "tok")
    (tmp_path / "text.txt").write_text("no end\n" * 30)
    plain.encode_files([tmp_path / "text.txt"], tmp_path / "text.bin", num_processes=1)
    paths = {name: str(tmp_path / "text.bin") for name in ("train_path", "val_path")}
    with pytest.raises(
        InputError, match=r"tok: has no <\|endoftext\|>, by which `data.windows documents` finds documents"
    ):
        module(token_data, **paths, tokenizer=str(tmp_path / "tok")).setup("fit")


def test_a_resumed_run_is_the_uninterrupted_one(lm, fit_arguments, tmp_path):
    settings = (*SETTINGS, "--data.windows=documents", "--model.warmup_steps=0")
    settings += ("--model.min_learning_rate=0.01", "--model.learning_rate=0.01")
    assert lm(*fit_arguments(tmp_path / "whole", *settings)).code == 0
    cut = tmp_path / "cut"
    assert lm(*fit_arguments(cut, *settings, "--trainer.max_steps=6")).code == 0
    resumed = ("fit", "-c", cut / "config.yaml", "--ckpt_path", cut / "last.ckpt")
    assert lm(*resumed, SETTINGS[0]).code == 0
    a, b = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "cut"))
    assert same(a["state_dict"], b["state_dict"])
    changed = lm(*resumed, "--trainer.max_steps=15", "--data.windows=random")
    assert "from here on  data.windows: documents -> random" in changed.out


def test_another_batch_size_reads_on_where_the_batches_before_ended(lm, fit_arguments, tmp_path, monkeypatch):
    run, read, original = tmp_path / "run", set(), DocumentStream.read
    monkeypatch.setattr(DocumentStream, "read", lambda self, at: read.update(at.tolist()) or original(self, at))
    settings = ["--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1", "--data.windows=documents"]
    for steps, size, windows in ((4, 2, range(8)), (6, 4, range(8, 16)), (7, 1, range(16, 17))):
        read.clear()
        resume = ["--ckpt_path=last"] if steps > 4 else []
        result = lm(
            *fit_arguments(run, *settings, *resume, f"--trainer.max_steps={steps}", f"--data.batch_size={size}")
        )
        assert (result.code, result.err) == (0, "")
        assert read == set(windows)
    seen = [tokens for _, tokens in read_events(run)[0]["train/tokens_seen"]]
    assert seen == [16 * windows for windows in (2, 4, 6, 8, 12, 16, 17)]
