"""Prints with each validation where the run will end, by its own curves and those of earlier runs beside it.

The law is in loss_law.py, the forecast with its band in posterior.py. Curves and settings are read from the runs'
folders, so that a run that resumes forecasts what it would have forecast.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lm.data.datamodule import TokenDataModule
from lm.monitoring.loss_law import Course, Losses
from lm.monitoring.overfitting import Overfitting
from lm.monitoring.posterior import Forecast, forecast_loss
from lm.optim.schedule import SCHEDULES
from lm.runs.checkpoint import OLDER
from lm.runs.events import read_curves
from lm.runs.folder import BEST, CONFIG, LAST
from lm.runs.manifest import read_manifest
from tokenization import InputError

BEGIN = 0.1  # of the run
MOST_RUNS, MOST_FOLDERS = 20, 100  # the newest that tell of a run, of so many that may
MOST_STEPS = 1_000_000  # as the law is computed step by step
OTHER_LENGTH = 2  # an earlier run is at most so many times longer or shorter
LEDGER = "ledger.jsonl"  # marks the folder of a race, in which each contestant has a folder of runs
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where libyaml is there: ten times as fast
# Settings that change how a run is computed, or that runs of one kind do not share.
PASSED_OVER = {"fast", "attention", "compile", "recompute_activations", "max_skipped_steps", "seed", "num_workers"}


class ForecastFinalLoss(Callback):
    """Forecasts the final validation loss from a tenth of the run on; nothing with averaged weights or dropout.

    The law knows the noise of large steps in both losses, and an average takes it out of one. Dropout raises one alone.
    """

    def __init__(self) -> None:
        self.earlier: list[Losses] | None = None
        self.forecast: Forecast | None = None  # at the last validation

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        self.forecast = None
        training = trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero
        if not training or not BEGIN * trainer.max_steps <= step < trainer.max_steps:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.save()  # what has been logged is read below
        folder = Path(trainer.default_root_dir)
        data = trainer.datamodule  # type: ignore[attr-defined]
        try:
            run = read_losses(folder, str(data.validated[0]) if isinstance(data, TokenDataModule) else None)
        except (InputError, OSError):  # a run without curves, or a disk that fails
            return
        if self.earlier is None:
            self.earlier = list(earlier_runs(folder, run))
        now = {step: trainer.callback_metrics["val/loss"].item()}
        since = max((callback.since for callback in trainer.callbacks if isinstance(callback, Overfitting)), default=0)  # type: ignore[attr-defined]
        before = {at: loss for at, loss in run.validation.items() if at > since}  # on the same text
        self.forecast = forecast_loss(dataclasses.replace(run, validation=before | now), self.earlier)


def earlier_runs(folder: Path, run: Losses) -> Iterator[Losses]:
    """Yields finished runs that tell of a run, from beside it, from its race and from the races beside that."""
    race = folder.parent.parent
    beside = race.parent if (race / LEDGER).is_file() else folder.parent
    races = [ledger.parent for ledger in beside.glob(f"*/{LEDGER}")]
    configs = {*beside.glob(f"*/{CONFIG}"), *folder.parent.glob(f"*/{CONFIG}")}
    configs |= {config for race in races for config in race.glob(f"*/*/{CONFIG}")}
    newest = sorted(configs - {folder / CONFIG}, key=when_changed, reverse=True)
    found = filter(None, (read_if_it_tells(path.parent, run) for path in newest[:MOST_FOLDERS]))
    yield from itertools.islice(found, MOST_RUNS)


def when_changed(path: Path) -> float:
    """Returns when a file was last changed; 0 if it has been deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_if_it_tells(folder: Path, run: Losses) -> Losses | None:
    """Returns the losses of an earlier run; None if it does not tell of a run, often without reading its curves."""
    try:
        config = read_config(folder)
        if not of_a_length(config["trainer"]["max_steps"], run) or validated_on(folder, config) != run.text:
            return None
        other = read_losses(folder)
    except (InputError, OSError, LookupError, TypeError, ValueError, ArithmeticError):
        return None
    return other if tells_of(other, run) else None


def tells_of(other: Losses, run: Losses) -> bool:
    """Returns whether a run has ended, was validated on the same text, and is of about the same length."""
    return other.finished and other.text == run.text and of_a_length(other.course.steps, run)


def of_a_length(steps: int, run: Losses) -> bool:
    """Returns whether so many steps are about as many as a run's."""
    return 1 / OTHER_LENGTH <= steps / run.course.steps <= OTHER_LENGTH


def read_config(folder: Path) -> Any:
    """Reads a run's settings; InputError where there are none."""
    try:
        return yaml.load((folder / CONFIG).read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{folder}: holds no settings that can be read") from None


def validated_on(folder: Path, config: dict[str, Any], val_sha256: str | None = None) -> str:
    """Returns a name for the text that a run is validated on: the digest of its tokens, and how many of them.

    val_sha256: the digest, if it is known; None takes what the newest checkpoint says, or else the paths.
    """
    data, limit = config["data"], config["trainer"].get("limit_val_batches")
    manifests = (read_manifest(path) for name in (LAST, BEST) if (path := folder / name).is_file())
    digest = val_sha256 or next((found.get("val_sha256") for found in manifests), None)
    windows = limit * data["batch_size"] if isinstance(limit, int) else limit
    text = [digest or [data["val_path"], data["tokenizer"]], windows, config["model"]["context_length"]]
    return json.dumps(text, allow_nan=False)


def read_losses(folder: Path, val_sha256: str | None = None) -> Losses:
    """Reads a run's losses and what they depend on.

    val_sha256: the digest of the validated tokens, if it is known. Raises InputError for a folder that does not tell,
    and for a run that the law is not for: with averaged weights or dropout, of more than MOST_STEPS, or with a learning
    rate of 0.
    """
    curves = read_curves(folder)
    try:
        config = read_config(folder)
        return _losses(
            config,
            validated_on(folder, config, val_sha256),
            {tag: (curve.steps, curve.values) for tag, curve in curves.items()},
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        raise InputError(f"{folder}: its settings or curves do not allow a forecast") from None


def _losses(config: dict[str, Any], text: str, curves: dict[str, tuple[list[int], list[float]]]) -> Losses:
    model, data, steps = config["model"], config["data"], config["trainer"]["max_steps"]
    if model.get("ema_decay") or model.get("dropout") or not 0 < steps <= MOST_STEPS or not model["learning_rate"] > 0:
        raise ValueError
    if not isinstance(steps, int) or any(logged[-1] > steps for logged, _ in curves.values() if logged):
        raise ValueError  # settings that are not those of the curves
    schedule, own = model.get("schedule", "cosine"), {}
    if schedule == "trapezoid":
        own = {"decay_share": model["decay_share"]}
    shape = model["learning_rate"], model["min_learning_rate"], model["warmup_steps"], steps
    every = np.arange(1, steps + 1)
    rates = np.array([SCHEDULES[schedule](step, *shape, **own) for step in every.tolist()]) / model["learning_rate"]

    def of_a_step(tag: str) -> float:
        logged, values = curves[tag]
        return values[-1] / logged[-1]

    tokens = of_a_step("train/tokens_seen")
    course = Course(rates, tokens * every, of_a_step("train/passes") * every, model["warmup_steps"])
    read = {"windows": "random"} | {name: data[name] for name in data if name not in ("val_path", "num_workers")}
    settings = {**OLDER, **model, **read, "steps": steps}  # an older run had the defaults of what it does not name
    return Losses(
        course,
        training=dict(zip(*curves["train/loss"], strict=True)),
        validation=dict(zip(*curves.get("val/loss", ([], [])), strict=True)),
        batches=json.dumps([read, model["context_length"], tokens], sort_keys=True, allow_nan=False),
        text=text,
        settings={name: value for name, value in settings.items() if name not in PASSED_OVER},
    )
