"""The loss of a language model, and the measures derived from it.

    cross_entropy = mean over positions of  -log softmax(logits)[target]        (nats per token)
    z-loss        = mean over positions of  z_loss * log(sum(exp(logits)))^2    (optional, in training)
    perplexity    = exp(cross_entropy)
    bits_per_byte = cross_entropy / ln 2 * tokens / bytes

Bits per byte does not depend on how the text was cut into tokens, so it compares models with different tokenizers.
"""

import math

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Returns the mean of -log softmax(logits)[target] over all positions, plus the z-loss.

    logits: (..., vocab_size), targets: (...), integer -> scalar, float32. log and exp cancel: with m the maximum of x,
    -log softmax(x)[t] = log(sum(exp(x - m))) - (x_t - m). The z-loss keeps the normalizer near 1 (Chowdhery et al.
    2022); nothing else keeps all logits from drifting by a common amount.
    """
    logits = logits.float()
    maximum = logits.detach().amax(dim=-1, keepdim=True)
    shifted = logits - maximum
    log_normalizer = torch.log(torch.exp(shifted).sum(dim=-1))
    target_logits = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    losses = log_normalizer - target_logits
    if z_loss:
        losses = losses + z_loss * (log_normalizer + maximum.squeeze(-1)).square()
    return losses.mean()


def log_softmax(logits: Tensor) -> Tensor:
    """Returns the log-probability of each token: (..., vocab_size) -> the same shape, in float32."""
    logits = logits.float()
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim=-1, keepdim=True))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns -log softmax(logits)[target] at each position: (..., vocab_size), (...) -> (...), in float32."""
    return -log_softmax(logits).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def perplexity(loss: float) -> float:
    """Returns exp(loss): the number of equally likely tokens that would be as hard to predict; inf on overflow."""
    return math.inf if loss > 700 else math.exp(loss)


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """Converts a loss in nats per token over num_tokens tokens, which are num_bytes bytes of text."""
    return loss / math.log(2) * num_tokens / num_bytes
