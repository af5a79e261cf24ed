"""Wraps every private part of Lightning, jsonargparse and TensorBoard that lm uses in a named function.

No other file touches one. Names behind an underscore, or deep in the Trainer's loops, may change with any release:
tests/training/test_lightning_inside.py checks each function against the installed libraries and says which has changed,
and how. torch's private parts are in torch_inside.py.
"""

import contextlib
import inspect
import os
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, _loaders_dumpers, set_loader
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from tensorboard.summary.writer import event_file_writer

from lm.training import config_files

HARMLESS_WARNINGS = (
    "LightningCLI's args parameter",  # raised if the arguments do not come from sys.argv
    "You're resuming from a checkpoint that ended before",  # our batches follow from the step, so nothing is lost
    "The '.*_dataloader' does not have many workers",  # a batch takes 0.1 ms to gather
    ".*isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
    "The number of training batches .* is smaller than the logging interval",  # a run's last step is always logged
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks",  # a changed setting, which we announce
)


# --- the command line ------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """What a parser says of an option; choices as in "{adamw,muon}", None where any value may do."""

    help: str
    default: Any
    choices: str | None


def describe_option(parser: ArgumentParser, name: str, words: str) -> None:
    """Replaces what --help says of an option that a library has declared."""
    parser._option_string_actions[f"--{name}"].help = words


class CommandLine(LightningCLI):
    """A LightningCLI that only parses its arguments.

    Lightning's constructor would also let a checkpoint's settings silently override the command line, seed, instantiate
    all classes and begin the run.
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
        """The parsed settings of the subcommand."""
        settings: Namespace = self.config[self.subcommand]
        return settings

    def option_names(self, subcommand: str) -> list[str]:
        """Returns every option of a subcommand, without its dashes."""
        return [option.lstrip("-") for option in self._subcommand_parsers[subcommand]._option_string_actions]

    def options(self, subcommand: str) -> dict[str, Option]:
        """Returns what a subcommand's parser says of each option that takes a value, by its name without dashes."""
        options = {}
        for name, action in self._subcommand_parsers[subcommand]._option_string_actions.items():
            if name.startswith("--") and action.nargs != 0 and not name.endswith(("+", ".help")):
                shown = str(action.metavar)
                choices = shown if shown.startswith("{") else None
                options[name.removeprefix("--")] = Option(action.help or "", action.default, choices)
        return options

    @contextlib.contextmanager
    def another_help(self, subcommand: str, text: str) -> Iterator[None]:
        """Makes --help print this text inside."""
        with mock.patch.object(self._subcommand_parsers[subcommand], "format_help", return_value=text):
            yield

    def make_classes(self) -> Namespace:
        """Instantiates model, data module and callbacks from the settings, and returns them by name."""
        self.config_init = self.parser.instantiate(self.config)
        made: Namespace = self.config_init[self.subcommand]
        return made


class HelpFormatter(DefaultHelpFormatter):
    """Shows the settings as jsonargparse does, and the lines of a description as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def read_settings_strictly() -> None:
    """Makes jsonargparse read YAML, and numbers within strings ("1:30"), by config_files.py."""
    set_loader("yaml", config_files.load, exceptions=(yaml.YAMLError,))
    _loaders_dumpers.yaml_default_loader = config_files.ConfigLoader  # type: ignore[assignment]


def tell_one_batch_from_all() -> None:
    """Makes the parser read `--trainer.limit_val_batches 1` as one batch, and 1.0 as all batches.

    `typing` takes Union[int, float] and Union[float, int] for one type, whichever the program names first; by the
    second, 1 would be read as 1.0.
    """
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name in ("limit_train_batches", "limit_val_batches"):
        annotations[name] = int | float | None


def silence_harmless_warnings() -> None:
    """Ignores library warnings about what is intended here."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


# --- the Trainer's loops ---------------------------------------------------------------------------------------------


def has_trainer(module: LightningModule) -> bool:
    """Whether the module is attached to a trainer; without one, module.trainer raises an error."""
    return module._trainer is not None


def is_mid_step(trainer: Trainer) -> bool:
    """Whether the next batch belongs to a step that has already begun to accumulate batches."""
    return trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches != 0


def has_begun_a_step(trainer: Trainer) -> bool:
    """Whether batches have been accumulated since the last step, when none is being trained on."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0


def is_validation_due(trainer: Trainer) -> bool:
    """Whether Lightning will validate after the batch just trained on."""
    return (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0  # type: ignore[operator]


def validate_now(trainer: Trainer) -> None:
    """Validates before a training step, from the first batch on, as Lightning does after one."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.restarting = False
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def set_max_steps(trainer: Trainer, steps: int) -> None:
    """Changes the length of a run, in steps, after it has been set up."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def loop_counters(trainer: Trainer) -> dict[str, Any]:
    """Returns the counters of Lightning's loops, as a checkpoint keeps them."""
    return trainer.fit_loop.state_dict()


def batches_trained(checkpoint: dict[str, Any]) -> int:
    """Returns how many batches a run had trained on at its checkpoint, which must have loop counters."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


def add_batches_trained(loops: dict[str, Any], batches: int) -> None:
    """Adds to the batches that the counters of a checkpoint's loops say the run has trained on."""
    progress = loops["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        for name in counters:
            counters[name] += batches


def whole_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Returns the state that trainer.save_checkpoint saves, without waiting for the other processes as it does."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


# --- logging ---------------------------------------------------------------------------------------------------------


def draws_this_step(trainer: Trainer) -> bool:
    """Whether Lightning passes this step's figures to the loggers."""
    return trainer._logger_connector.should_update_logs


def draw_step_now(trainer: Trainer) -> None:
    """Passes the step's figures to the loggers, as Lightning does after the callbacks: for when one of these fails."""
    trainer._logger_connector.update_train_step_metrics()


def set_drawn_steps(trainer: Trainer, steps: int) -> None:
    """Sets the step at which Lightning draws curves."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def current_hook(module: LightningModule) -> str | None:
    """Returns the name of the hook that Lightning is calling, if any."""
    return module._current_fx_name


@contextlib.contextmanager
def logging_in(module: LightningModule, hook: str) -> Iterator[None]:
    """Logs as if Lightning were calling this hook; a figure belongs to the hook that logs it first."""
    before, module._current_fx_name = module._current_fx_name, hook
    try:
        yield
    finally:
        module._current_fx_name = before


def has_event_file(logger: TensorBoardLogger) -> bool:
    """Whether the logger has opened an event file; logger.experiment opens one."""
    return logger._experiment is not None


class WholeRecords:
    """Writes the records of an event file, each of them whole: one that does not fit leaves nothing in the file.

    TensorBoard's thread would end at a full disk, and every later event would raise its error.
    failure: the last error, until it is set to None. failing: whether the last record was not written.
    """

    def __init__(self, writer: Any) -> None:
        file = writer.file_writer.event_writer
        self.records, self.path = file._async_writer._writer, file._file_name
        self.failure: OSError | None = None
        self.failing = False
        file._async_writer._writer = file._async_writer._worker._record_writer = self
        self.flush, self.close = self.records.flush, self.records.close

    def write(self, data: bytes) -> None:
        length = os.path.getsize(self.path) if os.path.exists(self.path) else 0
        try:
            self.records.write(data)
            self.failing = False
        except OSError as error:
            self.failure, self.failing = error, True
            with contextlib.suppress(OSError):
                os.truncate(self.path, length)


@contextlib.contextmanager
def stamped_event_file(stamp: int) -> Iterator[None]:
    """Names the event file that is opened inside by this time, in seconds; its events have the true time."""
    stamps = iter([stamp])
    clock = SimpleNamespace(time=lambda: next(stamps, None) or time.time())
    with mock.patch.object(event_file_writer, "time", clock):
        yield


def write_summary(writer: Any, summary: Any) -> None:
    """Writes a summary to a SummaryWriter's event file, for which it has no public method."""
    writer._get_file_writer().add_summary(summary)


# --- devices ---------------------------------------------------------------------------------------------------------


def shard_over_all(strategy: ModelParallelStrategy) -> None:
    """Shards the weights over the devices of all nodes; Lightning would shard within each node and replicate."""
    strategy._data_parallel_size = strategy.num_processes * strategy.num_nodes
