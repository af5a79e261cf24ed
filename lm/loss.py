"""How wrong the model is.

    cross_entropy = mean over positions of  -log softmax(logits)[target]        (nats per token)
    perplexity    = exp(cross_entropy)
    bits_per_byte = cross_entropy / ln 2 * tokens / bytes

Bits per byte does not depend on how the text was cut into tokens, so that runs with different tokenizers compare.
"""

import math

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: (..., vocab_size), targets: (...), integer -> scalar, the mean over all leading dimensions.

    log and exp cancel: -log softmax(x)[t] = log(sum(exp(x - m))) - (x_t - m), with m the maximum of x.
    """
    logits = logits.float()
    shifted = logits - logits.detach().amax(dim=-1, keepdim=True)
    log_normalizer = torch.log(torch.exp(shifted).sum(dim=-1))
    target_logits = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (log_normalizer - target_logits).mean()


def perplexity(loss: float) -> float:
    """The number of equally likely tokens among which the model hesitates; infinite where exp overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """loss in nats per token, over a text that is num_tokens tokens and num_bytes bytes long."""
    return loss / math.log(2) * num_tokens / num_bytes
