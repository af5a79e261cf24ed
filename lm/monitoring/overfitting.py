"""Watches the gap between training and validation loss, and tells when a model begins to learn its text by heart.

    gap = validation loss - mean loss of the RECENT last training steps

The model improves within these steps, so that its training loss lags behind: an early gap is negative. Losses on other
validation text are not compared: where that changes, or in another folder, a resumed run has a best of its own.
"""

import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lm.data.datamodule import TokenDataModule
from lm.monitoring.saying import say
from lm.runs.events import SINCE
from lm.runs.folder import BEST

RECENT = 100  # optimizer steps
IN_A_ROW = 2  # validations above the best, after which the model counts as overfitting


class Overfitting(Callback):
    """Logs the gap at each validation; prints a hint when the validation loss rises while the training loss falls."""

    def __init__(self) -> None:
        self.losses: dict[int, Tensor | float] = {}  # by the number of the step
        self.validated: list[str | int] | None = None  # which text and how much of it
        self.began_anew = False  # in this start
        self.begin_anew(0)

    def begin_anew(self, step: int) -> None:
        """Forgets the validations up to a step."""
        self.since = step
        self.best = {"validation": math.inf, "training": math.inf, "step": 0}
        self.above = 0  # validations in a row above the best

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": {step: float(loss) for step, loss in self.losses.items()},
            "best": dict(self.best),
            "above": self.above,
            "validated": self.validated,
            "since": self.since,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = dict(state_dict["losses"])
        self.best, self.above = state_dict["best"], state_dict["above"]
        self.validated, self.since = state_dict.get("validated"), state_dict.get("since", 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, before = trainer.datamodule, self.validated  # type: ignore[attr-defined]
        if isinstance(data, TokenDataModule):
            self.validated = data.validated
        other_text = before is not None and before != self.validated
        self.began_anew = other_text or not Path(trainer.default_root_dir, BEST).exists()
        if self.began_anew:
            self.begin_anew(trainer.global_step if other_text else self.since)
        if other_text:
            say(trainer, f"step {trainer.global_step:,}: other text is validated now, so the best loss begins anew")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step + 1  # one that fails is made again, and then has the same number
        self.losses[step] = pl_module.step_loss  # type: ignore[assignment]
        self.losses.pop(step - RECENT, None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.losses:
            return
        finite = list(filter(math.isfinite, map(float, self.losses.values())))
        training = sum(finite) / len(finite) if finite else math.nan
        validation = float(trainer.callback_metrics["val/loss"])
        since = {SINCE: float(self.since)} if self.since else {}
        for logger in trainer.loggers:
            logger.log_metrics({"val/gap": validation - training, **since}, trainer.global_step)
        if validation <= self.best["validation"]:
            self.best, self.above = {"validation": validation, "training": training, "step": trainer.global_step}, 0
        elif math.isfinite(validation) and training < self.best["training"]:
            self.above += 1
            if self.above == IN_A_ROW:
                say(trainer, self._hint(trainer, training, validation))

    def _hint(self, trainer: Trainer, training: float, validation: float) -> str:
        best, data = self.best, trainer.datamodule  # type: ignore[attr-defined]
        after = f" after {data.passes_after(trainer.global_step):.1f} passes over the text" if data else ""
        return (
            f"step {trainer.global_step:,}: overfitting{after}: the validation loss was lowest at step"
            f" {best['step']:,}, {best['validation']:.4f}, and is now {validation:.4f}, while the training loss fell"
            f" from {best['training']:.4f} to {training:.4f}. More text, a higher --model.weight_decay or"
            f" --model.dropout, or a smaller model would help. best.ckpt holds step {best['step']:,};"
            f" --trainer.max_steps {best['step']} would end there"
        )
