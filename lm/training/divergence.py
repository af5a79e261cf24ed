"""Detects a run that has diverged although its loss is finite (losses that are not: nonfinite.py).

    smoothed loss s_t = mean of the last WINDOW losses          diverged where s_t > RISE * first loss

An untrained model guesses: its first loss is near ln(vocab_size), and a model that learns does not stay far above it.
Beyond the edge of stability (Cohen et al. 2021) the weights grow until the model is confident and wrong.
"""

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.runs.folder import DIVERGED
from lm.strict_json import to_json
from lm.training.nonfinite import Diverged
from tokenization.files import write_text

WINDOW = 5  # losses, so that one bad batch does not count
RISE = 1.5


class LossWatch:
    """Tells after each loss whether the run has diverged."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def diverged(self, loss: float) -> bool:
        self.first = loss if self.first is None else self.first
        self.recent.append(loss)
        return not math.isfinite(loss) or (len(self.recent) == WINDOW and self.mean > RISE * self.first)

    @property
    def mean(self) -> float:
        return sum(self.recent) / len(self.recent)


def step_loss(trainer: Trainer) -> float:
    """Returns the mean loss over the batches of the step just made, on all devices."""
    mean = torch.stack(trainer.lightning_module.step_losses).mean()  # type: ignore[arg-type]
    return float(trainer.strategy.reduce(mean, reduce_op="mean"))


class StopWhenRisen(Callback):
    """Ends a run that has diverged, and records that in diverged.json; `lm sweep` adds it to its runs' callbacks.

    Non-finite losses are left to StopWhenDiverged: a run may recover from them. On a GPU only logged steps are checked.
    """

    def __init__(self) -> None:
        self.watch = LossWatch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # within a step that accumulates batches
        if outputs["loss"].is_cuda and step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        loss = step_loss(trainer)
        if math.isfinite(loss) and self.watch.diverged(loss):
            raise Diverged(
                f"diverged: the loss has risen from {self.watch.first:.2f} to {self.watch.mean:.2f} by step {step:,};"
                " lower model.learning_rate"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Diverged) and trainer.is_global_zero:
            mark = {"steps": trainer.global_step, "reason": str(exception)}
            write_text(Path(trainer.default_root_dir) / DIVERGED, to_json(mark) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.watch.first, "recent": list(self.watch.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watch.first = state_dict["first"]
        self.watch.recent.extend(state_dict["recent"])
