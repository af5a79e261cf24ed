"""Scores a model on a token file: loss in nats per token, perplexity, bits per byte (handout, section 4).

whole file        adjacent windows of context_length tokens, as in `lm validate`, to the last token
documents         each by itself, after <|endoftext|> and nothing else; the <|endoftext|> at its end is not predicted.
                  The last window of a document longer than the context begins earlier, so that it is full, as in
                  lm-eval's rolling log-likelihood.

METRICS has what is averaged over tokens, `metrics` what follows from the averages. `lm test`, `lm validate` and
`lm fit` report both.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.model.loss import bits_per_byte, perplexity, token_losses
from lm.model.transformer import TransformerLM
from tokenization import Tokenizer
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_set import Tokens

LOGITS = 1 << 25  # per batch at most: 128 MiB in float32
# Each takes logits (..., vocab_size) and targets (...), and returns its value at each position. A validation has the
# loss without logits; any other metric costs it a second forward pass (lm/training/validation_means.py).
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loss": token_losses}


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
def window_metrics(model: TransformerLM, windows: Sequence[Window]) -> list[dict[str, Tensor]]:
    """Returns METRICS of each window's targets, by name, a tensor (num_targets,) each, on the CPU."""
    longest = max(len(window.token_ids) for window in windows)
    batch = torch.zeros(len(windows), longest, dtype=torch.long)  # causal: padding behind a window has no effect
    for row, window in zip(batch, windows, strict=True):
        row[: len(window.token_ids)] = torch.from_numpy(window.token_ids.astype(np.int64))
    batch = batch.to(model.lm_head.weight.device)
    logits, targets = model(batch[:, :-1]), batch[:, 1:]
    values = {name: metric(logits, targets).cpu() for name, metric in METRICS.items()}
    ends = [len(window.token_ids) - 1 for window in windows]
    return [
        {name: of[row, end - window.num_targets : end] for name, of in values.items()}
        for row, (end, window) in enumerate(zip(ends, windows, strict=True))
    ]


def total_metrics(
    model: TransformerLM, windows: Iterable[Window], num_targets: int, documents: int
) -> dict[str, np.ndarray]:
    """Returns the totals of METRICS over each document's tokens, by name, (documents,) each; that of the loss in nats.

    num_targets: of all windows, for the progress bar.
    """
    rows = max(1, LOGITS // (model.context_length * model.vocab_size))
    totals = {name: np.zeros(documents) for name in METRICS}
    waiting: list[Window] = []

    def count() -> None:
        for window, found in zip(waiting, window_metrics(model, waiting), strict=True):
            for name, values in found.items():
                totals[name][window.document] += values.double().sum().item()
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


def metrics(means: Mapping[str, float], num_tokens: int = 0, num_bytes: int | None = None) -> dict[str, float]:
    """Returns the metrics of `lm validate` and `lm test` by name, from the means of METRICS over all tokens.

    num_bytes: of the text of the tokens; None, where it is unknown, leaves out bits_per_byte, and 0 makes it NaN.
    """
    loss = means["loss"]
    found = {**means, "perplexity": perplexity(loss)}
    if num_bytes is not None:
        found["bits_per_byte"] = bits_per_byte(loss, num_tokens, num_bytes) if num_bytes else math.nan
    return found


@dataclass(frozen=True)
class Score:
    """The totals of METRICS over all tokens, and how many tokens and bytes were predicted."""

    totals: Mapping[str, float]
    tokens: int
    bytes: int

    def record(self) -> dict[str, Any]:
        """Returns the metrics, and the numbers of tokens and bytes."""
        means = {name: total / self.tokens for name, total in self.totals.items()}
        found = metrics(means, self.tokens, self.bytes)
        return {**found, "tokens": self.tokens, "bytes": self.bytes}


def total(scores: Iterable[Score]) -> Score:
    """Adds up the scores of several texts."""
    totals, tokens, num_bytes = zip(*((score.totals, score.tokens, score.bytes) for score in scores), strict=True)
    return Score({name: sum(of[name] for of in totals) for name in METRICS}, sum(tokens), sum(num_bytes))


def score_file(model: TransformerLM, tokenizer: Tokenizer, file: TokenFile) -> Score:
    """Scores a whole file: every token but the first, which has no context."""
    num_targets = len(file) - 1
    totals = total_metrics(model, file_windows(file.tokens, model.context_length), num_targets, 1)
    first = len(tokenizer.vocab[int(file.tokens[0])])
    found = {name: float(of[0]) for name, of in totals.items()}
    return Score(found, num_targets, max(0, file.description.bytes - first))


def score_documents(
    model: TransformerLM, tokenizer: Tokenizer, documents: Sequence[np.ndarray], end_id: int
) -> list[Score]:
    """Scores each document by itself. end_id: <|endoftext|>."""
    sizes = np.array([len(tokenizer.vocab.get(token_id, b"")) for token_id in range(tokenizer.vocab_size)])
    windows = document_windows(documents, model.context_length, end_id)
    totals = total_metrics(model, windows, sum(map(len, documents)), len(documents))
    return [
        Score({name: float(of[number]) for name, of in totals.items()}, len(document), int(sizes[document].sum()))
        for number, document in enumerate(documents)
    ]
