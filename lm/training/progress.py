"""Prints a run's progress in lines: losses without a progress bar, validations, and why the run ended."""

import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer

from lm.durations import format_duration
from lm.runs.folder import CONFIG, LAST
from lm.training.baselines import Baselines, standing


def say(trainer: Trainer, line: str) -> None:
    """Prints a line once, around the progress bar; trainer.print would do so on every host."""
    if trainer.is_global_zero:
        trainer.print(line, flush=True)


def validation_line(trainer: Trainer) -> str:
    """Returns the line about the validation that has just ended."""
    metrics, callbacks = trainer.callback_metrics, trainer.callbacks  # type: ignore[attr-defined]
    lines = next((callback.lines for callback in callbacks if isinstance(callback, Baselines)), {})
    bits = float(metrics["val/bits_per_byte"])
    return (
        f"step {trainer.global_step}: validation loss {metrics['val/loss']:.4f},"
        f" perplexity {metrics['val/perplexity']:.2f}, {bits:.4f} bits per byte{standing(lines, bits)}"
    )


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
        line = f"step {step} of {trainer.max_steps}: loss {metrics['train/loss']:.4f}, {speed:,.0f} tokens/s"
        if "train/passes" in metrics:
            line += f", pass {float(metrics['train/passes']):.2f}"
        if "left" in metrics:
            line += f", {format_duration(float(metrics['left']))} to go"
        say(trainer, line)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            say(trainer, validation_line(trainer))


def time_is_up(trainer: Trainer) -> bool:
    """Whether trainer.max_time is over."""
    left = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return any(seconds is not None and seconds <= 0 for seconds in left)


def ending(trainer: Trainer) -> str:
    """Returns a line on the step at which a run has ended and, if it was not the last, why."""
    folder, step, steps = Path(trainer.default_root_dir), trainer.global_step, trainer.max_steps
    where = f"{folder}: ended at step {step:,} of {steps:,}"
    if step >= steps:
        return where
    messages = [callback.stopping_reason_message for callback in trainer.early_stopping_callbacks]
    asked = " ".join(filter(None, messages)) or "one of trainer.callbacks ended it"
    reason = "trainer.max_time is over" if time_is_up(trainer) else asked
    return f"{where}: {reason}; `lm fit -c {folder / CONFIG} --ckpt_path {folder / LAST}` resumes it"
