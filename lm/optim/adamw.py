"""AdamW: moves each weight by running means of its gradient and of its gradient's square (handout, section 4).

    m <- b1 m + (1 - b1) g                      a_t = lr sqrt(1 - b2^t) / (1 - b1^t)
    v <- b2 v + (1 - b2) g^2                    w  <- w - lr weight_decay w - a_t m / (sqrt(v) + eps)

The decay comes first, as in the paper (Loshchilov and Hutter 2019) and in PyTorch. The learning rate of each step is in
schedule.py, the bound on the gradient's norm in clipping.py.
"""

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lm.machine.compiling import compile_or_run
from lm.optim.kernel_loading import kernel_for

MIN_EPS = 2.0**-126  # the smallest normal float32; a processor may round anything smaller to 0


def factor_dtype(weights: list[Tensor]) -> torch.dtype:
    """Returns the dtype in which a factor of all these weights is precise enough."""
    return torch.float64 if any(weight.dtype == torch.float64 for weight in weights) else torch.float32


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
    """Updates one weight and its moments m and v, in place; all have one shape. t is the number of the step, from 1."""
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
    """Does adamw_update to a list of weights at once: on a GPU a handful of kernels, instead of six for each weight.

    take: 0-d bool on their device; where it is False, nothing changes, whatever the gradients are.
    """
    factors: list[Any] = [betas[0], betas[1], 1 - lr * weight_decay]  # of the old m, v and weights
    if take is not None:
        one = torch.ones((), dtype=factor_dtype(weights), device=take.device)
        factors = [torch.where(take, factor, one) for factor in factors]
        gradients = [torch.where(take, gradient, 0.0) for gradient in gradients]
    torch._foreach_mul_(ms, factors[0])
    torch._foreach_add_(ms, gradients, alpha=1 - betas[0])
    torch._foreach_mul_(vs, factors[1])
    torch._foreach_addcmul_(vs, gradients, gradients, value=1 - betas[1])
    denominators = torch._foreach_sqrt(vs)
    torch._foreach_add_(denominators, eps)
    if take is not None:
        torch._foreach_div_(denominators, take.float())  # by 0 where not taken: the update is m / inf
    torch._foreach_mul_(weights, factors[2])
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
    """Does adamw_update_all in a form that torch.compile turns into one pass over each tensor.

    decay, step_size: 1 - lr weight_decay and a_t. Like take they are 0-d tensors: numbers would become constants of the
    compiled code, which each step would then compile anew.
    """
    for weight, gradient, m, v in zip(weights, gradients, ms, vs, strict=True):
        new_m = betas[0] * m + (1 - betas[0]) * gradient
        new_v = betas[1] * v + (1 - betas[1]) * gradient * gradient
        new_weight = decay * weight - step_size * new_m / (new_v.sqrt() + eps)
        for old, new in ((m, new_m), (v, new_v), (weight, new_weight)):
            old.copy_(torch.where(take, new, old))


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, for every parameter that has a gradient.

    foreach: updates all tensors at once (True) or one after another (False). None chooses by device: a GPU pays for
    each operation that it is given, while a CPU was faster with one tensor at a time, which stays in its cache.
    compiled: updates all at once, by torch.compile. kernel: updates what is in float32 on a CPU in one pass over
    memory, by adamw_kernel.py, where that can be compiled. Raises ValueError for a setting out of its range.
    """

    own: tuple[str, ...] = ("foreach", "compiled", "kernel", "take", "rates")  # attributes that a copy has, too

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        foreach: bool | None = None,
        compiled: bool = False,
        kernel: bool = False,
    ):
        if not (0 <= lr < math.inf and 0 <= weight_decay < math.inf):
            raise ValueError(f"lr is {lr} and weight_decay {weight_decay}; both must be finite and not negative")
        if not MIN_EPS <= eps < math.inf:
            raise ValueError(
                f"eps is {eps}; it must be finite and at least {MIN_EPS:.2g}: a weight without a gradient divides by it"
            )
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; each must be at least 0 and below 1, and there are two")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.foreach, self.compiled, self.kernel = foreach, compiled, kernel
        # 0-d bool on the device: where it is False, a step changes no tensor. Its t counts on, since only the device
        # knows; on a CPU a step that is skipped has no gradients, and is not counted.
        self.take: Tensor | None = None
        self.rates: dict[Tensor, float] = {}  # parameters' learning rates, as multiples of their group's; 1 unless here

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; ValueError for an eps that its parameters' dtype cannot hold."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for dtype in {weight.dtype for weight in group["params"]}:
            if not group["eps"] >= (least := torch.finfo(dtype).tiny):
                self.param_groups.pop()
                raise ValueError(f"eps is {group['eps']}; for parameters in {dtype} it must be at least {least:.2g}")

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made of; torch's own knows no attributes of ours."""
        return super().__getstate__() | {name: getattr(self, name) for name in self.own}

    @cached_property  # not part of the state: what is compiled can be neither copied nor pickled
    def compiled_pass(self) -> Callable[..., None]:
        """The pass that updates all tensors at once."""
        return torch.compile(adamw_pass, backend=compile_or_run, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:  # Lightning's closure computes loss and gradients
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update(group)
        return loss

    def update(self, group: dict[str, Any]) -> None:
        """Updates one parameter group, those of the same t and learning rate at once."""
        alike: dict[tuple[int, float], list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:  # its t then lags behind the others'
                continue
            state = self.state[weight]
            if not state:
                state.update(t=0, m=torch.zeros_like(weight), v=torch.zeros_like(weight))
            state["t"] += 1
            lr = self.rates.get(weight, 1.0) * group["lr"]
            alike.setdefault((state["t"], lr), []).append((weight, weight.grad, state["m"], state["v"]))
        for (t, lr), tensors in alike.items():
            settings = lr, group["betas"], group["eps"], group["weight_decay"]
            if self.compiled:
                self.update_compiled(t, tensors, *settings)
                continue
            known = (tensor for four in tensors for tensor in four)
            if self.kernel and self.take is None and (kernel := kernel_for("adamw_kernel", known)):
                kernel.update(tensors, t, *settings)
                continue
            foreach = tensors[0][0].device.type != "cpu" if self.foreach is None else self.foreach
            if foreach or self.take is not None:
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
        """Updates tensors, each (weight, gradient, m, v), by the compiled pass."""
        device = tensors[0][0].device
        take = torch.ones((), dtype=torch.bool, device=device) if self.take is None else self.take
        weights, gradients, ms, vs = map(list, zip(*tensors, strict=True))
        kind: dict[str, Any] = {"dtype": factor_dtype(weights), "device": device}
        decay = torch.full((), 1 - lr * weight_decay, **kind)
        step_size = torch.full((), lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t), **kind)
        self.compiled_pass(weights, gradients, ms, vs, decay, step_size, take, betas, eps)
