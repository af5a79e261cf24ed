"""How well a model predicts a text: loss in nats a token, perplexity, bits per byte (handout, section 4).

a whole file      windows of context_length tokens side by side, as `lm validate` takes them, to the last token
its documents     each by itself, as if the model had read <|endoftext|> and nothing else before; that token at its
                  end is not asked for. Of a document longer than the context the last window begins earlier, and
                  is full; lm-eval's rolling log-likelihood is the same.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.checkpoint import find_checkpoint, load_model, load_tokenizer
from lm.devices import add_device, find_device
from lm.fast import choose_attention
from lm.loss import bits_per_byte, log_softmax, perplexity
from lm.machine import keep_large_blocks, use_granted_cores
from lm.strict_json import to_json
from lm.transformer import TransformerLM
from tokenization import END_OF_TEXT, InputError, Tokenizer
from tokenization.commands import ArgumentParser
from tokenization.token_file import TokenFile

LOGITS = 1 << 25  # at once, at most: 128 MiB


class Window(NamedTuple):
    """The model reads token_ids but the last; the last num_targets of them are predictions that count."""

    document: int
    token_ids: np.ndarray
    num_targets: int


def file_windows(tokens: np.ndarray, context_length: int) -> Iterator[Window]:
    for start in range(0, len(tokens) - 1, context_length):
        window = tokens[start : start + context_length + 1]
        yield Window(0, window, len(window) - 1)


def document_windows(documents: Iterable[np.ndarray], context_length: int, end_id: int) -> Iterator[Window]:
    for number, document in enumerate(documents):
        tokens = np.concatenate([[end_id], document]).astype(np.int64)
        done = 1
        while done < len(tokens):
            end = min(done + context_length, len(tokens))
            yield Window(number, tokens[max(0, end - context_length - 1) : end], end - done)
            done = end


def split_documents(tokens: np.ndarray, end_id: int) -> list[np.ndarray]:
    """Between the <|endoftext|>; where two of them stand side by side there is none."""
    ends = np.flatnonzero(tokens == end_id)
    starts = np.concatenate([[0], ends + 1])
    pairs = zip(starts, np.concatenate([ends, [len(tokens)]]), strict=True)
    return [tokens[start:end] for start, end in pairs if start < end]


@torch.inference_mode()
def token_losses(model: TransformerLM, windows: Sequence[Window]) -> list[Tensor]:
    """-log p of the targets of each window, (num_targets,) each, on the CPU."""
    longest = max(len(window.token_ids) for window in windows)
    batch = torch.zeros(len(windows), longest, dtype=torch.long)  # what is behind a window's end changes nothing in it
    for row, window in zip(batch, windows, strict=True):
        row[: len(window.token_ids)] = torch.from_numpy(window.token_ids.astype(np.int64))
    batch = batch.to(model.lm_head.weight.device)
    losses = -log_softmax(model(batch[:, :-1])).gather(-1, batch[:, 1:, None])[..., 0].cpu()
    ends = [len(window.token_ids) - 1 for window in windows]
    return [row[end - window.num_targets : end] for row, end, window in zip(losses, ends, windows, strict=True)]


def total_losses(model: TransformerLM, windows: Iterable[Window], num_targets: int, documents: int) -> np.ndarray:
    """The nats of each document, (documents,); num_targets: in all, for the progress bar."""
    rows = max(1, LOGITS // (model.context_length * model.vocab_size))
    totals = np.zeros(documents)
    waiting: list[Window] = []

    def count() -> None:
        for window, losses in zip(waiting, token_losses(model, waiting), strict=True):
            totals[window.document] += losses.double().sum().item()
            bar.update(window.num_targets)
        waiting.clear()

    with tqdm(total=num_targets, desc="testing", unit=" tokens", unit_scale=True, disable=None, delay=2) as bar:
        for window in windows:
            waiting.append(window)
            if len(waiting) == rows:
                count()
        if waiting:
            count()
    return totals


@dataclass(frozen=True)
class Score:
    """nats: of all predictions together, which are of so many tokens and bytes."""

    nats: float
    tokens: int
    bytes: int

    def record(self) -> dict[str, Any]:
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": bits_per_byte(loss, self.tokens, self.bytes) if self.bytes else math.nan,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


def score_file(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile) -> Score:
    """All but the first token, of which there is nothing to predict it from."""
    num_targets = len(file) - 1
    nats = total_losses(model, file_windows(file.tokens, model.context_length), num_targets, 1)[0]
    return Score(float(nats), num_targets, file.description.bytes - len(tokenizer.vocab[int(file.tokens[0])]))


def score_documents(
    model: TransformerLM, tokenizer: Tokenizer, documents: Sequence[np.ndarray], end_id: int
) -> list[Score]:
    sizes = np.array([len(tokenizer.vocab.get(token_id, b"")) for token_id in range(tokenizer.vocab_size)])
    windows = document_windows(documents, model.context_length, end_id)
    nats = total_losses(model, windows, sum(map(len, documents)), len(documents))
    return [
        Score(float(total), len(document), int(sizes[document].sum()))
        for total, document in zip(nats, documents, strict=True)
    ]


# --- the command -----------------------------------------------------------------------------------------------------

HELP = """How well a trained model predicts a text: loss, perplexity and bits per byte.

  lm test checkpoints/demo data/demo/valid.bin
  lm test checkpoints/demo data/demo/valid.bin --per-document
  lm test checkpoints/demo data/demo/valid.bin --per-document --json > documents.jsonl

The file is one that `tokenization encode` made with the run's tokenizer. The model computes in float32, whatever it was
trained in. Bits per byte can be compared across tokenizers, loss and perplexity cannot. A file as a whole is read in
windows side by side, whatever documents are in them; --per-document takes each document by itself, as lm-eval does.
"""


def run_test(argv: list[str]) -> None:
    parser = ArgumentParser(prog="lm test", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder, of which best.ckpt is taken, or a checkpoint")
    parser.add_argument("file", help="a token file")
    parser.add_argument("--per-document", action="store_true", help="each document by itself, and all together")
    parser.add_argument("--json", action="store_true", help="an object; of documents one a line, and then all together")
    add_device(parser)
    args = parser.parse_args(argv)
    device = find_device(args.device)
    use_granted_cores()
    keep_large_blocks()
    checkpoint = find_checkpoint(args.run)
    model = load_model(checkpoint, finite=False).to(device)
    tokenizer = load_tokenizer(checkpoint, model.vocab_size)
    model.speed_up(choose_attention(device.type, model.context_length))
    file = TokenFile.open(args.file)
    if file.description.tokenizer_sha256 != tokenizer.digest:
        raise InputError(
            f"{file.path}: was made by another tokenizer than {checkpoint} knows; encode the text with"
            f" {checkpoint.parent / 'tokenizer'}"
        )
    if len(file) < 2:
        raise InputError(f"{file.path}: has one token, and none to be predicted from it; take more text")
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if args.per_document:
        test_documents(model, tokenizer, file, args.json)
        return
    print_total({"file": args.file}, score_file(model, tokenizer, file), args.json)


def test_documents(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile, as_json: bool) -> None:
    if tokenizer.end_of_text_id is None:
        raise InputError(f"--per-document: the tokenizer has no {END_OF_TEXT}, so nothing tells documents apart")
    documents = split_documents(np.asarray(file.tokens), tokenizer.end_of_text_id)
    if not documents:
        raise InputError(f"{file.path}: has no document, but {END_OF_TEXT} alone")
    scores = score_documents(model, tokenizer, documents, tokenizer.end_of_text_id)
    if not as_json:
        print("document     loss  bits/byte   tokens     bytes  begins")
    for number, (score, document) in enumerate(zip(scores, documents, strict=True), start=1):
        record, beginning = score.record(), tokenizer.decode(document[:20].tolist())
        if as_json:
            print(to_json({"document": number} | record | {"begins": beginning}, ensure_ascii=False))
        else:
            shown = f"{record['loss']:>8.4f} {record['bits_per_byte']:>10.4f} {score.tokens:>8,} {score.bytes:>9,}"
            print(f"{number:>8} {shown}  {' '.join(beginning.split())[:40]}")
    total = Score(*(sum(getattr(score, name) for score in scores) for name in ("nats", "tokens", "bytes")))
    print_total({"file": str(file.path), "documents": len(scores)}, total, as_json)


def print_total(about: dict[str, Any], score: Score, as_json: bool) -> None:
    """Raises InputError, when all is printed, where the loss is not finite."""
    record = score.record()
    documents = f"{about['documents']:,} documents, " if "documents" in about else ""
    print(
        to_json(about | record)
        if as_json
        else f"{about['file']}: {documents}{score.tokens:,} tokens predicted, {score.bytes:,} bytes\n"
        f"loss           {record['loss']:.4f} nats a token\n"
        f"perplexity     {record['perplexity']:.3f}\n"
        f"bits per byte  {record['bits_per_byte']:.4f}"
    )
    if not math.isfinite(record["loss"]):
        raise InputError(f"the loss is {record['loss']}, which is no result; `lm verify` looks at the weights")
