"""Scores a model on a token file: loss in nats per token, perplexity, bits per byte (handout, section 4).

whole file        adjacent windows of context_length tokens, as in `lm validate`, to the last token
documents         each by itself, after <|endoftext|> and nothing else; the <|endoftext|> at its end is not predicted.
                  The last window of a document longer than the context begins earlier, so that it is full, as in
                  lm-eval's rolling log-likelihood.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.model.loss import bits_per_byte, log_softmax, perplexity
from lm.model.transformer import TransformerLM
from tokenization import Tokenizer
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_set import Tokens

LOGITS = 1 << 25  # per batch at most: 128 MiB in float32


class Window(NamedTuple):
    """A stretch of tokens: the model reads all but the last, and predictions of the last num_targets count."""

    document: int
    token_ids: np.ndarray
    num_targets: int


def file_windows(tokens: Tokens, context_length: int) -> Iterator[Window]:
    """Yields adjacent windows over a whole file, whatever documents are in them."""
    for start in range(0, len(tokens) - 1, context_length):
        window = tokens[start : start + context_length + 1]
        yield Window(0, window, len(window) - 1)


def document_windows(documents: Iterable[np.ndarray], context_length: int, end_id: int) -> Iterator[Window]:
    """Yields the windows of each document by itself. end_id: <|endoftext|>, which the model reads before each."""
    for number, document in enumerate(documents):
        tokens = np.concatenate([[end_id], document]).astype(np.int64)
        done = 1
        while done < len(tokens):
            end = min(done + context_length, len(tokens))
            yield Window(number, tokens[max(0, end - context_length - 1) : end], end - done)
            done = end


def split_documents(tokens: np.ndarray, end_id: int) -> list[np.ndarray]:
    """Returns the documents between the <|endoftext|> tokens, without empty ones."""
    ends = np.flatnonzero(tokens == end_id)
    starts = np.concatenate([[0], ends + 1])
    pairs = zip(starts, np.concatenate([ends, [len(tokens)]]), strict=True)
    return [tokens[start:end] for start, end in pairs if start < end]


@torch.inference_mode()
def token_losses(model: TransformerLM, windows: Sequence[Window]) -> list[Tensor]:
    """Returns -log p of each window's targets, a tensor (num_targets,) each, on the CPU."""
    longest = max(len(window.token_ids) for window in windows)
    batch = torch.zeros(len(windows), longest, dtype=torch.long)  # causal: padding behind a window has no effect
    for row, window in zip(batch, windows, strict=True):
        row[: len(window.token_ids)] = torch.from_numpy(window.token_ids.astype(np.int64))
    batch = batch.to(model.lm_head.weight.device)
    losses = -log_softmax(model(batch[:, :-1])).gather(-1, batch[:, 1:, None])[..., 0].cpu()
    ends = [len(window.token_ids) - 1 for window in windows]
    return [row[end - window.num_targets : end] for row, end, window in zip(losses, ends, windows, strict=True)]


def total_losses(model: TransformerLM, windows: Iterable[Window], num_targets: int, documents: int) -> np.ndarray:
    """Returns each document's total loss in nats, (documents,). num_targets: of all windows, for the progress bar."""
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


def metrics(loss: float, num_tokens: int = 0, num_bytes: int | None = None) -> dict[str, float]:
    """Returns the metrics of `lm validate` and `lm test` by name, from a mean loss in nats per token.

    num_bytes: of the text of the tokens; None, where it is unknown, leaves out bits_per_byte, and 0 makes it NaN.
    """
    found = {"loss": loss, "perplexity": perplexity(loss)}
    if num_bytes is not None:
        found["bits_per_byte"] = bits_per_byte(loss, num_tokens, num_bytes) if num_bytes else math.nan
    return found


@dataclass(frozen=True)
class Score:
    """The total loss in nats, and how many tokens and bytes were predicted."""

    nats: float
    tokens: int
    bytes: int

    def record(self) -> dict[str, Any]:
        """Returns the metrics, and the numbers of tokens and bytes."""
        found = metrics(self.nats / self.tokens, self.tokens, self.bytes)
        return {**found, "tokens": self.tokens, "bytes": self.bytes}


def total(scores: Iterable[Score]) -> Score:
    """Adds up the scores of several texts."""
    nats, tokens, num_bytes = zip(*((score.nats, score.tokens, score.bytes) for score in scores), strict=True)
    return Score(sum(nats), sum(tokens), sum(num_bytes))


def score_file(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile) -> Score:
    """Scores a whole file: every token but the first, which has no context."""
    num_targets = len(file) - 1
    nats = total_losses(model, file_windows(file.tokens, model.context_length), num_targets, 1)[0]
    first = len(tokenizer.vocab[int(file.tokens[0])])
    return Score(float(nats), num_targets, max(0, file.description.bytes - first))


def score_documents(
    model: TransformerLM, tokenizer: Tokenizer, documents: Sequence[np.ndarray], end_id: int
) -> list[Score]:
    """Scores each document by itself. end_id: <|endoftext|>."""
    sizes = np.array([len(tokenizer.vocab.get(token_id, b"")) for token_id in range(tokenizer.vocab_size)])
    windows = document_windows(documents, model.context_length, end_id)
    nats = total_losses(model, windows, sum(map(len, documents)), len(documents))
    return [
        Score(float(total), len(document), int(sizes[document].sum()))
        for total, document in zip(nats, documents, strict=True)
    ]
