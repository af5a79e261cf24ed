"""Modules that compute by our own kernels on a CPU, between products that are torch's; fast.py installs them.

    KernelNorm            an RMSNorm in one pass, with the addition before it
    KernelAttention       attention with its projections as one operator (fast_sublayers.py)
    KernelSwiGLU          the feed-forward network as one operator
    KernelBlock           joins each addition with the norm that follows it
    KernelTransformerLM   softmax, loss and gradient of the logits in one pass (fast_head.py)

What the kernels do not know (float16, a GPU, normalized queries, plain attention, a layer that somebody has hooked into
or replaced), they leave to the fast module that they extend. KernelTransformerLM.hidden_states repeats that of
TransformerLM: what is added there must be added here, or left to the fast module.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lm.machine.torch_inside import is_watched
from lm.model.attention import MultiHeadSelfAttention
from lm.model.fast import FastAttention, FastSwiGLU, FastTransformerLM
from lm.model.fast_head import kernel_cross_entropy
from lm.model.fast_sublayers import add_normalize, normalize, self_attention, swiglu
from lm.model.layers import RMSNorm, SwiGLU
from lm.model.plain_products import is_as_made, may_read, products_dtype
from lm.model.positions import RotaryPositionalEmbedding
from lm.model.transformer import TransformerBlock, TransformerLM

DTYPES = (torch.float32, torch.bfloat16)


def are_known(*tensors: Tensor) -> bool:
    """Whether the kernels compute with these tensors."""
    return all(tensor.is_cpu and tensor.dtype in DTYPES for tensor in tensors)


class KernelNorm(RMSNorm):
    """An RMSNorm in one pass over memory."""

    def forward(self, x: Tensor, added: Tensor | None = None, dtype: torch.dtype | None = None) -> Any:
        """Normalizes x, and rounds the result to this dtype; if something is `added` first, returns the sum, too."""
        known = are_known(x, *(() if added is None else (added,))) and dtype in (None, *DTYPES)
        if not (known and x.dtype == self.weight.dtype == torch.float32):
            total = x if added is None else x + added
            return super().forward(total) if added is None else (total, super().forward(total))
        if added is None:
            return normalize(x, self.weight, self.eps, dtype or x.dtype)[0]
        return add_normalize(x, added, self.weight, self.eps, dtype or x.dtype)[:2]


class KernelAttention(FastAttention):
    """Attention, from the product with the input to that with the output, as one operator."""

    def forward(self, x: Tensor, token_positions: Tensor, values: Tensor | None = None) -> Tensor:
        if not (x.ndim == 3 and token_positions.shape == x.shape[1:2] and self.is_one_operator(x)):
            return super().forward(x, token_positions, values)
        h, weights = x.to(products_dtype(x)), self.weights
        if not are_known(h, *weights, *(() if values is None else (values,))):
            return super().forward(x, token_positions, values)
        angles = [h.new_empty(0, dtype=torch.float32)] * 2
        if self.rope is not None:
            angles = [table.index_select(0, token_positions).float() for table in (self.rope.cos, self.rope.sin)]
        a: Tensor = self_attention(h, *weights, values, *angles, self.num_heads, self.attention == "sdpa")[0]
        return a

    @property
    def weights(self) -> list[Tensor]:
        return [projection.weight for projection in (self.q_proj, self.k_proj, self.v_proj, self.output_proj)]

    def is_one_operator(self, x: Tensor) -> bool:
        """Whether the operator knows this attention, of which each head has queries, keys and values of its own."""
        as_made = self.rope is None or is_as_made(self.rope, RotaryPositionalEmbedding)
        if not (as_made and may_read(x, self.q_proj, self.k_proj, self.v_proj, self.output_proj)):
            return False
        weights = self.weights
        same = all(weight.shape == weights[0].shape for weight in weights)
        even = len(weights[0]) // self.num_heads % 2 == 0  # features are rotated in pairs
        return self.attention in ("blocks", "sdpa") and self.q_norm is None and same and even


class KernelSwiGLU(FastSwiGLU):
    """The gated feed-forward network as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        if not may_read(x, self.w1, self.w2, self.w3):
            return super().forward(x)
        h, weights = x.to(products_dtype(x)), (self.w1.weight, self.w2.weight, self.w3.weight)
        f: Tensor = swiglu(h, *weights)[0] if are_known(h, *weights) else super().forward(x)
        return f


class KernelBlock(TransformerBlock):
    """A block that adds and normalizes in one pass, and rounds at once what one product reads."""

    def forward(self, x: Tensor, token_positions: Tensor, values: Tensor | None = None) -> Tensor:
        if self.norm_position != "pre" or self.has_watched_norms:
            return super().forward(x, token_positions, values)
        x, f = self.without_last_addition(x, None, token_positions, values)
        return x + f

    @property
    def is_watched(self) -> bool:
        """Whether somebody has hooked into the block or one of its norms."""
        return is_watched(self) or self.has_watched_norms

    @property
    def has_watched_norms(self) -> bool:
        return any(norm is not None and is_watched(norm) for norm in (self.ln1, self.ln2))

    def without_last_addition(
        self, x: Tensor, added: Tensor | None, positions: Tensor, values: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the residual stream and what is to be added to it, from the same two of the block before."""
        assert self.ln1 is not None
        assert self.ln2 is not None
        dtype = products_dtype(x)
        # Where several products read the norm, their gradients are summed, for which bfloat16 is too coarse.
        one = dtype != x.dtype and isinstance(self.attn, KernelAttention) and self.attn.is_one_operator(x)
        normed = self.ln1(x, added, dtype if one else None)
        x, h = (x, normed) if added is None else normed
        x, h = self.ln2(x, self.attn(h, positions, values), dtype)
        return x, self.ffn(h)


class KernelTransformerLM(FastTransformerLM):
    """A model whose loss and the logits' gradient are computed in one pass over the logits."""

    def hidden_states(self, token_ids: Tensor) -> Tensor:
        additions = self.bigrams is not None or self.skips is not None
        plain = self.settings["norm_position"] != "pre" or additions or self.recompute
        # A block or norm with a hook must be called as a module, as all are in evaluation (monitoring/callbacks.py).
        plain = plain or not self.training or token_ids.shape[-1] > self.context_length
        watched = any(block.is_watched for block in self.layers)
        if plain or watched or self.ln_final is None or is_watched(self.ln_final):
            return super().hidden_states(token_ids)
        positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
        x, added = self.embed(token_ids), None
        for number, block in enumerate(self.layers):
            values = None if self.value_embeddings is None else self.value_embeddings(token_ids, number)
            x, added = block.without_last_addition(x, added, positions, values)  # type: ignore[operator]
        h: Tensor = self.ln_final(x, added, products_dtype(x))[1]
        return h

    def loss(self, x: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        known = products_dtype(x) in DTYPES and targets.dtype == torch.int64 and may_read(x, self.lm_head)
        if not (known and are_known(x, self.lm_head.weight)):
            return super().loss(x, targets, z_loss)
        return kernel_cross_entropy(x, self.lm_head.weight, targets, self.vocab_size, z_loss)


WITH_KERNELS: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: KernelNorm,
    MultiHeadSelfAttention: KernelAttention,
    SwiGLU: KernelSwiGLU,
    TransformerBlock: KernelBlock,
    TransformerLM: KernelTransformerLM,
}
