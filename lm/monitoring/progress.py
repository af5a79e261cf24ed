"""Prints a run's progress in lines: losses without a progress bar, and validations."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.durations import format_duration
from lm.monitoring.baselines import Baselines, standing
from lm.monitoring.forecast import ForecastFinalLoss
from lm.monitoring.samples import TextSamples, paragraph
from lm.monitoring.saying import say


def in_bits(trainer: Trainer, bits: float) -> str:
    """Returns "0.9239 bits per byte: below the 4-gram table at 1.147", as far as there are tables."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    lines = next((callback.lines for callback in callbacks if isinstance(callback, Baselines)), {})
    return f"{bits:.4f} bits per byte{standing(lines, bits)}"


def validation_lines(trainer: Trainer) -> str:
    """Returns a line about the validation that has just ended, with the forecast, and the model's sample below it."""
    metrics, callbacks = trainer.callback_metrics, trainer.callbacks  # type: ignore[attr-defined]
    samples = [paragraph(callback.text) for callback in callbacks if isinstance(callback, TextSamples)]
    line = (
        f"step {trainer.global_step:,}: validation loss {metrics['val/loss']:.4f},"
        f" perplexity {metrics['val/perplexity']:.2f}, {in_bits(trainer, float(metrics['val/bits_per_byte']))}"
    )
    for callback in callbacks:
        if isinstance(callback, ForecastFinalLoss) and callback.forecast is not None:
            line += f"; {callback.forecast}"
    return "\n".join([line, *filter(None, samples)])


class ProgressLines(Callback):
    """Prints a line at each logged step and validation, for a run without a progress bar."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.printed = trainer.global_step  # the last step with a line, or the one before this start

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, metrics = trainer.global_step, trainer.progress_bar_metrics
        if step == self.printed or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        self.printed = step
        speed = metrics.get("train/tokens_per_second", math.nan)
        line = f"step {step:,} of {trainer.max_steps:,}: loss {metrics['train/loss']:.4f}, {speed:,.0f} tokens/s"
        if "train/passes" in metrics:
            line += f", pass {float(metrics['train/passes']):.2f}"
        if "left" in metrics:
            line += f", {format_duration(float(metrics['left']))} to go"
        say(trainer, line)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            say(trainer, validation_lines(trainer))
