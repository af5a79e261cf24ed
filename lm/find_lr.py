"""`lm find-lr`: the learning-rate range test (Smith 2015), a quick look before a sweep.

    step t = 1 .. N     lr_t = lowest (highest / lowest)^((t - 1) / (N - 1))

One short training whose learning rate grows like that; everything else is as `lm fit` would have it: model, batches,
AdamW, clipping, precision. It ends early where the loss has diverged (divergence.py). The suggestion is a rule of
thumb: a third of the learning rate at which the smoothed loss was lowest. Nothing is written but the result's folder.
"""

import argparse
import contextlib
import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.cli import RunCLI
from lm.divergence import LossWatch, step_loss
from lm.figures import HOW_TO_GET_PLOTS, can_draw, draw_range_test, is_plot, smooth
from lm.nonfinite import Diverged
from lm.sweep import Settings, read_arguments, read_files
from lm.sweep_results import begins_with, check_results
from tokenization import InputError
from tokenization.commands import ArgumentParser
from tokenization.files import write_text

SHARE = 1 / 3
TABLE, PLOT = "find-lr.csv", "find-lr.png"
COLUMNS = ("learning_rate", "loss", "smoothed")
HALF_WINDOW = 3  # steps on each side that a smoothed loss is the mean of

HELP = """Learning-rate range test: one short training whose learning rate grows exponentially, step by step.

  lm find-lr -c configs/demo.yaml
  lm find-lr -c configs/demo.yaml --steps 200 --highest 1 --data.batch_size 16

Everything else that `lm fit` takes can be given, too.
"""


class RangeTest(Callback):
    """Sets the learning rate after the model has, and watches the loss."""

    def __init__(self, lowest: float, highest: float, steps: int):
        self.lowest, self.growth, self.steps = lowest, highest / lowest, steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.watch, self.diverged = LossWatch(), False

    def learning_rate(self, step: int) -> float:
        """Of step number `step`, counted from 1."""
        return self.lowest * self.growth ** ((step - 1) / max(1, self.steps - 1))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step == len(self.rates):
            return  # in the middle of a step, whose batches accumulate
        self.rates.append(self.learning_rate(trainer.global_step))
        skipped = bool(pl_module.skipped_steps.in_a_row)  # type: ignore[union-attr]
        self.losses.append(math.nan if skipped else step_loss(trainer))
        self.diverged = self.watch.diverged(self.losses[-1])
        trainer.should_stop = trainer.should_stop or self.diverged


class FindCLI(RunCLI):
    """`lm fit` as a trial run, which by Lightning's fast_dev_run writes nothing, with the test in it."""

    def __init__(self, argv: list[str], test: RangeTest):
        self.test = test
        super().__init__(argv)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.limit_val_batches = 0
        trainer.callbacks.append(self.test)  # type: ignore[attr-defined]
        return trainer


def suggest(rates: list[float], losses: list[float]) -> tuple[float, float]:
    """The learning rate at which the smoothed loss is lowest, and a third of it, to two digits."""
    finite = [
        (loss, rate) for loss, rate in zip(smooth(losses, HALF_WINDOW), rates, strict=True) if math.isfinite(loss)
    ]
    if not finite:
        raise InputError("no step had a finite loss and gradient; look at the data, or begin with a smaller --lowest")
    lowest = min(finite)[1]
    return lowest, float(f"{SHARE * lowest:.2g}")


def run_find_lr(argv: list[str]) -> None:
    parser = ArgumentParser(
        prog="lm find-lr", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--lowest", type=float, default=1e-5, help="the first learning rate (default: 1e-5)")
    parser.add_argument("--highest", type=float, default=10.0, help="the last (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: 100)")
    args, arguments = read_arguments(parser, argv)
    if not 0 < args.lowest < args.highest < math.inf:
        raise InputError(f"--lowest {args.lowest} must be above 0, and below --highest {args.highest}")
    if args.steps < 20:
        raise InputError(f"--steps {args.steps}: at least 20 are needed")
    config = Settings(["fit", *arguments]).config.fit
    settings, home = config.trainer, Path(config.trainer.default_root_dir)
    output = args.output or home.with_name(f"find-lr-{home.name}")
    check_results(output, read_files(args.config, config), {TABLE: begins_with(COLUMNS), PLOT: is_plot})
    test = RangeTest(args.lowest, args.highest, args.steps)
    trial = {
        "trainer.default_root_dir": output,
        "trainer.fast_dev_run": args.steps * settings.accumulate_grad_batches,
        "trainer.max_steps": args.steps,
        "model.max_skipped_steps": args.steps + 1,  # the test ends at the first
    }
    with contextlib.suppress(Diverged):  # as it is meant to, in the end
        FindCLI(["fit", *arguments, *(f"--{name}={value}" for name, value in trial.items())], test)
    report(test, output)


def report(test: RangeTest, output: Path) -> None:
    smoothed = smooth(test.losses, HALF_WINDOW)
    lowest, suggestion = suggest(test.rates, test.losses)
    text = io.StringIO(newline="")
    columns = [[value if math.isfinite(value) else None for value in column] for column in (test.losses, smoothed)]
    csv.writer(text).writerows([COLUMNS, *zip(test.rates, *columns, strict=True)])
    write_text(output / TABLE, text.getvalue())
    if test.diverged:
        print(f"diverged at step {len(test.rates)}, learning rate {test.rates[-1]:.2g}")
    else:
        print(f"did not diverge up to {test.rates[-1]:.2g}")
    print(f"the smoothed loss is lowest, {min(filter(math.isfinite, smoothed)):.3f}, at {lowest:.2g}")
    print(f"suggestion: --model.learning_rate {suggestion:g} (a third of that)")
    if can_draw():
        draw_range_test(output / PLOT, test.rates, test.losses, smoothed, suggestion)
    print(f"written: {output}: {TABLE}, {PLOT}" if can_draw() else HOW_TO_GET_PLOTS)
