"""Dropout: in training, some numbers of each vector are set to 0, different ones in each step, and the rest scaled up.

    y_i = x_i m_i / (1 - share),  m_i = 0 with probability share, else 1

No number can be relied on, so the model learns a text by heart more slowly (Srivastava et al. 2014). As in GPT-2, what
the embedding, each attention and each feed-forward network adds to the residual stream is dropped. In evaluation the
model is computed as without dropout, and its weights are a plain model's.

Masks are a function of a batch's number, like the batch itself, so a resumed run draws the masks that it would have
drawn. All masks of a batch are drawn at once, before the forward pass, which may be compiled, and in part repeated.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lm.model.transformer import TransformerLM

STREAM = 0x0D20  # keeps the masks' random words apart from those of the windows
HALVES = 1 << 16  # the values of 16 random bits
MOST = 1 - 1 / HALVES  # that can be dropped


class Dropout:
    """Drops a share of the numbers that a model's parts add to the residual stream; nothing before `draw` is called."""

    def __init__(self, model: TransformerLM, share: float):
        self.share, self.masks = share, torch.empty(0, dtype=torch.bool)
        parts: list[nn.Module] = [model.token_embeddings]
        for block in model.layers:
            parts += [block.attn, block.ffn]  # type: ignore[list-item]
        self.width, self.num_parts = model.token_embeddings.weight.shape[1], len(parts)
        for number, part in enumerate(parts):
            part.register_forward_hook(partial(self._drop, number))

    def draw(self, seed: int, batch: int, shape: torch.Size, device: torch.device) -> None:
        """Draws the masks of a batch of token ids of this shape. seed: the run's; batch: its number in the run."""
        word = np.random.SeedSequence((seed, batch, STREAM)).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device).manual_seed(int(word) >> 1)
        count = self.num_parts * shape.numel() * self.width
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
        halves = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
        self.masks = (halves >= round(self.share * HALVES) - HALVES // 2).view(self.num_parts, *shape, self.width)

    def _drop(self, number: int, part: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not part.training or not len(self.masks):
            return None
        return torch.where(self.masks[number], output / (1 - self.share), 0)
