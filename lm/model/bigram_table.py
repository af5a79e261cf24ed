"""A table of hashed bigrams: a vector for each pair of neighbours, so that the blocks need not compute it.

    x_t <- x_t + B[h(a, b)]        before each block, for the tokens a and b at t - 1 and t
    h(a, b) = 1 + (36313 b xor 27191 a) mod (rows - 1)

Attention spends its first layer on finding the token before. Here it is looked up, at the cost of one row and of no
product. Pairs may share a row; those that are frequent learn it for themselves. The first token of a window has none
before it, and takes row 0. The table starts at 0, as if it were not there. (Hashed n-grams in a language model: Roy et
al. 2022, arXiv 2207.06366; the multipliers are those of modded-nanogpt.) A Llama has no such table, so a model with it
is exported as safetensors alone.
"""

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype, Embedding

NONE = -1  # the token before the first


def tokens_before(token_ids: Tensor) -> Tensor:
    """Returns the token before each in its window, NONE for the first: (..., seq) -> (..., seq)."""
    return torch.cat([torch.full_like(token_ids[..., :1], NONE), token_ids[..., :-1]], dim=-1)


class BigramTable(nn.Module):
    """A vector for each hashed bigram, at first 0: token ids (...), and those before them -> (..., d_model)."""

    def __init__(self, rows: int, d_model: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        if rows < 2:
            raise ValueError(f"bigram_rows is {rows}; it must be at least 2: the first is for a window's first token")
        self.table = Embedding(rows, d_model, device, dtype)
        with torch.no_grad():
            self.table.weight.zero_()

    def forward(self, token_ids: Tensor, before: Tensor) -> Tensor:
        token_ids, before = token_ids.long(), before.long()  # the products overflow an int32
        hashed = 1 + (36313 * token_ids ^ 27191 * before) % (len(self.table.weight) - 1)
        vectors: Tensor = self.table(torch.where(before == NONE, 0, hashed))
        return vectors
