"""Smear: each token's embedding takes in a share of the one before it; the token itself decides how large a share.

    x_t <- x_t + s g_t x_{t-1},  g_t = sigmoid(w x_t)        before the first block, for t > 1

Attention spends its first layer on finding the token before. Here each token has something of it from the start, at the
cost of no product. s is a learned number and w a learned vector, both at first 0, so that a new model is one without
smear. (Of modded-nanogpt, 2025, whose gate reads the first 12 features alone.) A Llama has no smear, so a model with it
is exported as safetensors alone.
"""

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype


def vectors_before(x: Tensor) -> Tensor:
    """Returns the vector before each in its window, zeros for the first: (..., seq, d_model) -> the same shape."""
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], dim=-2)


class Smear(nn.Module):
    """A gate and a share, at first 0: embeddings (..., d_model), and those before them -> the same shape."""

    def __init__(self, d_model: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))
        self.share = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        # Not a product, which autocast would round.
        gates = torch.sigmoid((x * self.gate).sum(dim=-1, keepdim=True))
        return x + self.share * gates * before
