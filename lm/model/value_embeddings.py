"""Value embeddings: each layer adds to attention's values a learned vector of the token.

    v_t = W_v h_t + U_l[token_t]        in layer l, with a table U_l of its own, at first 0

What attention moves from one position to another is made of the residual stream, which must carry the token itself
beside all that blocks have added to it. Here a table tells each layer what to move for a token, at the cost of one row
and of no product; the stream is free for the rest. (Zhou et al. 2024, "Value Residual Learning", arXiv 2410.17897, add
the first layer's values to all later ones; tables in their place are of modded-nanogpt, 2024, which scales them by
learned numbers. A table at 0 needs none.) A Llama has no such tables, so a model with them
is exported as safetensors alone.
"""

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype, Embedding


class ValueEmbeddings(nn.Module):
    """A table of vectors for each layer, at first 0: token ids (...) and a layer's number -> (..., d_model)."""

    def __init__(self, rows: int, d_model: int, num_layers: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.tables = nn.ModuleList(Embedding(rows, d_model, device, dtype) for _ in range(num_layers))
        with torch.no_grad():
            for table in self.parameters():
                table.zero_()

    def forward(self, token_ids: Tensor, layer: int) -> Tensor:
        vectors: Tensor = self.tables[layer](token_ids)
        return vectors
