"""Runs the learning-rate range test (Smith 2015), a quick look before a sweep.

    step t = 1 .. N     lr_t = lowest (highest / lowest)^((t - 1) / (N - 1))

One short run with this learning rate, and otherwise as `lm fit` trains: model, batches, AdamW, clipping, precision. It
ends early if the loss diverges (divergence.py). The suggestion is a rule of thumb: a third of the learning rate at
which the smoothed loss was lowest. Only the result's folder is written.
"""

import contextlib
import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.experiments.figures import draw_range_test, smooth
from lm.experiments.results import begins_with, check_results
from lm.experiments.short_runs import Settings, read_files
from lm.training.cli import RunCLI
from lm.training.divergence import LossWatch, step_loss
from lm.training.nonfinite import Diverged
from tokenization import InputError
from tokenization.files import write_text
from tokenization.plots import is_plot

SHARE = 1 / 3
TABLE, PLOT = "find-lr.csv", "find-lr.png"
COLUMNS = ("learning_rate", "loss", "smoothed")
HALF_WINDOW = 3  # steps on each side in the mean that smooths a loss


class RangeTest(Callback):
    """Overrides the learning rate of each step, and watches the loss."""

    def __init__(self, lowest: float, highest: float, steps: int):
        self.lowest, self.growth, self.steps = lowest, highest / lowest, steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.watch, self.diverged = LossWatch(), False

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1."""
        rate: float = self.lowest * self.growth ** ((step - 1) / max(1, self.steps - 1))
        return rate

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step == len(self.rates):
            return  # within a step that accumulates batches
        self.rates.append(self.learning_rate(trainer.global_step))
        skipped = bool(pl_module.skipped_steps.in_a_row)  # type: ignore[union-attr]
        self.losses.append(math.nan if skipped else step_loss(trainer))
        self.diverged = self.watch.diverged(self.losses[-1])
        trainer.should_stop = trainer.should_stop or self.diverged


class FindCLI(RunCLI):
    """`lm fit` with the test among its callbacks, as a trial run that writes nothing (Lightning's fast_dev_run)."""

    def __init__(self, argv: list[str], test: RangeTest):
        self.test = test
        super().__init__(argv)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.limit_val_batches = 0
        trainer.callbacks.append(self.test)  # type: ignore[attr-defined]
        return trainer


def suggest(rates: list[float], losses: list[float]) -> tuple[float, float]:
    """Returns the learning rate at which the smoothed loss is lowest, and a third of it, to two digits."""
    finite = [
        (loss, rate) for loss, rate in zip(smooth(losses, HALF_WINDOW), rates, strict=True) if math.isfinite(loss)
    ]
    if not finite:
        raise InputError("no step had a finite loss and gradient; inspect the data, or begin with a smaller --lowest")
    lowest = min(finite)[1]
    return lowest, float(f"{SHARE * lowest:.2g}")


def run_range_test(test: RangeTest, arguments: list[str], configs: list[str], output: Path | None) -> Path:
    """Trains with the test among the callbacks, writes its results, and returns their folder.

    arguments: those of `lm fit`; configs: the files among them; output: the folder (default: beside the run's).
    """
    config = Settings(["fit", *arguments]).config.fit
    settings, home = config.trainer, Path(config.trainer.default_root_dir)
    output = output or home.with_name(f"find-lr-{home.name}")
    check_results(output, read_files(configs, config), {TABLE: begins_with(COLUMNS), PLOT: is_plot})
    trial = {
        "trainer.default_root_dir": output,
        "trainer.fast_dev_run": test.steps * settings.accumulate_grad_batches,
        "trainer.max_steps": test.steps,
        "trainer.max_time": "null",
        "model.max_skipped_steps": test.steps + 1,  # the test ends at the first bad step
    }
    with contextlib.suppress(Diverged):  # the intended end
        FindCLI(["fit", *arguments, *(f"--{name}={value}" for name, value in trial.items())], test)
    write_results(test, output)
    return output


def write_results(test: RangeTest, output: Path) -> None:
    """Writes the table and the plot."""
    smoothed = smooth(test.losses, HALF_WINDOW)
    _, suggestion = suggest(test.rates, test.losses)
    text = io.StringIO(newline="")
    columns = [[value if math.isfinite(value) else None for value in column] for column in (test.losses, smoothed)]
    csv.writer(text).writerows([COLUMNS, *zip(test.rates, *columns, strict=True)])
    write_text(output / TABLE, text.getvalue())
    draw_range_test(output / PLOT, test.rates, test.losses, smoothed, suggestion)
