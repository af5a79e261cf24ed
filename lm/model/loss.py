"""How wrong the model is.

    cross_entropy = mean over positions of  -log softmax(logits)[target]        (nats per token)
    z-loss        = mean over positions of  z_loss * log(sum(exp(logits)))^2    (added where wished)
    perplexity    = exp(cross_entropy)
    bits_per_byte = cross_entropy / ln 2 * tokens / bytes

Bits per byte does not depend on how the text was cut into tokens, so that runs with different tokenizers compare.
"""

import math

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """logits: (..., vocab_size), targets: (...), integer -> scalar, the mean over all leading dimensions.

    log and exp cancel: -log softmax(x)[t] = log(sum(exp(x - m))) - (x_t - m), with m the maximum of x. z_loss keeps
    the normalizer near 1 (Chowdhery et al. 2022): nothing else would keep the logits from drifting together.
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
    """(..., vocab_size) -> the log-probability of each token, of the same shape, in float32 or wider."""
    logits = logits.float()
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum(dim=-1, keepdim=True))


def perplexity(loss: float) -> float:
    """The number of equally likely tokens among which the model hesitates; infinite where exp overflows."""
    return math.inf if loss > 700 else math.exp(loss)


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """loss in nats per token, over a text that is num_tokens tokens and num_bytes bytes long."""
    return loss / math.log(2) * num_tokens / num_bytes
