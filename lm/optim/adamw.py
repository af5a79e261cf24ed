"""AdamW: gradients become better weights, by two running means of each (handout, section 4).

    m <- b1 m + (1 - b1) g                      a_t = lr sqrt(1 - b2^t) / (1 - b1^t)
    v <- b2 v + (1 - b2) g^2                    w  <- w - lr weight_decay w - a_t m / (sqrt(v) + eps)

The decay comes first, as in the paper (Loshchilov and Hutter 2019) and in PyTorch. How the learning rate moves
during training is in schedule.py, the bound on the whole gradient in clipping.py.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lm.machine.compiling import compile_or_run

MIN_EPS = 2.0**-126  # the smallest normal float32; a processor may take less for 0


def adamw_update(
    weight: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step, in place, on one tensor and its two moments, all of one shape; t counts from 1."""
    beta1, beta2 = betas
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    weight.mul_(1 - lr * weight_decay)
    weight.addcdiv_(m, v.sqrt().add_(eps), value=-step_size)


def adamw_update_all(
    weights: list[Tensor],
    gradients: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    take: Tensor | None = None,
) -> None:
    """The same for many tensors at once: on a GPU a handful of kernels instead of six for each tensor.

    take: 0-d bool on their device; where it is False, whatever the gradients are, nothing changes.
    """
    shares: list[Any] = [betas[0], betas[1], 1 - lr * weight_decay]  # that m, v and weights keep of themselves
    if take is not None:
        shares = [torch.where(take, share, 1.0) for share in shares]
        gradients = [torch.where(take, gradient, 0.0) for gradient in gradients]
    torch._foreach_mul_(ms, shares[0])
    torch._foreach_add_(ms, gradients, alpha=1 - betas[0])
    torch._foreach_mul_(vs, shares[1])
    torch._foreach_addcmul_(vs, gradients, gradients, value=1 - betas[1])
    denominators = torch._foreach_sqrt(vs)
    torch._foreach_add_(denominators, eps)
    if take is not None:
        torch._foreach_div_(denominators, take.float())  # by 0: an update of m / inf
    torch._foreach_mul_(weights, shares[2])
    step_size = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    torch._foreach_addcdiv_(weights, ms, denominators, value=-step_size)


def adamw_pass(
    weights: list[Tensor],
    gradients: list[Tensor],
    ms: list[Tensor],
    vs: list[Tensor],
    decay: Tensor,
    step_size: Tensor,
    take: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """The same again for torch.compile, which makes one pass over each tensor of it.

    decay, step_size: 1 - lr weight_decay and a_t; 0-d tensors as take is, for a number would be compiled into it.
    """
    for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
        new_m = betas[0] * m + (1 - betas[0]) * gradient
        new_v = betas[1] * v + (1 - betas[1]) * gradient * gradient
        new_weight = decay * weight - step_size * new_m / (new_v.sqrt() + eps)
        for old, new in ((m, new_m), (v, new_v), (weight, new_weight)):
            old.copy_(torch.where(take, new, old))


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, over every parameter that has a gradient.

    together: all tensors at once, or one after another; None chooses by device: a GPU pays for every operation it is
    given, while a CPU was faster with one tensor at a time, which stays in its cache. compiled: at once, by
    torch.compile.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        together: bool | None = None,
        compiled: bool = False,
    ):
        if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf):
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must be finite, and not negative")
        if not MIN_EPS <= eps < math.inf:
            raise ValueError(
                f"eps is {eps}; it must be finite, and at least {MIN_EPS:.2g}: what has no gradient is divided by it"
            )
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.together = together
        self.compiled_pass = torch.compile(adamw_pass, backend=compile_or_run, dynamic=False) if compiled else None
        self.take: Tensor | None = None  # 0-d bool on the device: where it is False, a step changes no tensor

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:  # Lightning computes loss and gradients in here
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update(group)
        return loss

    def update(self, group: dict[str, Any]) -> None:
        settings = group["lr"], group["betas"], group["eps"], group["weight_decay"]
        by_age: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:  # its t stays behind that of the others
                continue
            state = self.state[weight]
            if not state:
                state.update(t=0, m=torch.zeros_like(weight), v=torch.zeros_like(weight))
            state["t"] += 1
            by_age.setdefault(state["t"], []).append((weight, weight.grad, state["m"], state["v"]))
        for t, tensors in by_age.items():
            if self.compiled_pass is not None:
                self.update_compiled(t, tensors, *settings)
                continue
            together = tensors[0][0].device.type != "cpu" if self.together is None else self.together
            if together or self.take is not None:
                weights, gradients, ms, vs = map(list, zip(*tensors, strict=True))
                adamw_update_all(weights, gradients, ms, vs, t, *settings, self.take)
            else:
                for weight, gradient, m, v in tensors:
                    adamw_update(weight, gradient, m, v, t, *settings)

    def update_compiled(
        self,
        t: int,
        tensors: list[tuple[Tensor, Tensor, Tensor, Tensor]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        device = tensors[0][0].device
        take = torch.ones((), dtype=torch.bool, device=device) if self.take is None else self.take
        decay = torch.full((), 1 - lr * weight_decay, device=device)
        step_size = torch.full((), lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t), device=device)
        self.compiled_pass(*map(list, zip(*tensors, strict=True)), decay, step_size, take, betas, eps)  # type: ignore
