"""What short runs share: how their settings are read and, for those of a sweep or a race, which are refused.

To be compared, all runs of a sweep or a race must be as long as they say, log their curves, and read the data that the
first of them has read. Each is an `lm fit` of its own (children.py).
"""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.data.mixture import read_sources
from lm.experiments.results import DIGEST
from lm.runs.folder import LAST
from lm.runs.manifest import read_manifest
from lm.training.checks import check_classes, check_length, check_precision
from lm.training.parser import SettingsCLI
from tokenization import InputError, TokenFile

WATCH = "lm.training.divergence.StopWhenRisen"  # a callback


class Settings(SettingsCLI):
    """Reads a long run's configuration for a short run, whose last step is always validated."""

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        trainer = self.config.fit.trainer
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        trainer.val_check_interval = min(trainer.val_check_interval, batches)


def check_settings(config: Namespace) -> None:
    """Raises InputError for settings that no run could begin with, or whose results could not be compared."""
    trainer = config.trainer
    for name, refused, why, instead in (
        ("max_time", trainer.max_time is not None, "would end runs at different steps", "null"),
        ("logger", trainer.logger is False, "would leave no curves to compare", "null"),
        ("fast_dev_run", bool(trainer.fast_dev_run), "would save nothing to compare", "false"),
    ):
        if refused:
            raise InputError(f"trainer.{name} {trainer[name]} {why}; set --trainer.{name} {instead}")
    check_length(config.trainer, config.model)
    check_precision(config.trainer.precision)
    check_classes(config)


def check_end(folder: Path, steps: int) -> None:
    """Raises InputError for a run that has ended, without an error, before this many steps."""
    made = read_manifest(folder / LAST)["step"]
    if made < steps:
        raise InputError(
            f"{folder}: ended at step {made:,} of {steps:,}, by one of trainer.callbacks; runs of different lengths"
            " cannot be compared, so leave it out"
        )


def data_files(config: Namespace) -> list[str]:
    """Lists the token files that a run reads, those of training first."""
    return [*(source.path for source in read_sources(config.data.train_path)), config.data.val_path]


def read_files(paths: list[str], config: Namespace) -> list[Path]:
    """Lists the files and folders that a run reads, the configurations in `paths` among them."""
    return [Path(path) for path in (*paths, *data_files(config), config.data.tokenizer)]


def digests(config: Namespace) -> dict[str, str]:
    """Returns the digests of a run's data, by what they are called among its settings."""
    opened = {path: TokenFile.open(path, verify=False) for path in data_files(config)}
    return {f"{DIGEST}{path}": file.description.data_sha256 for path, file in opened.items()}


def callbacks(config: Namespace, *wanted: str) -> list[str]:
    """Returns the arguments that add callbacks, without those that the configuration has: it may be such a run's."""
    listed: Any = config.trainer.callbacks or []
    present = {each.get("class_path") for each in (listed if isinstance(listed, list) else [listed])}
    return [f"--trainer.callbacks+={name}" for name in wanted if name not in present]
