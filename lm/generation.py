"""From a model and a beginning to a text: one token after another, each drawn from the model's distribution.

    logits -> repetition penalty -> divided by the temperature -> top-k, top-p, min-p keep the likely tokens
           -> softmax -> draw

A key-value cache keeps what each layer has computed for the text so far; without it, every step reads the whole
window again, which is slower and gives the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.attention import KeyValueCache, softmax
from lm.transformer import TransformerLM
from tokenization import InputError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature: 0 takes the likeliest token. top_k: keep so many tokens; None keeps all. top_p: keep the fewest tokens
    whose probabilities reach this sum; 1 keeps all. min_p: keep the tokens at least this share as likely as the
    likeliest; 0 keeps all. repetition_penalty: above 1 makes the tokens of the text so far less likely.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature}: it must be 0 (always the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k}: at least one token must be kept; leave it out to keep all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p {self.min_p}: it must be from 0 (keep all) to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty {self.repetition_penalty}: it must be above 0; 1 is none")


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(..., vocab_size): all but the k largest become -inf; equals of the k-th stay."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(..., vocab_size): all but the smallest set of likeliest tokens with probability >= p become -inf."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens reach without this one
    ordered = ordered.masked_fill(before >= p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(..., vocab_size): tokens less than p times as likely as the likeliest become -inf (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -torch.inf)


def penalize_repetition(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """logits: (vocab_size,); those of seen_ids are divided by the penalty, or multiplied where they are negative
    (Keskar et al. 2019)."""
    seen = logits[seen_ids]
    return logits.scatter(0, seen_ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def next_token_probabilities(logits: Tensor, sampling: Sampling, seen_ids: Tensor | None = None) -> Tensor:
    """logits: (..., vocab_size) -> the distribution that the next token is drawn from, of the same shape.

    seen_ids: (n,), the text so far, for a repetition penalty; logits are then (vocab_size,).
    """
    logits = logits.float()
    if seen_ids is not None and sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, seen_ids, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return softmax(logits, dim=-1)


class Reader:
    """Reads a growing text with the model, and says what it expects next.

    A text longer than the context is read from a later token on: half a context is left, which then fills up again.
    So the model always sees between half a context and a whole one, and few tokens are read twice.
    """

    def __init__(self, model: TransformerLM, use_cache: bool = True):
        self.model = model
        self.start = 0  # of the window in the text
        self.use_cache = use_cache
        self.caches: list[KeyValueCache] | None = None

    def next_logits(self, text: Tensor) -> Tensor:
        """text: (length,), what was given before and more -> (vocab_size,)."""
        context_length = self.model.context_length
        if len(text) - self.start > context_length:
            self.start = len(text) - max(1, context_length // 2)
            self.caches = None
        if not self.use_cache:
            return self.model(text[None, self.start :])[0, -1]
        if self.caches is None:
            self.caches = self.model.new_caches(batch_size=1)
        return self.model(text[None, self.start + self.caches[0].length :], self.caches)[0, -1]


@torch.no_grad()
def generate(
    model: TransformerLM,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_id: int | None = None,
    vocab_size: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yields up to max_new_tokens ids as they are drawn; ends before stop_id.

    vocab_size: ids from here on are never drawn, for a model with more rows than its tokenizer has tokens. The seed
    alone decides the text, whatever else draws random numbers. A text may be longer than the context; see Reader.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    reader = Reader(model, use_cache)
    text = torch.tensor(prompt, dtype=torch.int64, device=device)
    for _ in range(max_new_tokens):
        logits = reader.next_logits(text)[:vocab_size]
        if not logits.amax().isfinite():
            raise InputError("the model's scores are not numbers; its training has diverged")
        probabilities = next_token_probabilities(logits, sampling, text).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        if (next_id := int(drawn)) == stop_id:
            return
        text = torch.cat((text, drawn.to(device)))
        yield next_id
