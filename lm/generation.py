"""From a model and a beginning to a text: one token after another, each drawn from the model's distribution.

    logits -> divided by the temperature -> top-k, then top-p keep the likely tokens -> softmax -> draw

Plain sampling: every step reads the whole window again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.attention import softmax
from lm.transformer import TransformerLM
from tokenization import InputError


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token. top_k: keep so many tokens; None keeps all. top_p: keep the fewest
    tokens whose probabilities reach this sum; 1 keeps all."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature}: it must be 0 (always the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k}: at least one token must be kept; leave it out to keep all")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: it must be above 0 and at most 1")


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


def next_token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """logits: (..., vocab_size) -> the distribution that the next token is drawn from, of the same shape."""
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return softmax(logits, dim=-1)


@torch.no_grad()
def generate(
    model: TransformerLM,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_id: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yields up to max_new_tokens ids as they are drawn; ends before stop_id.

    A text longer than the context slides: the model sees its last context_length tokens. vocab_size: ids from here
    on are never drawn, for a model with more rows than its tokenizer has tokens. The seed alone decides the text,
    whatever else draws random numbers.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    token_ids = list(prompt)
    for _ in range(max_new_tokens):
        window = torch.tensor([token_ids[-model.context_length :]], device=device)
        logits = model(window)[0, -1, :vocab_size]
        if not logits.amax().isfinite():
            raise InputError("the model's scores are not numbers; its training has diverged")
        probabilities = next_token_probabilities(logits, sampling).cpu()
        next_id = int(torch.multinomial(probabilities, 1, generator=generator))
        if next_id == stop_id:
            return
        token_ids.append(next_id)
        yield next_id
