"""Texts that are written at once, one token each at a time; one may come, and one may leave, between any two.

    Text      a prompt, how its tokens are drawn, and what has been drawn so far
    Writer    reads what is new of every text, draws a token for each, and drops those that are over

How a text goes on depends on itself alone: not on the others, nor on when they came, but for the rounding of sums that
a longer text beside it puts in another order. What of it can be shown is in continuation.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lm.generation.decoding import CachedReader, PlainReader, Reader
from lm.generation.sampling import Sampling, draw
from lm.model.loss import log_softmax
from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(eq=False)
class Text:
    """max_new_tokens: it is over after so many. seed: decides it. top: of how many of the likeliest tokens the
    log-probabilities are wanted, at each place; None wants none, not even that of the token drawn. score_prompt:
    those of the prompt's tokens are wanted, too; then the prompt must fit into the context."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int = 0
    top: int | None = None
    number: int = 0  # whatever its owner knows it by
    score_prompt: bool = False
    ids: list[int] = field(init=False)  # the prompt and what was drawn
    scored: list["Drawn"] = field(init=False, default_factory=list)  # the prompt's tokens, the first without a score
    finish: str = field(init=False, default="")  # "stop" where the model has ended it, "length" after max_new_tokens,
    error: Exception | None = field(init=False, default=None)  # and "error" where this has

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self.generator = torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Drawn:
    """token_id: None where the model has ended the text, and then the log-probability is that of the end. last: nothing
    follows. The log-probabilities are the model's own, before temperature and all that, of the token and of the
    likeliest ones, as (id, log-probability)."""

    text: Text
    token_id: int | None
    last: bool
    log_probability: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Writer:
    """stop_id: ends a text. vocab_size: ids from here on are never drawn, for a model with more rows than its
    tokenizer has tokens; nor are the missing ones below. A text that fails ends by itself, with its error; the others
    go on."""

    def __init__(
        self, reader: Reader, stop_id: int | None = None, vocab_size: int | None = None, missing: Sequence[int] = ()
    ):
        self.reader, self.stop_id, self.vocab_size = reader, stop_id, vocab_size or reader.model.vocab_size
        self.missing = list(missing)
        self.texts: list[Text] = []  # in the reader's rows
        self.unread: list[int] = []  # the token that each got last, until the reader has read it;
        self.logits: list[Tensor] = []  # then what comes next

    @classmethod
    def of_tokens(cls, reader: Reader, tokenizer: Tokenizer) -> "Writer":
        """One that draws what the tokenizer has bytes for, and ends a text where the model draws its end."""
        missing = sorted(set(range(tokenizer.vocab_size)) - tokenizer.vocab.keys())
        return cls(reader, tokenizer.end_of_text_id, tokenizer.vocab_size, missing)

    @torch.inference_mode()
    def add(self, text: Text) -> None:
        check_prompt(text.number, text.ids, self.vocab_size)
        if text.score_prompt and len(text.ids) > self.reader.model.context_length:
            raise InputError(
                f"prompt {text.number} has {len(text.ids)} tokens; the model sees {self.reader.model.context_length} at"
                " once, and only so many can be scored"
            )
        self.read()
        row = len(self.texts)
        try:
            self.logits.append(self.begin(row, text))
        except Exception:
            self.reader.drop(row)
            raise
        self.texts.append(text)

    def begin(self, row: int, text: Text) -> Tensor:
        """Reads the prompt; returns what comes after it."""
        if not text.score_prompt:
            return self.reader.read(row, text.ids)
        logits = self.reader.read(row, text.ids, every=True)
        text.scored = [Drawn(text, text.ids[0], last=False)]
        for token_id, scores in zip(text.ids[1:], self.scores(logits), strict=False):
            text.scored.append(self.score(text, token_id, scores))
        return logits[-1]

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
        texts, logits = list(self.texts), self.scores(torch.stack(self.logits))
        self.logits, self.unread = [], [0] * len(texts)
        finite = logits.amax(dim=-1).isfinite().tolist()  # NaN, or no token that could be drawn
        for text, is_finite in zip(texts, finite, strict=True):
            if not is_finite:
                text.finish, text.error = "error", NonFiniteScores()
        for sampling in dict.fromkeys(text.sampling for text in texts if not text.error):
            rows = [row for row, text in enumerate(texts) if text.sampling == sampling and not text.error]
            alike = [texts[row] for row in rows]
            chosen = logits if len(rows) == len(texts) else logits[rows]
            drawn = draw(chosen, sampling, [text.ids for text in alike], [text.generator for text in alike])
            for row, token_id in zip(rows, drawn, strict=True):
                self.unread[row] = token_id
        found = [self._append(*each) for each in zip(texts, self.unread, logits, strict=True)]
        for text in texts:
            if text.finish:
                self.drop(text)
        return found

    def scores(self, logits: Tensor) -> Tensor:
        """(rows, the model's vocab_size) -> (rows, vocab_size), in float32, of what can be drawn."""
        logits = logits[:, : self.vocab_size].float()
        return (
            logits.index_fill(1, torch.tensor(self.missing, device=logits.device), -torch.inf)
            if self.missing
            else logits
        )

    def _append(self, text: Text, token_id: int, logits: Tensor) -> Drawn:
        if text.error or not text.max_new_tokens:
            text.finish = text.finish or "length"
            return Drawn(text, None, last=True)
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
        return replace(self.score(text, token_id, logits), token_id=drawn, last=last)

    def score(self, text: Text, token_id: int, logits: Tensor) -> Drawn:
        """How likely the token and the likeliest ones are where the model gives these logits, (vocab_size,)."""
        log_probabilities = log_softmax(logits)
        if not log_probabilities.amax().isfinite():
            raise NonFiniteScores
        best, ids = log_probabilities.topk(min(text.top or 0, self.vocab_size))
        likeliest = tuple(zip(ids.tolist(), best.tolist(), strict=True))
        return Drawn(text, token_id, False, log_probabilities[token_id].item(), likeliest)


class NonFiniteScores(InputError):
    def __init__(self) -> None:
        super().__init__("the model's scores are not numbers; its training has diverged")


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
    """Writes every text, at most `rows` at a time: where one is over, the next begins.

    Where some fail, the others are written first, and then the first error is raised.
    """
    waiting, error = iter(texts), None
    while True:
        for text in islice(waiting, rows - len(writer.texts)):
            writer.add(text)
        if not writer.texts:
            break
        for drawn in writer.step():
            error = error or drawn.text.error
            yield drawn
    if error:
        raise error


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
