"""The handout's toy (section 4, learning_rate_tuning): what a learning rate does, where one can follow it by hand.

    weights w (10, 10), 5 * standard normal          loss = mean(w^2)          gradient = 2 w / 100
    w <- w - lr / sqrt(t + 1) * gradient = (1 - lr / (50 sqrt(t + 1))) w,      t = 0, 1, 2, ...

Every step multiplies all weights by one number. Between -1 and 1 it makes them smaller, beyond that larger.

    python examples/sgd_learning_rate.py
    python examples/sgd_learning_rate.py 50 140 --steps 20
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch


class SGD(torch.optim.Optimizer):
    """Stochastic gradient descent whose learning rate decays as 1 / sqrt(t + 1)."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                weight -= group["lr"] / math.sqrt(self.t + 1) * weight.grad
        self.t += 1
        return loss


def losses(lr: float, steps: int = 10, seed: int = 0) -> list[float]:
    """The loss before each step."""
    torch.manual_seed(seed)
    weights = torch.nn.Parameter(5 * torch.randn(10, 10))
    optimizer, seen = SGD([weights], lr), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (weights**2).mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description="Toy: the loss at each step, for several learning rates.")
    parser.add_argument("rates", nargs="*", type=float, default=[1e1, 1e2, 1e3], help="(default: 10 100 1000)")
    parser.add_argument("--steps", type=int, default=10, help="(default: 10)")
    args = parser.parse_args()
    columns = [losses(rate, args.steps) for rate in args.rates]
    print("step" + "".join(f"{f'lr {rate:g}':>12}" for rate in args.rates))
    for step, row in enumerate(zip(*columns, strict=True)):
        print(f"{step:4}" + "".join(f"{loss:12.3g}" for loss in row))


if __name__ == "__main__":
    main()
