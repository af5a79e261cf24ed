"""Where positions meet: causal multi-head self-attention.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

Written out, so that every step can be read. The position-wise parts are in layers.py, RoPE in positions.py.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype, Linear, RMSNorm
from lm.model.positions import RotaryPositionalEmbedding


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)) along dim, in float32; the maximum is subtracted first, so that exp cannot overflow."""
    x_float = x.float()
    # Softmax does not change when a constant is subtracted, so no gradient has to flow through the maximum.
    exponentials = torch.exp(x_float - x_float.detach().amax(dim=dim, keepdim=True))
    return (exponentials / exponentials.sum(dim=dim, keepdim=True)).to(x.dtype)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q: (..., queries, d_k), k: (..., keys, d_k), v: (..., keys, d_v) -> (..., queries, d_v).

    mask: (..., queries, keys), boolean; True means that the query may attend to the key. A query that may
    attend to nothing has no answer: its row is NaN.
    """
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # (..., queries, keys); scaling q is the smaller product
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return softmax(scores, dim=-1) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every position attends to itself and the past: q, k, v (..., seq, d_k) -> (..., seq, d_k)."""
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    return scaled_dot_product_attention(q, k, v, ones.tril())


def head_width(d_model: int, num_heads: int) -> int:
    """d_k: how many of the d_model features each head has."""
    if d_model % num_heads:
        raise ValueError(f"d_model {d_model} cannot be divided evenly among num_heads {num_heads}")
    return d_model // num_heads


class MultiHeadSelfAttention(nn.Module):
    """Causal self-attention in num_heads subspaces of d_model / num_heads features each (Vaswani et al. 2017).

    rope turns queries and keys, the same way in every head; without it, attention knows no positions. qk_norm scales
    both to the same length before, so that their products cannot grow with them (Henry et al. 2020).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        rope: RotaryPositionalEmbedding | None = None,
        qk_norm: bool = False,
        device: Device = None,
        dtype: Dtype = None,
    ):
        super().__init__()
        d_k = head_width(d_model, num_heads)
        self.num_heads = num_heads
        self.rope = rope
        self.q_proj = Linear(d_model, d_model, device, dtype)
        self.k_proj = Linear(d_model, d_model, device, dtype)
        self.v_proj = Linear(d_model, d_model, device, dtype)
        self.output_proj = Linear(d_model, d_model, device, dtype)
        self.q_norm = RMSNorm(d_k, device=device, dtype=dtype) if qk_norm else None
        self.k_norm = RMSNorm(d_k, device=device, dtype=dtype) if qk_norm else None

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        """x: (..., seq, d_model), token_positions: (seq,) or (..., seq) -> (..., seq, d_model).

        Positions turn queries and keys; what a token may attend to is still what stands before it in x.
        """
        q, k, v = (self.split_heads(features) for features in self.project(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, token_positions), self.rope(k, token_positions)
        heads = self.attend(q, k, v)
        return self.output_proj(heads.transpose(-3, -2).flatten(-2))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes queries, keys and values of all heads, each of x's shape (..., seq, d_model)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v)

    def split_heads(self, x: Tensor) -> Tensor:
        """(..., seq, d_model) -> (..., num_heads, seq, d_k)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def extra_repr(self) -> str:
        d_model = self.output_proj.weight.shape[0]
        return f"d_model={d_model}, num_heads={self.num_heads}, qk_norm={self.q_norm is not None}"
