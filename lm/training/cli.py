"""Runs `lm fit` and `lm validate` from their arguments to the end: read RunCLI.fit from top to bottom.

Every check comes before anything is written. The settings are parser.py's, the decisions resume.py's.
"""

import contextlib
import os
import secrets
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentError
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy

from lm.data.datamodule import TokenDataModule
from lm.data.overlap import warn_of_overlap
from lm.distributed.agreement import check_shared, seen_in_training, seen_in_validation
from lm.distributed.broadcasting import from_first
from lm.distributed.hosts import Hosts
from lm.distributed.launchers import find_world
from lm.distributed.process_group import joined
from lm.machine.signals import exit_if_signalled
from lm.monitoring.callbacks import TrainingBar
from lm.monitoring.ending import achieved, ending, time_is_up
from lm.monitoring.forecast import ForecastFinalLoss
from lm.monitoring.overfitting import Overfitting
from lm.monitoring.progress import ProgressLines
from lm.monitoring.source_figures import SourceFigures
from lm.monitoring.throughput import Throughput
from lm.ngrams import MOST_TOKENS
from lm.runs.checkpoint import check_checkpoint, peek_checkpoint
from lm.training.checks import announce_needs, check_memory, check_paths, check_precision, compare_shape
from lm.training.command_line import one_line, warn_of_variables
from lm.training.lightning_inside import set_max_steps
from lm.training.module import LanguageModel
from lm.training.nonfinite import StopWhenDiverged
from lm.training.parser import SettingsCLI
from lm.training.plugins import RunCheckpointIO, RunLogger
from lm.training.resume import Resume, compare_processes, find_resume, from_here_on, locate_checkpoint, take_folder
from lm.training.sharding import FullySharded
from tokenization import InputError


class RunCLI(SettingsCLI):
    """Runs `lm fit` or `lm validate`; a run's folder is trainer.default_root_dir.

    A variant of a run, such as a range test, overrides instantiate_trainer.
    """

    model: LanguageModel
    datamodule: TokenDataModule
    trainer: Trainer

    def __init__(self, argv: list[str]):
        self.world = find_world()
        self.hosts = Hosts.meet(self.world)
        with self.hosts.staying():
            with self.hosts.agree():
                super().__init__(argv)
                check_precision(self.settings.trainer.precision)
                check_paths(self.settings)
                warn_of_variables()
            if self.subcommand == "fit":
                self.fit()
            else:
                self.validate()

    def fit(self) -> None:
        """Trains a new run, or resumes one."""
        settings = self.settings
        with self.hosts.agree() as seen:
            resume, news = self.prepare()
            seen |= seen_in_training(settings, resume.checkpoint, self.datamodule)
            seen["init_from"] = "set" if resume.given_weights else "not set"
        exit_if_signalled()
        first = self.trainer.is_global_zero
        leaves_something = first and not settings.trainer.fast_dev_run
        with contextlib.ExitStack() as held:
            with self.hosts.agree():
                news += held.enter_context(take_folder(settings, resume)) if leaves_something else []
            with self.hosts.agree():
                check_shared(settings)
            if first:
                self.announce(news, resume)
            if resume.nothing_left:
                sys.exit(0)
            start = time.monotonic()
            with joined(self.hosts, self.trainer):
                if resume.given_weights:
                    self.share_weights()
                self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=resume.checkpoint)
        if leaves_something:
            print(achieved(self.trainer, time.monotonic() - start))
            print(ending(self.trainer))
            print(self.trainer.profiler.summary(), end="")  # type: ignore[attr-defined]  # Lightning would only log it

    def prepare(self) -> tuple[Resume, list[str]]:
        """Decides how the run begins and makes its parts; returns also what to print of it."""
        settings = self.settings
        resume = find_resume(settings, self.hosts)
        settings.ckpt_path, settings.allow_changed_data = resume.checkpoint, False  # for config.yaml
        self.make(resume)
        if resume.weights is not None:
            self.model.load_state_dict(resume.weights)
        self.model.starts_anew = not resume.given_weights and resume.checkpoint is None
        self.datamodule.setup("fit")
        news = list(resume.news)
        if resume.data is not None:
            news += from_here_on(
                compare_processes(resume, self.trainer.accumulate_grad_batches, self.trainer.world_size)
            )
            news += from_here_on(self.datamodule.compare(resume.data, resume.allow_changed_data))
            if resume.step >= self.trainer.max_steps:
                # Or Lightning would not start. Checkpoints corrects it.
                set_max_steps(self.trainer, self.trainer.max_steps + 1)
        self.open_data("fit", resume.step)  # before Lightning opens the run's folder
        return resume, news

    def share_weights(self) -> None:
        """Sends the weights that the first process has read to the others."""
        weights = from_first(self.model.state_dict)
        if self.hosts.rank:
            self.model.load_state_dict(weights)

    def validate(self) -> None:
        """Prints the loss of a checkpoint on the validation file."""
        settings = self.settings
        with self.hosts.agree() as seen:
            path, _ = locate_checkpoint(settings, self.hosts)
            if path is None:
                raise InputError("which checkpoint? --ckpt_path checkpoints/RUN/best.ckpt names one")
            checkpoint = (peek_checkpoint if self.hosts.rank else check_checkpoint)(path)
            compare_shape(checkpoint, vars(settings.model), path)
            settings.ckpt_path = path
            self.make(Resume())
            self.open_data("validate")
            seen |= seen_in_validation(settings, self.datamodule)
        if self.trainer.is_global_zero:
            warn_of_overlap(self.datamodule)
        with joined(self.hosts, self.trainer):
            self.trainer.validate(
                self.model, datamodule=self.datamodule, ckpt_path=settings.ckpt_path, verbose=settings.verbose
            )

    def open_data(self, stage: str, step: int = 0) -> None:
        """Opens and checks the data: all shards of token sets, if one of several processes could meet a bad one.

        Otherwise those that are read first, so that a run which cannot begin leaves no folder. step: of the run so far.
        """
        self.datamodule.setup(stage)
        if self.trainer.limit_val_batches:  # a range test has none
            self.datamodule.count_val_batches(self.trainer.limit_val_batches)
        if self.trainer.world_size > 1:
            self.datamodule.verify_rest()
        elif stage == "fit":
            batches = self.trainer.accumulate_grad_batches
            self.datamodule.read_beginning(range(step * batches, (step + 1) * batches), MOST_TOKENS)

    def make(self, resume: Resume) -> None:
        """Makes model, data and trainer; InputError if settings do not fit together."""
        settings = self.settings
        if settings.seed_everything is not False:
            seed = settings.seed_everything
            try:
                if seed is True:
                    seed = self.hosts.decided(drawn_seed)
                settings.seed_everything = seed_everything(seed, workers=True)
            except ValueError as error:
                raise InputError(f"seed_everything: {error}") from None
        try:
            check_memory(settings.model)
            made = self.make_classes()
            self.model, self.datamodule = made.model, made.data
            self.trainer = self.instantiate_trainer(**self.parts_of_trainer(made.trainer.logger, resume))
        except (ValueError, TypeError, OverflowError, ImportError) as error:  # a class refuses its settings
            raise InputError(one_line(str(error))) from None

    def parts_of_trainer(self, loggers: Any, resume: Resume) -> dict[str, Any]:
        """Returns the trainer's arguments that are not settings.

        loggers: those that the settings name.
        """
        settings, parts = self.settings.trainer, dict[str, Any](plugins=[RunCheckpointIO()])
        if self.subcommand != "fit":
            parts["logger"] = False
        elif settings.logger is not False:
            others = loggers if isinstance(loggers, list) else [loggers]
            others = [logger for logger in others if isinstance(logger, Logger)]
            parts["logger"] = [RunLogger(settings.default_root_dir, resume.step), *others]
        if settings.strategy == "fsdp":
            parts["strategy"] = FullySharded(self.settings.checkpoints.sharded)
        elif self.settings.checkpoints.sharded and self.subcommand == "fit":
            raise InputError(
                f"checkpoints.sharded is true, and trainer.strategy is {settings.strategy}, which shards nothing; take"
                " fsdp, or leave checkpoints.sharded out"
            )
        if self.world is not None:
            parts["plugins"].append(self.world.environment)
            parts |= self.world.parts_of_trainer(settings)
        return parts

    def instantiate_trainer(self, **parts: Any) -> Trainer:
        """Makes the trainer from the settings, these parts and a run's own callbacks."""
        settings = self.settings.trainer
        bar = sys.stderr.isatty() if settings.enable_progress_bar is None else settings.enable_progress_bar
        progress = TrainingBar() if bar else ProgressLines()
        parts["enable_progress_bar"] = bool(bar)  # else Lightning adds a bar of its own
        sources = [SourceFigures(self.datamodule)] if len(self.datamodule.sources) > 1 else []
        own = [Throughput(), StopWhenDiverged(), Overfitting(), ForecastFinalLoss(), *sources, progress]
        self.trainer_defaults["callbacks"] = own
        trainer = super().instantiate_trainer(**parts)
        if self.world is not None:
            self.world.check(trainer)
        if time_is_up(trainer):
            raise InputError(f"trainer.max_time is {settings.max_time}, too short for any step")
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError("trainer.strategy FSDPStrategy: is FSDP's first version; take fsdp, which is the second")
        return trainer

    def announce(self, news: list[str], resume: Resume) -> None:
        """Prints how the run begins, its size, and the memory and disk space it needs."""
        settings, trainer = self.settings, self.trainer
        if resume.nothing_left:
            print(*news, "nothing is left to do", sep="\n")
            return
        tokens = settings.data.batch_size * settings.model.context_length
        tokens *= trainer.accumulate_grad_batches * trainer.world_size
        steps = min(trainer.max_steps, self.model.hparams["max_steps"])
        print(*news, sep="\n", end="\n" if news else "")
        print(
            f"{settings.trainer.default_root_dir}: {self.model.model.num_parameters():,} parameters,"
            f" {steps:,} steps of {tokens:,} tokens, {trainer.precision} on"
            f" {trainer.strategy.root_device}"
        )
        if trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1:
            announce_needs(settings)
        warn_of_overlap(self.datamodule)


def drawn_seed() -> int:
    """Draws a seed; the processes that Lightning starts find the one that the first has drawn."""
    drawn = os.environ.get("PL_GLOBAL_SEED")
    return int(drawn) if drawn else secrets.randbelow(1 << 32)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors of Lightning and jsonargparse about settings into an InputError of one line."""
    try:
        yield
    except ArgumentError as error:
        message = textwrap.shorten(str(error), 400)  # it may quote a whole file
        raise InputError(f"{message}; `lm fit --print_config` shows every setting") from None
    except (MisconfigurationException, ModuleNotFoundError) as error:  # a callback may need a package
        raise InputError(" ".join(str(error).split())) from None
