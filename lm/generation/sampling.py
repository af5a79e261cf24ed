"""Sampling: draws the next token from the model's logits (handout, section 6).

    logits -> repetition penalty -> divided by the temperature -> exponentials, the largest of which is 1
           -> top-k, top-p, min-p keep the likely tokens -> draw

How the logits are computed is in decoding.py, what becomes of the token in writer.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenization import InputError


@dataclass(frozen=True)
class Sampling:
    """The settings by which the next token is drawn; InputError for one out of its range.

    temperature: below 1 sharpens the distribution; 0 takes the most likely token. top_k: keeps the k most likely;
    None keeps all. top_p: keeps the fewest tokens whose probabilities reach this sum; 1 keeps all. min_p: keeps tokens
    at least this many times as likely as the likeliest; 0 keeps all. repetition_penalty: above 1 makes tokens that the
    text already has less likely. The likeliest token is always kept.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.001 <= self.temperature <= 1e6:  # so that float32 holds the quotients
            raise InputError(
                f"temperature {self.temperature}: it must be 0 (always the likeliest token), or from 0.001 to 1e6"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k {self.top_k}: at least one token must be kept; leave it out to keep all")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p {self.top_p}: it must be from 0 (only the likeliest token) to 1 (keep all)")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p {self.min_p}: it must be from 0 (keep all) to 1")
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            raise InputError(f"repetition_penalty {self.repetition_penalty}: it must be from 1e-6 to 1e6; 1 is none")


def keep_top_k(weights: Tensor, k: int) -> Tensor:
    """Sets all but the k largest weights to 0; ties with the k-th stay: (..., vocab_size) -> the same shape."""
    kth = weights.topk(min(k, weights.shape[-1])).values[..., -1:]
    return weights.masked_fill(weights < kth, 0.0)


def keep_top_p(weights: Tensor, p: float) -> Tensor:
    """Keeps the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020); the others become 0.

    weights: (..., vocab_size) -> the same shape. Ties with the last stay. The likeliest token is always kept, even
    where p is 0.
    """
    descending = sort(weights).flip(-1)
    sums = descending.cumsum(dim=-1)
    number = (sums - descending < p * sums[..., -1:]).sum(dim=-1, keepdim=True).clamp_min(1)
    return weights.masked_fill(weights < descending.gather(-1, number - 1), 0.0)


def sort(values: Tensor) -> Tensor:
    """Sorts the last dimension in ascending order; on a CPU by numpy, which takes a tenth of torch's time."""
    return values.sort().values if values.device.type != "cpu" else torch.from_numpy(np.sort(values.detach().numpy()))


def keep_min_p(weights: Tensor, p: float) -> Tensor:
    """Keeps the tokens at least p times as likely as the likeliest (Nguyen et al. 2024); the others become 0.

    weights: (..., vocab_size), of which the largest is 1 -> the same shape.
    """
    return weights.masked_fill(weights < p, 0.0)


def penalize_repetition(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """Divides the logits of seen_ids by the penalty, or multiplies negative ones by it (Keskar et al. 2019).

    logits: (vocab_size,) -> the same shape.
    """
    seen, limit = logits[seen_ids], torch.finfo(logits.dtype).max
    penalized = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(0, seen_ids, torch.where(seen.isfinite(), penalized.clamp(-limit, limit), seen))


def next_token_weights(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns how likely each next token is, relative to the likeliest: logits (..., vocab_size) -> the same shape.

    Tokens that are not kept have a weight of 0. The largest logit must be finite; others may be -inf.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # The largest logit is subtracted before the division: no quotient can overflow upwards.
    weights = ((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature).exp()
    if sampling.top_k is not None:
        weights = keep_top_k(weights, sampling.top_k)
    if sampling.top_p < 1:
        weights = keep_top_p(weights, sampling.top_p)
    if sampling.min_p > 0:
        weights = keep_min_p(weights, sampling.min_p)
    return weights


def next_token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns the next-token distribution: logits (..., vocab_size) -> probabilities of the same shape."""
    weights = next_token_weights(logits, sampling)
    return weights / weights.sum(dim=-1, keepdim=True)


def draw(
    logits: Tensor,
    sampling: Sampling,
    texts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
) -> list[int]:
    """Draws the next token of each row's text: logits (rows, vocab_size) -> token ids.

    texts: the token ids of each text so far. Each row takes one random number from its generator, and then the token at
    which the cumulative sum of the weights passes this share of their total; in float64, so that rounding cannot end
    the sum too early. The largest logit of each row must be finite.
    """
    if sampling.repetition_penalty != 1:
        seen = [torch.tensor(text, device=logits.device) for text in texts]
        rows = zip(logits, seen, strict=True)
        logits = torch.stack([penalize_repetition(row, ids, sampling.repetition_penalty) for row, ids in rows])
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    sums = next_token_weights(logits, sampling).cpu().cumsum(dim=-1, dtype=torch.float64)
    numbers = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    return torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0].tolist()
