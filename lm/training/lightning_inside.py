"""Every private part of Lightning, jsonargparse and TensorBoard that lm uses: one named function each, and none
anywhere else.

What lies behind an underscore, or deep in the Trainer's loops, may change with any release. tests/test_lightning_inside
holds each function against the installed libraries and says which has changed, and how. torch's are in torch_inside.py.
"""

import contextlib
import inspect
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import yaml
from jsonargparse import Namespace, _loaders_dumpers, set_loader
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.summary.writer import event_file_writer

from lm.training import config_files

HARMLESS_WARNINGS = (
    "LightningCLI's args parameter",  # said whenever the arguments do not come from sys.argv
    "You're resuming from a checkpoint that ended before",  # our batches follow from the step: nothing is lost
    "The '.*_dataloader' does not have many workers",  # a batch takes 0.1 ms to gather
    ".*isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
    "The number of training batches .* is smaller than the logging interval",  # a run's last step is always logged
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks",  # a changed setting, and announced as such
)


# --- the command line ------------------------------------------------------------------------------------------------


class CommandLine(LightningCLI):
    """LightningCLI that reads its arguments and leaves the rest to its caller.

    Lightning's own would let a checkpoint's settings silently override the command line, seed, make all classes and
    begin the run, each from its constructor.
    """

    def _parse_ckpt_path(self) -> None:
        pass

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    @property
    def settings(self) -> Namespace:
        """Returns the settings of the subcommand, as they were parsed."""
        settings: Namespace = self.config[self.subcommand]
        return settings

    def option_names(self, subcommand: str) -> list[str]:
        """Returns every option of a subcommand as it is written, without its dashes."""
        return [option.lstrip("-") for option in self._subcommand_parsers[subcommand]._option_string_actions]

    def make_classes(self) -> Namespace:
        """Makes model, data module and callbacks of the settings, and returns them by their names."""
        self.config_init = self.parser.instantiate(self.config)
        made: Namespace = self.config_init[self.subcommand]
        return made


def read_settings_strictly() -> None:
    """Makes jsonargparse read YAML by config_files.py, and numbers within strings ("1:30"), too."""
    set_loader("yaml", config_files.load, exceptions=(yaml.YAMLError,))
    _loaders_dumpers.yaml_default_loader = config_files.ConfigLoader  # type: ignore[assignment]


def tell_one_batch_from_all() -> None:
    """Makes the parser read `--trainer.limit_val_batches 1` as one batch, and 1.0 as all of them.

    `typing` makes one type of Union[int, float] and Union[float, int], whichever comes first in the program, and by the
    second, 1 would be read as 1.0.
    """
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name in ("limit_train_batches", "limit_val_batches"):
        annotations[name] = int | float | None


def silence_harmless_warnings() -> None:
    """Ignores the libraries' warnings about what is right as it is."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


# --- the Trainer's loops ---------------------------------------------------------------------------------------------


def has_trainer(module: LightningModule) -> bool:
    """Whether a trainer has the module at hand; module.trainer raises an error where none has."""
    return module._trainer is not None


def is_mid_step(trainer: Trainer) -> bool:
    """Whether the next batch belongs to a step that has begun, whose batches accumulate."""
    return trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches != 0


def is_validation_due(trainer: Trainer) -> bool:
    """Whether Lightning validates after the batch that has just been trained on."""
    return (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0  # type: ignore[operator]


def validate_now(trainer: Trainer) -> None:
    """Validates from the first batch on, before a training step; as Lightning does it after one."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.restarting = False
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def set_max_steps(trainer: Trainer, steps: int) -> None:
    """Changes the length of a run that has been set up."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def loop_counters(trainer: Trainer) -> dict[str, Any]:
    """Returns what Lightning's loops count, as a checkpoint keeps it."""
    return trainer.fit_loop.state_dict()


def batches_trained(checkpoint: dict[str, Any]) -> int:
    """Returns how many batches the run of a checkpoint with loop counters has trained on."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


def whole_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Collects the state of a run, as trainer.save_checkpoint does, which then waits for the other processes."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


# --- logging ---------------------------------------------------------------------------------------------------------


def draws_this_step(trainer: Trainer) -> bool:
    """Whether Lightning hands this step's figures to the loggers."""
    return trainer._logger_connector.should_update_logs


def draw_step_now(trainer: Trainer) -> None:
    """Hands the step's figures to the loggers; Lightning does it after the callbacks, one of which has failed."""
    trainer._logger_connector.update_train_step_metrics()


def set_drawn_steps(trainer: Trainer, steps: int) -> None:
    """Sets Lightning's count of the steps that curves are drawn by."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def current_hook(module: LightningModule) -> str | None:
    """Returns the name of the hook that Lightning is calling."""
    return module._current_fx_name


@contextlib.contextmanager
def logging_in(module: LightningModule, hook: str) -> Iterator[None]:
    """Lets the module log as if Lightning were calling this hook: a figure belongs to the one that logs it first."""
    before, module._current_fx_name = module._current_fx_name, hook
    try:
        yield
    finally:
        module._current_fx_name = before


def has_event_file(logger: TensorBoardLogger) -> bool:
    """Whether the logger has begun an event file; logger.experiment begins one."""
    return logger._experiment is not None


@contextlib.contextmanager
def stamped_event_file(stamp: int) -> Iterator[None]:
    """Names the event file that is begun by this time, in seconds; what is written to it has the true time."""
    stamps = iter([stamp])
    clock = SimpleNamespace(time=lambda: next(stamps, None) or time.time())
    with mock.patch.object(event_file_writer, "time", clock):
        yield


def write_summary(writer: Any, summary: Any) -> None:
    """Writes a summary to the event file of a SummaryWriter, which has no method for it."""
    writer._get_file_writer().add_summary(summary)


# --- devices ---------------------------------------------------------------------------------------------------------


def shard_over_all(strategy: ModelParallelStrategy) -> None:
    """Spreads the weights over the devices of all nodes; Lightning would over those of one, and repeat that."""
    strategy._data_parallel_size = strategy.num_processes * strategy.num_nodes
