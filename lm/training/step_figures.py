"""Keeps the figures of a training step until they are drawn or dropped.

Most steps are never drawn. Lightning would spend a millisecond on each figure of each step, and wait for those on a
GPU; here a step that is not drawn costs nothing, and one that is waits once for all its figures.
"""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from lm.training.lightning_inside import draws_this_step, logging_in


class StepFigures:
    """Holds what the current step has logged."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Any, dict[str, Any]]] = {}  # the value, and the arguments to log it with

    def keep(self, name: str, value: Any, settings: dict[str, Any]) -> None:
        """Keeps a figure: a number or a 0-d tensor on any device. settings: arguments of LightningModule.log."""
        self.kept[name] = value.detach() if isinstance(value, Tensor) else value, settings

    def draw(self, module: LightningModule) -> None:
        """Passes the figures to Lightning if it draws this step."""
        if not (self.kept and draws_this_step(module.trainer)):
            return
        figures, self.kept = self.kept, {}
        away = {name: value for name, (value, _) in figures.items() if isinstance(value, Tensor) and not value.is_cpu}
        fetched = torch.stack([value.float() for value in away.values()]).tolist() if away else []
        known = dict(zip(away, fetched, strict=True))
        with logging_in(module, "training_step"):  # one figure, whichever hook logged it
            for name, (value, settings) in figures.items():
                LightningModule.log(module, name, as_figure(known.get(name, value)), **settings)


def as_figure(value: Any) -> Tensor:
    """Returns a number as a CPU tensor; Lightning would copy it to the GPU and wait."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value))
