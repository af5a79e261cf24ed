"""Muon: moves a matrix by the same length in each direction of its gradient (Jordan et al. 2024).

    m <- mu m + (1 - mu) g                      u = (1 - mu) g + mu m                     (Nesterov momentum)
    u = U S V^T  ->  o = U V^T                  w <- w - lr weight_decay w - lr 0.2 sqrt(max(rows, columns)) o

The gradient of a matrix is nearly of low rank: a few directions dominate it, and AdamW, which looks at single numbers,
cannot see that. The factor 0.2 sqrt(max(rows, columns)) (Liu et al. 2025) makes a step as large as AdamW's, so that one
learning rate suits both. Muon updates the matrices of the layers; AdamW updates embedding, head and gains. How o is
computed is in orthogonalization.py. Two options:

    NorMuon             v_r <- 0.95 v_r + 0.05 mean(o_r^2)         o_r <- o_r / sqrt(v_r), then |o| <- |U V^T|
    cautious decay      w decays only where o w >= 0, towards which the step pulls it anyway

The rows of o, each the weights of one neuron, differ in length; NorMuon (Li et al. 2025, arXiv 2510.05491) divides each
by a running mean; |U V^T| = sqrt(min(rows, columns)). Decay that works against the step is left out by Chen et al. 2025
(arXiv 2510.12402).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lm.optim.adamw import AdamW, factor_dtype
from lm.optim.orthogonalization import JORDAN, Iteration, orthogonalize

BETA2 = 0.95  # NorMuon's
TINY = 1e-8  # keeps divisions finite where a gradient is 0


def muon_update(
    weights: list[Tensor],
    gradients: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    *,
    iteration: Iteration = JORDAN,
    cautious: bool = False,
    dtype: torch.dtype = torch.float32,
    take: Tensor | None = None,
) -> None:
    """Updates matrices of one shape and their state, in place.

    ms: their momenta. vs: NorMuon's means, (rows, 1) each; without any, it is plain Muon. dtype: that of the
    orthogonalization. take: 0-d bool on their device; where it is False, nothing changes, whatever the gradients are.
    """
    step = lr * 0.2 * math.sqrt(max(weights[0].shape))
    keep: Any = 1 - lr * weight_decay
    one = torch.ones((), dtype=factor_dtype(weights), device=weights[0].device)
    if take is not None:
        gradients = [torch.where(take, gradient, m) for gradient, m in zip(gradients, ms, strict=True)]
        keep = torch.where(take, keep, one)
    torch._foreach_lerp_(ms, gradients, 1 - momentum)
    updates = orthogonalize(torch.stack(torch._foreach_lerp(gradients, ms, momentum)).to(dtype), iteration)
    if vs:
        updates = normalize_rows(updates.to(weights[0].dtype), vs, take)
    if take is not None:
        updates = updates * take
    for weight, update in zip(weights, updates, strict=True):
        weight.mul_(torch.where(update * weight >= 0, keep, one) if cautious else keep).sub_(update, alpha=step)


def normalize_rows(updates: Tensor, vs: list[Tensor], take: Tensor | None = None) -> Tensor:
    """Divides rows by the root of their mean square's running mean, and keeps each matrix as long as an orthogonal one.

    updates: (matrices, rows, columns) -> the same shape. vs: the running means, (rows, 1) for each matrix, updated in
    place where take is not False.
    """
    old, squares = torch.stack(vs), updates.square().mean(dim=-1, keepdim=True)
    new = old.lerp(squares, 1 - BETA2)
    torch._foreach_copy_(vs, list(new if take is None else torch.where(take, new, old)))
    updates = updates / (new.sqrt() + TINY)
    length = math.sqrt(min(updates.shape[-2:]))
    scaled: Tensor = updates * (length / (torch.linalg.matrix_norm(updates, keepdim=True) + TINY))
    return scaled


def uses_muon(name: str, weight: Tensor) -> bool:
    """Tells, by its name in the model and its shape, whether a parameter is a matrix of the layers."""
    return "layers" in name.split(".") and weight.ndim == 2


class Muon(AdamW):
    """Muon for the matrices of the layers, AdamW for everything else, with one weight decay.

    named_parameters: a model's. rate: the matrices' learning rate, relative to AdamW's. iteration, dtype: of the
    orthogonalization. normalize: whether it is NorMuon. cautious: whether the matrices decay cautiously. adamw: the
    settings of AdamW.
    """

    own = *AdamW.own, "rate", "normalize", "how"

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        momentum: float = 0.95,
        rate: float = 1.0,
        dtype: torch.dtype = torch.float32,
        iteration: Iteration = JORDAN,
        normalize: bool = False,
        cautious: bool = False,
        **adamw: Any,
    ):
        if not 0 < rate < math.inf:
            raise ValueError(f"muon_rate is {rate}; it must be above 0 and finite")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be at least 0 and below 1")
        named = list(named_parameters)
        matrices = [weight for name, weight in named if uses_muon(name, weight)]
        rest = [weight for name, weight in named if not uses_muon(name, weight)]
        super().__init__([{"params": rest}, {"params": matrices, "momentum": momentum}], **adamw)
        self.rate, self.normalize = rate, normalize
        self.how: dict[str, Any] = {"iteration": iteration, "cautious": cautious, "dtype": dtype}

    def update(self, group: dict[str, Any]) -> None:
        """Updates one parameter group, matrices of one shape at once."""
        if "momentum" not in group:
            super().update(group)
            return
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        settings = self.rate * group["lr"], group["momentum"], group["weight_decay"]
        for weights in by_shape.values():
            states = [self.state_of(weight) for weight in weights]
            gradients, ms = [weight.grad for weight in weights], [state["m"] for state in states]
            vs = [state["v"] for state in states if self.normalize]
            muon_update(weights, gradients, ms, vs, *settings, **self.how, take=self.take)  # type: ignore[arg-type]

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Returns a matrix's momentum m and, for NorMuon, the running means v of its rows."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state.update(m=torch.zeros_like(weight))
            if self.normalize:
                state.update(v=weight.new_zeros(len(weight), 1))
        return state
