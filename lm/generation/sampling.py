"""Sampling: draws the next token from the model's logits (handout, section 6).

    logits -> repetition penalty -> divided by the temperature -> top-k, top-p, min-p keep the likely tokens
           -> softmax -> draw

How the logits are computed is in decoding.py, what becomes of the token in writer.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

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
        for name, value in vars(self).items():
            if name == "top_k":
                good, kind = value is None or isinstance(value, Integral), "a whole number, or None"
            else:
                good, kind = isinstance(value, Real), "a number"
            if not good or isinstance(value, bool):
                raise InputError(f"{name} {value!r}: it must be {kind}")
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


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Sets all but the k largest logits to -inf; ties with the k-th stay: (..., vocab_size) -> the same shape."""
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020); the others become -inf.

    logits: (..., vocab_size) -> the same shape. Of equally likely tokens, those with the lowest ids are kept. The
    likeliest token is always kept, even where p is 0.
    """
    descending = sort(logits).flip(-1)
    weights = (descending - descending[..., :1]).float().exp()  # probabilities, but for a factor
    sums = weights.cumsum(dim=-1)
    number = (sums - weights < p * sums[..., -1:]).sum(dim=-1, keepdim=True).clamp_min(1)
    last = descending.gather(-1, number - 1)
    kept = logits >= last
    if not torch.equal(kept.sum(dim=-1, keepdim=True), number):
        ties = logits == last
        kept &= ~ties | (ties.cumsum(dim=-1) <= number - (logits > last).sum(dim=-1, keepdim=True))
    return torch.where(kept, logits, -torch.inf)


def sort(values: Tensor) -> Tensor:
    """Sorts the last dimension in ascending order; on a CPU by numpy, which takes a tenth of torch's time."""
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.detach().float().numpy())).to(values.dtype)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the tokens at least p times as likely as the likeliest (Nguyen et al. 2024); the others become -inf.

    logits: (..., vocab_size) -> the same shape.
    """
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -torch.inf)


def penalize_repetition(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """Divides the logits of seen_ids by the penalty, or multiplies negative ones by it (Keskar et al. 2019).

    logits: (vocab_size,) -> the same shape.
    """
    seen, limit = logits[seen_ids], torch.finfo(logits.dtype).max
    penalized = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(0, seen_ids, torch.where(seen.isfinite(), penalized.clamp(-limit, limit), seen))


def next_token_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Returns the next-token distribution: logits (..., vocab_size) -> probabilities of the same shape.

    The largest logit must be finite; others may be -inf.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Relative to the largest, which becomes 0: neither the quotients nor their exponentials can overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    weights = logits.exp()
    return weights / weights.sum(dim=-1, keepdim=True)


def draw(
    logits: Tensor,
    sampling: Sampling,
    texts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
) -> list[int]:
    """Draws the next token of each row's text: logits (rows, vocab_size) -> token ids.

    texts: the token ids of each text so far. Each row takes one random number from its generator, and then the token at
    which the cumulative sum of the probabilities passes it; in float64, in which rounding cannot end the sum too early.
    The largest logit of each row must be finite.
    """
    if sampling.repetition_penalty != 1:
        seen = [torch.tensor(text, device=logits.device) for text in texts]
        rows = zip(logits, seen, strict=True)
        logits = torch.stack([penalize_repetition(row, ids, sampling.repetition_penalty) for row, ids in rows])
    if sampling.temperature == 0:
        return logits.argmax(dim=-1).tolist()
    sums = next_token_probabilities(logits, sampling).cpu().cumsum(dim=-1, dtype=torch.float64)
    numbers = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    return torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0].tolist()
