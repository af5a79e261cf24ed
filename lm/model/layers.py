"""The layers of a Transformer that look at one position at a time.

    Linear      y = x W^T                                       (no bias)
    RMSNorm     y_i = x_i / sqrt(mean(x^2) + eps) * g_i
    SwiGLU      y = W2 (SiLU(W1 x) * W3 x),  SiLU(x) = x sigmoid(x)

Every module takes any number of leading batch dimensions. How positions are encoded is in positions.py; what looks at
several positions at once is in attention.py.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

Device: TypeAlias = torch.device | str | None
Dtype: TypeAlias = torch.dtype | None


def truncated_normal(shape: tuple[int, ...], std: float, device: Device = None, dtype: Dtype = None) -> nn.Parameter:
    """Draws a parameter from N(0, std^2), truncated at three standard deviations (handout, section 3)."""
    weight = torch.empty(shape, device=device, dtype=dtype)
    if not weight.is_meta:  # torch 2.11 would import torch._dynamo to fill what has no memory
        precise = weight.to(torch.promote_types(weight.dtype, torch.float32))  # its bfloat16 would have no tails
        weight = nn.init.trunc_normal_(precise, std=std, a=-3 * std, b=3 * std).to(weight.dtype)
    return nn.Parameter(weight)


class Linear(nn.Module):
    """The product y = x W^T: (..., in_features) -> (..., out_features), with W of (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        std = math.sqrt(2 / (in_features + out_features))
        self.weight = truncated_normal((out_features, in_features), std, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def extra_repr(self) -> str:
        return "in_features={1}, out_features={0}".format(*self.weight.shape)


class Embedding(nn.Module):
    """A table with a vector for each token: token ids (...) -> (..., embedding_dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.weight = truncated_normal((num_embeddings, embedding_dim), 1.0, device, dtype)

    def forward(self, token_ids: Tensor) -> Tensor:
        # The same as weight[token_ids], but on a CPU its gradient is summed in a fixed order: a run can be repeated.
        rows = self.weight.index_select(0, token_ids.flatten())
        return rows.view(*token_ids.shape, self.weight.shape[-1])

    def extra_repr(self) -> str:
        return "num_embeddings={}, embedding_dim={}".format(*self.weight.shape)


class RMSNorm(nn.Module):
    """Scales each vector to a root mean square of 1, then by a learned gain (Zhang and Sennrich 2019)."""

    def __init__(self, d_model: int, eps: float = 1e-5, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x_float = x.float()  # the square of a half-precision number overflows early
        scale = torch.rsqrt(x_float.square().mean(dim=-1, keepdim=True) + self.eps)
        return (x_float * scale * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"d_model={len(self.weight)}, eps={self.eps}"


def silu(x: Tensor) -> Tensor:
    """Computes x sigmoid(x), element by element."""
    return x * torch.sigmoid(x)


class SwiGLU(nn.Module):
    """The gated feed-forward network (Shazeer 2020): (..., d_model) -> (..., d_model)."""

    def __init__(self, d_model: int, d_ff: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device, dtype)
        self.w2 = Linear(d_ff, d_model, device, dtype)
        self.w3 = Linear(d_model, d_ff, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(silu(self.w1(x)) * self.w3(x))
        return y

    def extra_repr(self) -> str:
        return "d_model={1}, d_ff={0}".format(*self.w1.weight.shape)

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        """Returns 8/3 d_model, rounded to a multiple of 64: about as many weights as two matrices of 4 d_model."""
        return max(64, round(8 / 3 * d_model / 64) * 64)


def squared_relu(x: Tensor) -> Tensor:
    """Computes max(x, 0)^2, element by element (So et al. 2021, "Primer")."""
    return torch.relu(x).square()


class UngatedFeedForward(nn.Module):
    """A feed-forward network without a gate: y = W2 activation(W1 x), (..., d_model) -> (..., d_model)."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, d_model: int, d_ff: int, device: Device = None, dtype: Dtype = None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device, dtype)
        self.w2 = Linear(d_ff, d_model, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w2(self.activation(self.w1(x)))
        return y

    def extra_repr(self) -> str:
        return "d_model={1}, d_ff={0}".format(*self.w1.weight.shape)

    @staticmethod
    def default_d_ff(d_model: int) -> int:
        """Returns 4 d_model."""
        return 4 * d_model


class SiLUFeedForward(UngatedFeedForward):
    """The feed-forward network with SiLU and no gate, an ablation (handout, section 7)."""

    activation = staticmethod(silu)


class ReLU2FeedForward(UngatedFeedForward):
    """The feed-forward network with a squared ReLU and no gate. No Llama has it."""

    activation = staticmethod(squared_relu)
