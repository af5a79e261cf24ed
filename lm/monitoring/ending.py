"""Says at a run's end what it has achieved, and why it ended."""

import math
import shlex
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.callbacks import Timer

from lm.durations import format_duration
from lm.monitoring.overfitting import Overfitting
from lm.monitoring.progress import in_bits
from lm.runs.folder import CONFIG, LAST


def time_is_up(trainer: Trainer) -> bool:
    """Whether trainer.max_time is over."""
    left = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return any(seconds is not None and seconds <= 0 for seconds in left)


def achieved(trainer: Trainer, seconds: float) -> str:
    """Returns a line on the time since a run was started or resumed, and the best of all its validations."""
    line = f"trained for {format_duration(seconds)}"
    metrics = trainer.callback_metrics
    best = next((callback.best for callback in trainer.callbacks if isinstance(callback, Overfitting)), None)  # type: ignore[attr-defined]
    if best is None or not math.isfinite(best["validation"]) or not metrics.get("val/loss"):
        return line
    bits = float(metrics["val/bits_per_byte"] / metrics["val/loss"]) * best["validation"]
    line += f"; the best validation loss is {best['validation']:.4f}, at step {best['step']:,}"
    return f"{line}: {in_bits(trainer, bits)}" if math.isfinite(bits) else line


def resuming(folder: Path) -> str:
    """Returns the command that resumes a run, for a shell."""
    return shlex.join(["lm", "fit", "-c", str(folder / CONFIG), "--ckpt_path", str(folder / LAST)])


def ending(trainer: Trainer) -> str:
    """Returns a line on the step at which a run has ended and, if it was not the last, why."""
    folder, step, steps = Path(trainer.default_root_dir), trainer.global_step, trainer.max_steps
    where = f"{folder}: ended at step {step:,} of {steps:,}"
    if step >= steps:
        return where
    messages = [callback.stopping_reason_message for callback in trainer.early_stopping_callbacks]
    asked = " ".join(filter(None, messages)) or "one of trainer.callbacks ended it"
    reason = "trainer.max_time is over" if time_is_up(trainer) else asked
    return f"{where}: {reason}; `{resuming(folder)}` resumes it"
