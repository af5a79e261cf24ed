"""Generates many texts at once, a token for each at every step; texts may join or leave between two steps.

    Writer            reads each text's newest token, draws the next one for each, and drops the texts that have ended
    write_texts       runs a Writer over any number of texts
    generate_batch    continues several prompts;  generate: one

The completion of a text does not depend on the other texts, nor on when it joined, but for rounding: beside a longer
text, sums are taken in another order. Which characters can be shown is in continuation.py.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lm.generation.decoding import CachedReader, PlainReader, Reader
from lm.generation.sampling import Sampling, draw
from lm.generation.texts import Drawn, NonFiniteLogits, Text, check_prompt
from lm.model.loss import log_softmax
from lm.model.transformer import TransformerLM
from tokenization import InputError, Tokenizer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}  # of the weights


class Writer:
    """The texts being generated, one in each row of a reader, and what is known of their next tokens.

    stop_id: the token that ends a text. vocab_size: ids from here on are never drawn, as a model may have more rows
    than its tokenizer has tokens. missing: further ids that are never drawn. A text that fails ends alone, with its
    error; the others go on.
    """

    def __init__(
        self, reader: Reader, stop_id: int | None = None, vocab_size: int | None = None, missing: Sequence[int] = ()
    ):
        self.reader, self.stop_id = reader, stop_id
        self.vocab_size = min(vocab_size or reader.model.vocab_size, reader.model.vocab_size)
        self.missing = [token_id for token_id in missing if token_id < self.vocab_size]
        self.texts: list[Text] = []  # in the order of the reader's rows
        self.unread: list[int] = []  # each text's newest token; empty once the reader has read them
        self.logits = torch.empty(0, self.vocab_size, device=reader.device)  # of the next tokens; empty until then

    @classmethod
    def of_tokens(cls, reader: Reader, tokenizer: Tokenizer) -> "Writer":
        """Makes a writer that draws only the tokenizer's tokens, and ends a text at its end-of-text token."""
        missing = sorted(set(range(tokenizer.vocab_size)) - tokenizer.vocab.keys())
        return cls(reader, tokenizer.end_of_text_id, tokenizer.vocab_size, missing)

    @torch.inference_mode()
    def add(self, text: Text) -> None:
        """Reads a text's prompt into a new row; InputError for a prompt that cannot be read."""
        check_prompt(text.number, text.ids, self.vocab_size)
        if text.score_prompt and len(text.ids) > self.reader.model.context_length:
            raise InputError(
                f"prompt {text.number} has {len(text.ids)} tokens; at most {self.reader.model.context_length}, the"
                " context_length, can be scored"
            )
        self.read()
        row = len(self.texts)
        try:
            self.logits = torch.cat([self.logits, self.begin(row, text)])
        except Exception:
            self.reader.drop(row)
            raise
        self.texts.append(text)

    def begin(self, row: int, text: Text) -> Tensor:
        """Reads a prompt, scores its tokens if asked to, and returns the logits of the next token, (1, vocab_size)."""
        if not text.score_prompt:
            return self.allowed(self.reader.read(row, text.ids)[None])
        logits = self.allowed(self.reader.read(row, text.ids, every=True))
        text.scored = [Drawn(text, text.ids[0], last=False)]
        for token_id, after in zip(text.ids[1:], logits, strict=False):
            text.scored.append(self.score(text, token_id, after))
        return logits[-1:]

    def drop(self, text: Text) -> None:
        """Removes a text, ended or not; the last text takes over its row."""
        row, last = self.texts.index(text), len(self.texts) - 1
        self.reader.drop(row)
        by_row: list[list[Any]] = [self.texts, self.unread]
        for rows in filter(None, by_row):
            rows[row] = rows[last]
            rows.pop()
        if len(self.logits):
            self.logits = self.logits[[last if each == row else each for each in range(last)]]

    def read(self) -> None:
        """Reads each text's newest token, if that is not yet done."""
        if self.unread:
            self.logits, self.unread = self.allowed(self.reader.step(self.unread)), []

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Draws a token for each text, or finds its end; texts that have ended are dropped."""
        self.read()
        texts, logits = list(self.texts), self.logits
        self.logits, self.unread = logits[:0], [0] * len(texts)
        for text, largest in zip(texts, logits.amax(dim=-1).tolist(), strict=True):
            if not math.isfinite(largest):  # NaN, or no token can be drawn
                text.finish, text.error = "error", NonFiniteLogits()
        for sampling in dict.fromkeys(text.sampling for text in texts if not text.error):
            rows = [row for row, text in enumerate(texts) if text.sampling == sampling and not text.error]
            alike = [texts[row] for row in rows]
            chosen = logits if len(rows) == len(texts) else logits[rows]
            drawn = draw(chosen, sampling, [text.ids for text in alike], [text.generator for text in alike])
            for row, token_id in zip(rows, drawn, strict=True):
                self.unread[row] = token_id
        found = [self._append(text, row, logits) for row, text in enumerate(texts)]
        for text in texts:
            if text.finish:
                self.drop(text)
        return found

    def allowed(self, logits: Tensor) -> Tensor:
        """Sets missing ids to -inf: (rows, the model's vocab_size) -> (rows, vocab_size), in float32."""
        logits = logits[:, : self.vocab_size].float()
        return (
            logits.index_fill(1, torch.tensor(self.missing, device=logits.device), -torch.inf)
            if self.missing
            else logits
        )

    def _append(self, text: Text, row: int, logits: Tensor) -> Drawn:
        if text.error or not text.max_new_tokens:
            text.finish = text.finish or "length"
            return Drawn(text, None, last=True)
        token_id = self.unread[row]
        ended = token_id == self.stop_id
        if ended:
            text.finish = "stop"
        else:
            text.ids.append(token_id)
            if len(text.ids) - len(text.prompt) >= text.max_new_tokens:
                text.finish = "length"
        drawn, last = None if ended else token_id, bool(text.finish)
        if text.top is None:
            return Drawn(text, drawn, last)
        return replace(self.score(text, token_id, logits[row]), token_id=drawn, last=last)

    def score(self, text: Text, token_id: int, logits: Tensor) -> Drawn:
        """Returns the log-probabilities of a token and of the likeliest tokens under these logits, (vocab_size,)."""
        log_probabilities = log_softmax(logits)
        if not log_probabilities.amax().isfinite():
            raise NonFiniteLogits
        best, ids = log_probabilities.topk(min(text.top or 0, self.vocab_size))
        likeliest = tuple(zip(ids.tolist(), best.tolist(), strict=True))
        return Drawn(text, token_id, False, log_probabilities[token_id].item(), likeliest)


def make_reader(model: TransformerLM, rows: int, dtype: torch.dtype | None = None, use_cache: bool = True) -> Reader:
    """Returns a reader for as many texts at once as there are rows.

    dtype: of the weights while generating; None is the model's own, the only one possible without a cache (ValueError).
    """
    if use_cache:
        return CachedReader(model, rows, dtype or model.lm_head.weight.dtype)
    if dtype is not None:
        raise ValueError(f"dtype {dtype}: without a cache the model is read as it is")
    return PlainReader(model)


def write_texts(writer: Writer, texts: Iterable[Text], rows: int) -> Iterator[Drawn]:
    """Generates all texts, at most `rows` at a time, and yields the tokens as they are drawn.

    When a text ends, the next one begins. If some fail, the others are finished, and then the first error is raised.
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
    """Continues several prompts at once; yields (number of the prompt, token id) as the tokens are drawn.

    But for rounding, each completion is the one that generate gives for its prompt alone, with seed + its number. It
    ends before stop_id, or after max_new_tokens. The other arguments are those of Writer and make_reader. InputError
    for a bad prompt.
    """
    if not prompts:
        raise InputError("there is no prompt; give at least one")
    for number, prompt in enumerate(prompts):
        check_prompt(number, prompt, min(vocab_size or model.vocab_size, model.vocab_size))
    texts = [
        Text(prompt, max_new_tokens, sampling, seed + number, number=number) for number, prompt in enumerate(prompts)
    ]
    writer = Writer(make_reader(model, len(texts), dtype, use_cache), stop_id, vocab_size)
    for drawn in write_texts(writer, texts, len(texts)):
        if drawn.token_id is not None:
            yield drawn.text.number, drawn.token_id


def generate(model: TransformerLM, prompt: Sequence[int], *arguments: Any, **settings: Any) -> Iterator[int]:
    """Continues one prompt; yields the token ids as they are drawn. The arguments are those of generate_batch.

    The seed alone decides the completion, whatever else draws random numbers. Prompt and completion may be longer than
    the context (see decoding.py).
    """
    return (token_id for _, token_id in generate_batch(model, [prompt], *arguments, **settings))
