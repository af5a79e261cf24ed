"""Causal multi-head self-attention: each position gathers what it needs from itself and the positions before it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V

Every step is written out, to be read. The layers that look at one position at a time are in layers.py, rotary
embeddings in positions.py.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.layers import Device, Dtype, Linear, RMSNorm
from lm.model.positions import RotaryPositionalEmbedding


def softmax(x: Tensor, dim: int) -> Tensor:
    """Computes exp(x) / sum(exp(x)) along dim, in float32; the result has the shape and dtype of x.

    The maximum is subtracted first, so that exp cannot overflow.
    """
    x_float = x.float()
    # Softmax does not change when a constant is subtracted, so no gradient has to flow through the maximum.
    exponentials = torch.exp(x_float - x_float.detach().amax(dim=dim, keepdim=True))
    return (exponentials / exponentials.sum(dim=dim, keepdim=True)).to(x.dtype)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Averages the values, weighted by how well each key matches the query: the equation above.

    q: (..., queries, d_k), k: (..., keys, d_k), v: (..., keys, d_v) -> (..., queries, d_v).
    mask: (..., queries, keys), boolean; True means that the query may attend to the key. A query that may attend to
    no key gets a row of NaN.
    """
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # (..., queries, keys); q is scaled as it is the smaller tensor
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return softmax(scores, dim=-1) @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Lets each position attend to itself and those before it: q, k, v (..., seq, d_k) -> (..., seq, d_k)."""
    ones = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device)
    return scaled_dot_product_attention(q, k, v, ones.tril())


def head_width(d_model: int, num_heads: int) -> int:
    """Returns d_k, the number of features in each head; ValueError where num_heads does not divide d_model."""
    if d_model % num_heads:
        raise ValueError(f"d_model {d_model} cannot be divided evenly among num_heads {num_heads}")
    return d_model // num_heads


class MultiHeadSelfAttention(nn.Module):
    """Causal self-attention by num_heads heads of d_model / num_heads features each (Vaswani et al. 2017).

    rope rotates queries and keys, in every head alike; without it, only the causal mask tells positions apart. qk_norm
    normalizes each query and key first, so that long ones cannot make the scores large (Henry et al. 2020).
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

    def forward(self, x: Tensor, token_positions: Tensor, values: Tensor | None = None) -> Tensor:
        """Attends: x (..., seq, d_model), token_positions (seq,) or (..., seq) -> (..., seq, d_model).

        The positions set the rotation alone; a token attends to itself and what precedes it in x, whatever they are.
        values: what is added to the values of all heads, of x's shape (value_embeddings.py).
        """
        q, k, v = self.project(x)
        v = v if values is None else v + values.to(v.dtype)  # which may be float32 under autocast
        q, k, v = (self.split_heads(features) for features in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, token_positions), self.rope(k, token_positions)
        heads = self.attend(q, k, v)
        output: Tensor = self.output_proj(heads.transpose(-3, -2).flatten(-2))
        return output

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the queries, keys and values of all heads, each of x's shape (..., seq, d_model)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Applies causal attention in each head: q, k, v (..., num_heads, seq, d_k) -> the same shape."""
        return causal_attention(q, k, v)

    def split_heads(self, x: Tensor) -> Tensor:
        """Gives each head its features: (..., seq, d_model) -> (..., num_heads, seq, d_k)."""
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(-3, -2)

    def extra_repr(self) -> str:
        d_model = self.output_proj.weight.shape[0]
        return f"d_model={d_model}, num_heads={self.num_heads}, qk_norm={self.q_norm is not None}"
