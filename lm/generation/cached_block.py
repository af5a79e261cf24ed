"""A Transformer block for tokens that come one by one: it keeps the keys and values of the earlier ones.

    keys, values: (batch_size, num_heads, context_length, d_k) for each layer, float32

It computes what TransformerBlock does, laid out for single tokens; decoding.py says which tokens are new, and where
their keys and values go.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.generation.layouts import Product
from lm.generation.program import obstacle
from lm.machine.resources import has_amx
from lm.model.attention import scaled_dot_product_attention
from lm.model.fast import gate_in_place
from lm.model.fast_attention import torch_attention
from lm.model.layers import RMSNorm, SwiGLU
from lm.model.transformer import TransformerBlock


@dataclass
class Places:
    """The places of the new tokens, seq in each of the rows; the same in all layers."""

    rows: slice
    length: int  # of the longest row
    slots: Tensor  # (rows * num_heads * seq,): indices into a layer's keys or values, seen as rows of d_k numbers
    rotations: Tensor | None  # (rows, 1, seq, d_k / 2): RoPE's, as complex numbers
    mask: Tensor | None  # (rows, 1, 1, length), of rows that differ in length: True where a token may attend


class CachedBlock:
    """A TransformerBlock for tokens that come one by one: attn(x, places, values), ffn(x) and the norms."""

    def __init__(self, block: TransformerBlock, keys: Tensor, values: Tensor, laid_out: Sequence[Product]):
        self.keys, self.values = keys, values  # (batch_size, num_heads, context_length, d_k)
        self.ln1, self.ln2 = normalizer(block.ln1), normalizer(block.ln2)
        self.q_norm, self.k_norm = block.attn.q_norm, block.attn.k_norm
        self.activation = None if isinstance(block.ffn, SwiGLU) else block.ffn.activation
        self.pre_norm = block.norm_position == "pre"
        self.qkv, self.output, self.w13, self.w2 = laid_out

    def attn(self, x: Tensor, places: Places, values: Tensor | None) -> Tensor:
        """Attends in float32, the dtype of the cache; a whole window in bfloat16 where x is, and AMX multiplies it."""
        q = self.store(x, places, values)
        k, v = (cache[places.rows, :, : places.length] for cache in (self.keys, self.values))
        whole = q.shape[-2] > 1  # for a whole window, torch's own is faster; heads: (rows, num_heads, seq, d_k)
        if whole and x.dtype == torch.bfloat16 and has_amx():  # other processors attend faster in float32
            q, k, v = (part.to(x.dtype) for part in (q, k, v))
        heads = torch_attention(q, k, v) if whole else scaled_dot_product_attention(q, k, v, places.mask)
        return self.output(heads.transpose(1, 2).flatten(-2).to(x.dtype))

    def store(self, x: Tensor, places: Places, values: Tensor | None) -> Tensor:
        """Adds new keys and values to the cache; returns the queries, (rows, num_heads, seq, d_k).

        values: what is added to the values first, (rows, seq, d_model).
        """
        _, num_heads, _, d_k = self.keys.shape
        qkv: Tensor = torch.unflatten(self.qkv(x).float(), -1, (3, num_heads, d_k))
        if values is not None:
            qkv[..., 2, :, :] += torch.unflatten(values, -1, (num_heads, d_k))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if places.rotations is not None:
            q, k = rotate(q, places.rotations), rotate(k, places.rotations)
        for cache, new in ((self.keys, k), (self.values, v)):
            cache.view(-1, d_k).index_copy_(0, places.slots, new.reshape(-1, d_k))
        return q

    def remember(self, x: Tensor, places: Places, values: Tensor | None) -> None:
        """Adds the keys and values of tokens whose outputs nobody needs."""
        self.store(self.ln1(x) if self.pre_norm and self.ln1 is not None else x, places, values)

    def ffn(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            return self.w2(self.activation(self.w13(x)))
        wide = self.w13(x)
        if can_take(wide):
            from lm.model.kernels.gate import gate

            return self.w2(gate(wide.reshape(-1, wide.shape[-1])).view(*x.shape[:-1], -1))
        return self.w2(gate_in_place(*wide.chunk(2, dim=-1)))


def can_take(x: Tensor) -> bool:
    """Tells whether the kernels compute with numbers such as these."""
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and not obstacle()


def normalizer(layer: RMSNorm | None) -> Callable[[Tensor], Tensor] | None:
    """Returns what computes an RMSNorm fastest: a kernel, which takes one pass, where it can be had."""
    if layer is None or layer.weight.dtype != torch.float32 or not can_take(layer.weight):
        return layer
    from lm.model.kernels.norm import normalize

    return lambda x: normalize(x.float().contiguous(), None, layer.weight.contiguous(), layer.eps, x.dtype)[1]


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Applies RoPE: a pair of features is a complex number, and its rotation a product with e^(i angle)."""
    return torch.view_as_real(torch.view_as_complex(torch.unflatten(x, -1, (-1, 2))) * rotations).flatten(-2)
