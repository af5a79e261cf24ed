"""Texts that are written at once, one token each at a time; one may come, and one may leave, between any two.

    Text      a prompt, how its tokens are drawn, and what has been drawn so far
    Writer    reads what is new of every text, draws a token for each, and drops those that are over

How a text goes on depends on itself alone: not on the others, nor on when they came, but for the rounding of sums that
a longer text beside it puts in another order. What of it can be shown is in pieces.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lm.decoding import CachedReader, PlainReader, Reader
from lm.loss import log_softmax
from lm.sampling import Sampling, draw
from lm.transformer import TransformerLM
from tokenization import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(eq=False)
class Text:
    """max_new_tokens: it is over after so many. seed: decides it. top: of how many of the likeliest tokens the
    log-probabilities are wanted, at each place; None wants none, not even that of the token drawn."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    top: int | None = None
    number: int = 0  # whatever its owner knows it by
    ids: list[int] = field(init=False)  # the prompt and what was drawn
    finish: str = field(init=False, default="")  # "stop" where the model has ended it, "length" after max_new_tokens

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self.generator = torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Drawn:
    """token_id: None where the model has ended the text. last: nothing follows. The log-probabilities are the model's
    own, before temperature and all that, of the token and of the likeliest ones, as (id, log-probability)."""

    text: Text
    token_id: int | None
    last: bool
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Writer:
    """stop_id: ends a text. vocab_size: ids from here on are never drawn, for a model with more rows than its
    tokenizer has tokens."""

    def __init__(self, reader: Reader, stop_id: int | None = None, vocab_size: int | None = None):
        self.reader, self.stop_id, self.vocab_size = reader, stop_id, vocab_size or reader.model.vocab_size
        self.texts: list[Text] = []  # in the reader's rows
        self.unread: list[int] = []  # the token that each got last, until the reader has read it;
        self.logits: list[Tensor] = []  # then what comes next

    @torch.inference_mode()
    def add(self, text: Text) -> None:
        check_prompt(text.number, text.ids, self.vocab_size)
        self.read()
        self.logits.append(self.reader.read(len(self.texts), text.ids))
        self.texts.append(text)

    def drop(self, text: Text) -> None:
        """It is over, or not wanted any more; the last one takes its row."""
        row = self.texts.index(text)
        self.reader.drop(row)
        by_row: list[list[Any]] = [self.texts, self.unread, self.logits]
        for rows in filter(None, by_row):
            rows[row] = rows[-1]
            rows.pop()

    def read(self) -> None:
        if self.unread:
            self.logits, self.unread = list(self.reader.step(self.unread)), []

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """A token for each text, or its end."""
        self.read()
        logits = torch.stack(self.logits)[:, : self.vocab_size].float()
        if not logits.amax().isfinite():
            raise InputError("the model's scores are not numbers; its training has diverged")
        texts, self.logits, self.unread = list(self.texts), [], [0] * len(self.texts)
        for sampling in dict.fromkeys(text.sampling for text in texts):
            rows = [row for row, text in enumerate(texts) if text.sampling == sampling]
            alike = [texts[row] for row in rows]
            chosen = logits if len(rows) == len(texts) else logits[rows]
            drawn = draw(chosen, sampling, [text.ids for text in alike], [text.generator for text in alike])
            for row, token_id in zip(rows, drawn, strict=True):
                self.unread[row] = token_id
        found = [self.take(*each) for each in zip(texts, self.unread, logits, strict=True)]
        for text in texts:
            if text.finish:
                self.drop(text)
        return found

    def take(self, text: Text, token_id: int, logits: Tensor) -> Drawn:
        ended = token_id == self.stop_id
        if ended:
            text.finish = "stop"
        else:
            text.ids.append(token_id)
            if len(text.ids) - len(text.prompt) == text.max_new_tokens:
                text.finish = "length"
        drawn, last = None if ended else token_id, bool(text.finish)
        if text.top is None:
            return Drawn(text, drawn, last)
        log_probabilities = log_softmax(logits)
        best, ids = log_probabilities.topk(min(text.top, self.vocab_size))
        likeliest = tuple(zip(ids.tolist(), best.tolist(), strict=True))
        return Drawn(text, drawn, last, log_probabilities[token_id].item(), likeliest)


def check_prompt(number: int, prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise InputError(f"prompt {number} has no tokens; begin a new text by the end-of-text token")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        wrong = next(token_id for token_id in prompt if not 0 <= token_id < vocab_size)
        raise InputError(f"prompt {number} has the id {wrong}; there are ids from 0 to {vocab_size - 1}")


def make_reader(model: TransformerLM, rows: int, dtype: torch.dtype | None = None, use_cache: bool = True) -> Reader:
    """dtype: of the weights while reading, None for the model's own; without a cache there is no other."""
    if use_cache:
        return CachedReader(model, rows, dtype or model.lm_head.weight.dtype)
    if dtype is not None:
        raise ValueError(f"dtype {dtype}: without a cache the model is read as it is")
    return PlainReader(model)


def write_texts(writer: Writer, texts: Iterable[Text], rows: int) -> Iterator[Drawn]:
    """All of them, so many at once at most: where one is over, the next begins."""
    waiting = iter(texts)
    while True:
        for text in islice(waiting, rows - len(writer.texts)):
            writer.add(text)
        if not writer.texts:
            return
        yield from writer.step()


def generate_batch(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_id: int | None = None,
    vocab_size: int | None = None,
    dtype: torch.dtype | None = None,
    use_cache: bool = True,
) -> Iterator[tuple[int, int]]:
    """Continues several prompts at once; yields (number of the prompt, id) as they are drawn.

    Each text is the one that generate would write after its prompt alone, with seed + its number; it ends before
    stop_id, or after max_new_tokens.
    """
    if not prompts:
        raise InputError("no prompt; at least one text must be begun")
    for number, prompt in enumerate(prompts):
        check_prompt(number, prompt, vocab_size or model.vocab_size)
    texts = [
        Text(prompt, max_new_tokens, sampling, seed + number, number=number) for number, prompt in enumerate(prompts)
    ]
    writer = Writer(make_reader(model, len(texts), dtype, use_cache), stop_id, vocab_size)
    for drawn in write_texts(writer, texts, len(texts)):
        if drawn.token_id is not None:
            yield drawn.text.number, drawn.token_id


def generate(model: TransformerLM, prompt: Sequence[int], *arguments, **settings) -> Iterator[int]:
    """generate_batch for one prompt: yields the ids of its text as they are drawn.

    The seed alone decides the text, whatever else draws random numbers. It may be longer than the context; see
    decoding.py.
    """
    return (token_id for _, token_id in generate_batch(model, [prompt], *arguments, **settings))
