"""Proves that `lm test` sums what torch's cross-entropy says of every token, of a whole file and of each document by
lm-eval's windows, and that a file of another tokenizer, or without anything to predict, is refused."""

import gzip
import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers.models import save_run
from torch.nn import functional

from lm.evaluation import document_windows, file_windows, score_documents, split_documents, total_metrics
from lm.model.transformer import TransformerLM
from tokenization import Tokenizer
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_index import write_index

END = 7


def rolling_windows(token_ids: list[int], max_seq_len: int) -> list[tuple[list[int], list[int]]]:
    """lm-eval's loglikelihood_rolling, as its paper and documentation describe it: (read, predicted) pairs.

    The first window predicts from the prefix token; the others predict max_seq_len tokens each; the last reads as many
    tokens as fit before what is left to predict.
    """
    pairs = [([END, *token_ids[: max_seq_len - 1]], token_ids[:max_seq_len])]
    done = min(max_seq_len, len(token_ids))
    pairs[0] = (pairs[0][0][:done], pairs[0][1])
    while done < len(token_ids):
        count = min(len(token_ids) - done, max_seq_len)
        end = done + count
        pairs.append((token_ids[end - max_seq_len - 1 : end - 1], token_ids[end - count : end]))
        done = end
    return pairs


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 30])
def test_the_windows_of_a_document_are_those_of_lm_eval(length):
    token_ids = torch.randint(10, 50, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    windows = list(document_windows([np.array(token_ids, np.uint16)], 8, END))
    expected = rolling_windows(token_ids, 8)
    assert len(windows) == len(expected)
    for window, (read, predicted) in zip(windows, expected, strict=True):
        assert window.token_ids[:-1].tolist() == read
        assert window.token_ids[-window.num_targets :].tolist() == predicted


def test_the_windows_of_a_file_predict_every_token_but_the_first_once():
    tokens = np.arange(100, 130, dtype=np.uint16)
    windows = list(file_windows(tokens, 8))
    assert [window.token_ids[-window.num_targets :].tolist() for window in windows] == [
        list(range(101, 109)),
        list(range(109, 117)),
        list(range(117, 125)),
        list(range(125, 130)),
    ]
    assert all(len(window.token_ids) == window.num_targets + 1 for window in windows)


def test_documents_are_between_the_ends():
    for tokens, expected in {
        (1, 2, END, 3): [[1, 2], [3]],
        (END, 1, END, END, 2, 3, END): [[1], [2, 3]],
        (1,): [[1]],
        (END, END): [],
    }.items():
        assert [document.tolist() for document in split_documents(np.array(tokens), END)] == expected


def test_losses_are_those_of_torch_whatever_the_batch(monkeypatch):
    torch.manual_seed(0)
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    documents = [np.random.default_rng(i).integers(0, 50, length) for i, length in enumerate((1, 20, 8, 3, 33))]
    expected = [
        sum(
            functional.cross_entropy(model(torch.tensor(read))[-len(target) :], torch.tensor(target), reduction="sum")
            for read, target in rolling_windows(document.tolist(), 8)
        ).item()
        for document in documents
    ]
    for logits in (1, 3 * 8 * 50, 1 << 20):
        monkeypatch.setattr("lm.evaluation.LOGITS", logits)
        found = total_metrics(model, document_windows(documents, 8, END), sum(map(len, documents)), len(documents))
        assert found["loss"].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def tested(tmp_path_factory, token_data):
    folder = tmp_path_factory.mktemp("tested")
    return folder / "run", save_run(folder / "run", token_data)


def test_a_file(tested, lm, token_data):
    run, model = tested
    path = token_data / "valid.bin"
    result = lm("test", run, path, "--json")
    assert (result.code, result.err) == (0, "")
    found, file = json.loads(result.out), TokenFile.open(path)
    tokens = torch.from_numpy(file.tokens.astype(np.int64))
    pieces = [tokens[start : start + 33] for start in range(0, len(tokens) - 1, 32)]
    nats = sum(functional.cross_entropy(model(piece[:-1]), piece[1:], reduction="sum").item() for piece in pieces)
    assert found["tokens"] == len(tokens) - 1
    assert found["loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    text = (token_data / "valid.txt").read_bytes()
    assert found["bytes"] == len(text) - len(Tokenizer.load(token_data / "tok").vocab[int(file.tokens[0])])
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / found["bytes"], rel=1e-5)
    shown = lm("test", run, path)
    assert shown.code == 0
    assert f"bits per byte  {found['bits_per_byte']:.4f}" in shown.out


def test_documents(tested, lm, token_data):
    run, model = tested
    path = token_data / "valid.bin"
    result = lm("test", run, path, "--per-document", "--json")
    assert (result.code, result.err) == (0, "")
    *documents, total = map(json.loads, result.out.splitlines())
    texts = (token_data / "valid.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    tokenizer = Tokenizer.load(token_data / "tok")
    assert [document["bytes"] for document in documents] == [len(text.encode()) for text in texts]
    assert all(text.startswith(document["begins"]) for text, document in zip(texts, documents, strict=True))
    assert total["documents"] == len(texts)
    ids = [np.array(tokenizer.encode(text)) for text in texts]
    scores = score_documents(model, tokenizer, ids, tokenizer.end_of_text_id)
    losses = [score.record()["loss"] for score in scores]
    assert [document["loss"] for document in documents] == pytest.approx(losses, rel=1e-5)
    nats = sum(score.totals["loss"] for score in scores)
    assert total["bits_per_byte"] == pytest.approx(
        nats / math.log(2) / sum(document["bytes"] for document in documents)
    )
    assert total["loss"] == pytest.approx(nats / sum(map(len, ids)))
    shown = lm("test", run, path, "--per-document")
    assert len(shown.out.splitlines()) == 1 + len(texts) + 4


@pytest.mark.parametrize("more", [[], ["--per-document"]])
def test_a_text_gives_what_its_token_file_gives(tested, lm, token_data, tmp_path, monkeypatch, more):
    """As text, as a folder, as compressed JSON Lines; and nothing is left of the tokens in between."""
    run, _ = tested
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    text = (token_data / "valid.txt").read_text(encoding="utf-8")
    records = "".join(json.dumps({"body": document}) + "\n" for document in text.split("<|endoftext|>"))
    (tmp_path / "valid.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    expected = lm("test", run, token_data / "valid.bin", "--json", *more).out.splitlines()
    for arguments in ([token_data / "valid.txt"], [tmp_path / "valid.jsonl.gz", "--text-field", "body"]):
        result = lm("test", run, *arguments, "--json", *more)
        assert (result.code, result.err) == (0, "")
        lines = result.out.splitlines()
        assert lines[:-1] == expected[:-1]
        assert json.loads(lines[-1])["loss"] == json.loads(expected[-1])["loss"]
        assert json.loads(lines[-1])["file"] == str(arguments[0])
        assert not list((tmp_path / "temporary").rglob("*.bin*"))


@pytest.mark.parametrize("more", [[], ["--per-document"]])
def test_a_token_set_gives_what_its_one_file_gives(tested, lm, token_data, tmp_path, more):
    (tmp_path / "v.tokens").mkdir()
    for suffix in ("", ".json"):
        shutil.copy(token_data / f"valid.bin{suffix}", tmp_path / "v.tokens" / f"a.bin{suffix}")
    write_index(tmp_path / "v.tokens")
    expected, found = (
        lm("test", tested[0], path, "--json", *more).out.splitlines()
        for path in (token_data / "valid.bin", f"{tmp_path}/v.tokens/")
    )
    assert found[:-1] == expected[:-1]
    assert json.loads(found[-1]) == json.loads(expected[-1]) | {"file": f"{tmp_path}/v.tokens/"}


def test_wrong_inputs(tested, lm, token_data, tmp_path):
    run, _ = tested
    other = Tokenizer({**dict(enumerate(bytes([i]) for i in range(256)))}, [])
    other.save(tmp_path / "other")
    (tmp_path / "text.txt").write_text("Tom")
    other.encode_files([tmp_path / "text.txt"], tmp_path / "other.bin", num_processes=1)
    ours = Tokenizer.load(token_data / "tok")
    for name, text in (("one", "T"), ("ends", "<|endoftext|><|endoftext|>")):
        (tmp_path / f"{name}.txt").write_text(text)
        ours.encode_files([tmp_path / f"{name}.txt"], tmp_path / f"{name}.bin", num_processes=1)
    (tmp_path / "unfinished.tokens").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 Tom")
    for arguments, words in {
        (run, tmp_path / "none.bin"): "no such token file",
        (run, tmp_path / "unfinished.tokens"): "unfinished.tokens: is not a token set: it has no index.json",
        (run, tmp_path / "other.bin"): "was encoded by another tokenizer",
        (run, tmp_path / "one.bin"): "has one token",
        (run, tmp_path / "one.txt"): "one.txt: has one token",
        (run, tmp_path / "none.txt"): "none.txt: no such file, folder or pattern",
        (run, tmp_path / "bad.jsonl"): "bad.jsonl, line 2: is not JSON",
        (run, tmp_path / "latin.txt"): "latin.txt: not UTF-8 at byte 3 (0xe9); convert the file, or use --errors r",
        (run, tmp_path / "bad.jsonl", "--text-field", "body"): "bad.jsonl, line 1: has no field 'body'",
        (run, token_data / "valid.bin", "--text-field", "body"): "valid.bin is a token file; leave it out",
        (run, token_data / "valid.bin", "--errors", "replace"): "valid.bin is a token file; leave it out",
        (run, tmp_path / "ends.txt", "--per-document"): "ends.txt: has no document",
        (run, tmp_path / "ends.bin", "--per-document"): "has no document",
        (tmp_path, token_data / "valid.bin"): "is a folder without a checkpoint",
        (run,): "the following arguments are required: file",
    }.items():
        result = lm("test", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert words in result.err
    assert lm("test", run, tmp_path / "latin.txt", "--errors", "replace").code == 0
    (tmp_path / "one.txt").write_text("a")
    assert "leaves none to predict" in lm("test", run, tmp_path / "one.txt").err
    assert lm("test", run, tmp_path / "one.txt", "--per-document").code == 0  # it follows <|endoftext|>
