"""The figures of a training step, drawn or forgotten.

Most steps are never drawn. Lightning would take a millisecond for each figure of each step, and wait for those that are
on a GPU; here a step that is not drawn costs nothing, and one that is waits once, for all of its figures together.
"""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from lm.training.lightning_inside import draws_this_step, logging_in


class StepFigures:
    """Keeps what was logged in the step at hand."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Any, dict[str, Any]]] = {}  # the value, and how it is to be logged

    def keep(self, name: str, value: Any, settings: dict[str, Any]) -> None:
        """value: a number, or a 0-d tensor on any device; settings: as LightningModule.log takes them."""
        self.kept[name] = value.detach() if isinstance(value, Tensor) else value, settings

    def draw(self, module: LightningModule) -> None:
        """Hands the figures to Lightning if it draws this step."""
        if not (self.kept and draws_this_step(module.trainer)):
            return
        figures, self.kept = self.kept, {}
        away = {name: value for name, (value, _) in figures.items() if isinstance(value, Tensor) and not value.is_cpu}
        fetched = torch.stack([value.float() for value in away.values()]).tolist() if away else []
        known = dict(zip(away, fetched, strict=True))
        with logging_in(module, "training_step"):  # one figure, whichever hook it was logged in
            for name, (value, settings) in figures.items():
                LightningModule.log(module, name, as_figure(known.get(name, value)), **settings)


def as_figure(value: Any) -> Tensor:
    """Returns a number as a tensor on the CPU; Lightning would copy it to the GPU and wait for that."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value))
