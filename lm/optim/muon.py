"""Muon: moves a matrix by the same length in each direction of its gradient (Jordan et al. 2024).

    m <- mu m + (1 - mu) g                      u = (1 - mu) g + mu m                     (Nesterov momentum)
    u = U S V^T  ->  o = U V^T                  w <- w - lr weight_decay w - lr 0.2 sqrt(max(rows, columns)) o

The gradient of a matrix is nearly of low rank: a few directions dominate it, and AdamW, which looks at single numbers,
cannot see that. The factor 0.2 sqrt(max(rows, columns)) (Liu et al. 2025) makes a step as large as AdamW's, so that one
learning rate suits both. Muon updates the matrices of the layers; AdamW updates embedding, head and gains.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lm.optim.adamw import AdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's: steep at 0; singular values end near 1, not at it
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Sets all singular values near 1, between 0.7 and 1.2: each matrix U S V^T of (..., rows, columns) -> about U V^T.

    The Newton-Schulz iteration x <- a x + b (x x^T) x + c (x x^T)^2 x changes the singular values alone, and brings all
    in (0, 1] near 1. It consists of matrix products, so bfloat16 will do.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT  # x x^T is the smaller square
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # now no singular value is above 1
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


def muon_update(
    weights: list[Tensor],
    gradients: list[Tensor],
    ms: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
    take: Tensor | None = None,
) -> None:
    """Updates matrices of one shape and their momenta ms, in place; dtype is that of the orthogonalization.

    take: 0-d bool on their device; where it is False, nothing changes, whatever the gradients are.
    """
    step = lr * 0.2 * math.sqrt(max(weights[0].shape))
    keep: Any = 1 - lr * weight_decay
    if take is not None:
        gradients = [torch.where(take, gradient, m) for gradient, m in zip(gradients, ms, strict=True)]
        keep = torch.where(take, keep, 1.0)
    torch._foreach_lerp_(ms, gradients, 1 - momentum)
    updates = orthogonalize(torch.stack(torch._foreach_lerp(gradients, ms, momentum)).to(dtype))
    if take is not None:
        updates = updates * take
    for weight, update in zip(weights, updates, strict=True):
        weight.mul_(keep).sub_(update, alpha=step)


def uses_muon(name: str, weight: Tensor) -> bool:
    """Tells, by its name in the model and its shape, whether a parameter is a matrix of the layers."""
    return "layers" in name.split(".") and weight.ndim == 2


class Muon(AdamW):
    """Muon for the matrices of the layers, AdamW for everything else, with one weight decay.

    named_parameters: a model's. rate: the matrices' learning rate, relative to AdamW's. dtype: that of the
    orthogonalization. adamw: the settings of AdamW.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        momentum: float = 0.95,
        rate: float = 1.0,
        dtype: torch.dtype = torch.float32,
        **adamw: Any,
    ):
        if not 0 < rate < math.inf:
            raise ValueError(f"muon_rate is {rate}; it must be above 0 and finite")
        named = list(named_parameters)
        matrices = [weight for name, weight in named if uses_muon(name, weight)]
        rest = [weight for name, weight in named if not uses_muon(name, weight)]
        super().__init__([{"params": rest}, {"params": matrices, "momentum": momentum}], **adamw)
        self.rate, self.dtype = rate, dtype

    def update(self, group: dict[str, Any]) -> None:
        """Updates one parameter group, matrices of one shape at once."""
        if "momentum" not in group:
            super().update(group)
            return
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:
                    state.update(m=torch.zeros_like(weight))
                by_shape.setdefault(weight.shape, []).append((weight, weight.grad, state["m"]))
        settings = self.rate * group["lr"], group["momentum"], group["weight_decay"]
        for tensors in by_shape.values():
            weights, gradients, ms = map(list, zip(*tensors, strict=True))
            muon_update(weights, gradients, ms, *settings, self.dtype, self.take)
