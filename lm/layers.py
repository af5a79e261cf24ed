"""The parts of a Transformer that look at one position at a time, and the rotation that tells positions apart.

    Linear      y = x W^T                                       (no bias)
    RMSNorm     y_i = x_i / sqrt(mean(x^2) + eps) * g_i
    SwiGLU      y = W2 (SiLU(W1 x) * W3 x),  SiLU(x) = x sigmoid(x)
    RoPE        (x_2k, x_2k+1) turned by the angle  position / theta^(2k / d_k)

Every module takes any number of leading batch dimensions. What looks at several positions is in attention.py.
"""

import math

import torch
from torch import Tensor, nn

from lm.fast import embed, joint_product


def truncated_normal(shape: tuple[int, ...], std: float, device=None, dtype=None) -> nn.Parameter:
    """A parameter drawn from N(0, std^2), cut at three standard deviations (handout, section 3)."""
    weight = torch.empty(shape, device=device, dtype=dtype)
    return nn.Parameter(nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std))


class Linear(nn.Module):
    """(..., in_features) -> (..., out_features); the weight is stored (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, device=None, dtype=None):
        super().__init__()
        std = math.sqrt(2 / (in_features + out_features))
        self.weight = truncated_normal((out_features, in_features), std, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Embedding(nn.Module):
    """Token ids (...) -> vectors (..., embedding_dim): one row of the weight per id."""

    def __init__(self, num_embeddings: int, embedding_dim: int, device=None, dtype=None):
        super().__init__()
        self.weight = truncated_normal((num_embeddings, embedding_dim), 1.0, device, dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        return embed(self.weight, token_ids)  # self.weight[token_ids], repeatably


class RMSNorm(nn.Module):
    """Scales each vector to root mean square 1, then by a learned gain (Zhang and Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x_float = x.float()  # the square of a half-precision number overflows early
        scale = torch.rsqrt(x_float.square().mean(dim=-1, keepdim=True) + self.eps)
        return (x_float * scale * self.weight).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class SwiGLU(nn.Module):
    """The gated feed-forward network (Shazeer 2020): (..., d_model) -> (..., d_model).

    joint computes the products with W1 and W3 as one.
    """

    joint = False

    def __init__(self, d_model: int, d_ff: int, device=None, dtype=None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device, dtype)
        self.w2 = Linear(d_ff, d_model, device, dtype)
        self.w3 = Linear(d_model, d_ff, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.joint:
            gate, value = joint_product(x, self.w1.weight, self.w3.weight)
        else:
            gate, value = self.w1(x), self.w3(x)
        return self.w2(silu(gate) * value)

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        """8/3 d_model, as a multiple of 64: as many weights as the usual two matrices of 4 d_model."""
        return max(64, round(8 / 3 * d_model / 64) * 64)


class SiLUFeedForward(nn.Module):
    """The ablation without a gate: y = W2 SiLU(W1 x) (handout, section 7)."""

    def __init__(self, d_model: int, d_ff: int, device=None, dtype=None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device, dtype)
        self.w2 = Linear(d_ff, d_model, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)))

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        return 4 * d_model


class RotaryPositionalEmbedding(nn.Module):
    """Turns each pair of neighbouring features by an angle that grows with the position (Su et al. 2021).

    The dot product of two turned vectors depends on the distance of their positions alone. The pairs are
    interleaved, (0, 1), (2, 3) and so on, as in the paper; Hugging Face's Llama pairs i with i + d_k / 2.
    The tables are buffers that no checkpoint holds: they follow from theta, d_k and max_seq_len.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, theta: float, d_k: int, max_seq_len: int, device=None):
        super().__init__()
        if d_k % 2:
            raise ValueError(f"d_k is {d_k}: rotary embeddings turn pairs of features, so it must be even")
        if not 0 < theta < math.inf:
            raise ValueError(f"theta is {theta}; the base of the wavelengths must be a number above 0")
        self.theta = theta
        # float64, because at position 100,000 a float32 angle is off by 0.004
        frequencies = theta ** (-torch.arange(0, d_k, 2, dtype=torch.float64, device=device) / d_k)
        positions = torch.arange(max_seq_len, dtype=torch.float64, device=device)
        angles = torch.outer(positions, frequencies)  # (max_seq_len, d_k / 2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor) -> Tensor:
        """x: (..., seq, d_k), token_positions: (..., seq) -> (..., seq, d_k)."""
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)
