"""Skips from the embedding to each block: what a token is need not be carried through the residual stream.

    x <- x + s_l x_0        before block l, with x_0 the embedding and s_l a learned number, at first 0

A residual stream must carry the token itself beside all that blocks have added to it; here each block can read it anew.
(These are the "x0 lambdas" of modded-nanogpt, without its second number, on x.) A Llama has no such skips, so a model
with them is exported as safetensors alone.
"""

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype


class EmbeddingSkips(nn.Module):
    """A number for each block, at first 0: x and the embedding (..., d_model) -> (..., d_model)."""

    def __init__(self, num_layers: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_layers, device=device, dtype=dtype))

    def forward(self, x: Tensor, embedding: Tensor, block: int) -> Tensor:
        return x + self.weight[block] * embedding
