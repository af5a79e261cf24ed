"""`lm fit` and `lm validate`: LightningCLI with the defaults, links and checks that make a run one folder.

Nothing is computed here. Every check comes before anything is written.
"""

import contextlib
import inspect
import logging
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import FSDPStrategy

from lm.callbacks import Norms, TextSamples, TrainingBar
from lm.checkpoint import find_checkpoint, load_checkpoint, read_manifest
from lm.checks import (
    announce_needs,
    check_continuation,
    check_folder,
    check_length,
    check_memory,
    check_numbers,
    check_paths,
    check_precision,
    check_trainer,
    compare_config,
    compare_settings,
    validation_due,
)
from lm.command_line import arrange, explain, one_line, warn_of_variables
from lm.data import TokenDataModule
from lm.devices import HELP, find_device
from lm.machine import native_precision
from lm.module import LanguageModel
from lm.newest import find_newest, make_last
from lm.nonfinite import StopWhenDiverged
from lm.plugins import FullySharded, RunCheckpointIO, RunLogger, SaveConfig
from lm.progress import ProgressLines, ending, time_is_up
from lm.recovery import Checkpoints
from lm.run_folder import TOKENIZER, delete_leftovers, run_lock
from lm.signals import leave_if_asked
from lm.throughput import Throughput
from lm.transformer import MODEL_SETTINGS
from tokenization import InputError, Tokenizer

HARMLESS_WARNINGS = (
    "LightningCLI's args parameter",  # said whenever the arguments do not come from sys.argv
    "You're resuming from a checkpoint that ended before",  # our batches follow from the step: nothing is lost
    "The '.*_dataloader' does not have many workers",  # a batch takes 0.1 ms to gather
    ".*isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
    "Checkpoint directory .* exists and is not empty",
    "Be aware that when using `ckpt_path`, callbacks",  # a changed setting, and announced as such
)

LINKED = {  # settings that follow from another, which alone can be set
    "data.context_length": "model.context_length",
    "data.vocab_size": "model.vocab_size",
    "model.max_steps": "trainer.max_steps",
}

# One batch is not all batches: `typing` makes one type of Union[int, float] and Union[float, int], whichever comes
# first in the program, and by the second `--trainer.limit_val_batches 1` would be read as 1.0, the whole file.
for _name in ("limit_train_batches", "limit_val_batches"):
    inspect.unwrap(Trainer.__init__).__annotations__[_name] = int | float | None


class RunCLI(LightningCLI):
    """A run's folder is trainer.default_root_dir."""

    def __init__(self, argv: list[str]):
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for library in ("lightning.pytorch", "lightning.fabric"):  # devices that are not there, tips, adverts
            logging.getLogger(library).setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # where one asks for it
        parser_settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LanguageModel,
            TokenDataModule,
            args=arrange(argv),
            parser_kwargs={"prog": "lm", **parser_settings, "fit": parser_settings, "validate": parser_settings},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "default_root_dir": "checkpoints/run",
                "max_steps": 1000,
                "max_epochs": -1,
                "val_check_interval": 100,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "log_every_n_steps": 10,
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "ckpt_path", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(TextSamples, "samples")
        parser.add_lightning_class_args(Norms, "norms")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="the checkpoint to go on from, or to validate: a file; last or best, those of the run's folder; auto,"
            " the newest there that verifies, and where there is none a new run",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="begin a new run with the weights of this checkpoint or run, imported ones among them: everything else"
            " begins anew; where --ckpt_path goes on with a run, it has no effect",
        )
        parser.add_argument(
            "--allow_changed_data",
            type=bool,
            default=False,
            help="go on from a checkpoint with another text than it was trained on; counts once, and is not recorded",
        )
        parser.add_argument(
            "--device",
            type=Literal["auto", "cpu", "cuda", "mps"] | None,
            default=None,
            help=f"{HELP}; takes the place of trainer.accelerator, under which it is recorded",
        )
        for target, source in LINKED.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = [option.lstrip("-") for option in self._subcommand_parsers[args[0]]._option_string_actions]
            raise InputError(explain(str(error), args, [name for name in options if name not in LINKED])) from None

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from None

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's settings silently override the command line; see compare_settings."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        settle_trainer(config)
        check_precision(config.trainer.precision)
        check_paths(config)
        warn_of_variables()
        automatic = config.ckpt_path == "auto"
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(Path(config.trainer.default_root_dir, f"{config.ckpt_path}.ckpt"))
        self.news = self._find_checkpoint(config) if automatic else []
        checkpoint = load_checkpoint(config.ckpt_path) if config.ckpt_path is not None else None
        changes = compare_settings(checkpoint, vars(config.model), config.ckpt_path) if checkpoint else []
        if self.config.subcommand == "validate":
            if checkpoint is None:
                raise InputError("which checkpoint? --ckpt_path checkpoints/RUN/best.ckpt names one")
            return
        if not config.trainer.fast_dev_run:
            check_length(config.trainer, config.model)
        check_folder(config)
        # Said when everything has been checked, and not said by every process.
        self.start_step, self.data_state, self.nothing_left, self.automatic = 0, None, False, automatic
        self.allow_changed_data, config.allow_changed_data = config.allow_changed_data, False
        if checkpoint is not None:
            done = checkpoint["global_step"] == config.trainer.max_steps and not validation_due(checkpoint)
            self.nothing_left = automatic and done
            if not self.nothing_left:
                check_continuation(checkpoint, config)
            self.data_state, self.start_step = checkpoint[TokenDataModule.__name__], checkpoint["global_step"]
            self.news += [] if done and automatic else [f"going on from {config.ckpt_path}, step {self.start_step}"]
            changes += compare_config(checkpoint, config)
            self.news += [f"  from here on  {change}" for change in changes]
        self.initial = None
        if config.init_from is not None and checkpoint is None:
            self.initial = self._read_initial(config)

    def _read_initial(self, config: Namespace) -> dict[str, Any]:
        """The state dict that a new run begins with."""
        path = find_checkpoint(config.init_from)
        checkpoint = load_checkpoint(path)
        shape = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
        compare_settings({"hyper_parameters": shape}, vars(config.model), path)
        digests = [Tokenizer.load(folder).digest for folder in (path.parent / TOKENIZER, config.data.tokenizer)]
        if digests[0] != digests[1]:
            raise InputError(
                f"{path}: knows the tokens of {path.parent / TOKENIZER}, and not those of {config.data.tokenizer};"
                " encode the text with that tokenizer, and set data.tokenizer"
            )
        self.news.append(f"beginning with the weights of {path}")
        return checkpoint["state_dict"]

    def _find_checkpoint(self, config: Namespace) -> list[str]:
        """--ckpt_path auto. A run that has nothing left to do ends well, for whoever starts it again and again."""
        path, reasons = find_newest(config.trainer.default_root_dir)
        config.ckpt_path = str(path) if path else None
        return [f"--ckpt_path auto: {reason}" for reason in reasons]

    def instantiate_classes(self) -> None:
        try:
            check_memory(self.config[self.config.subcommand].model)
            super().instantiate_classes()
        except (ValueError, TypeError) as error:  # a module's word that settings do not fit together
            raise InputError(one_line(str(error))) from None
        if self.config.subcommand == "fit" and self.initial is not None:
            self.model.load_state_dict(self.initial)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.config.subcommand].trainer
        if self.config.subcommand != "fit":
            kwargs["logger"] = False
        elif config.logger is not False:
            given = self._get(self.config_init, "trainer")["logger"]
            others = [
                logger for logger in (given if isinstance(given, list) else [given]) if isinstance(logger, Logger)
            ]
            kwargs["logger"] = [RunLogger(config.default_root_dir, self.start_step), *others]
        if config.strategy == "fsdp":
            kwargs["strategy"] = FullySharded()
        progress = ProgressLines() if config.enable_progress_bar is False else TrainingBar()
        self.trainer_defaults["callbacks"] = [Throughput(), StopWhenDiverged(), progress]
        trainer = super().instantiate_trainer(plugins=[RunCheckpointIO()], **kwargs)
        if time_is_up(trainer):
            raise InputError(f"trainer.max_time is {config.max_time}; no step can be made in that")
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError("trainer.strategy FSDPStrategy: it is FSDP's first version; fsdp is the second")
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with contextlib.ExitStack() as self.held:
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | {"ckpt_path": self.config[subcommand].ckpt_path}

    def before_fit(self) -> None:
        self.datamodule.setup("fit")  # what is wrong with the data is said before Lightning opens the run's folder
        settings, trainer = self.config.fit, self.trainer
        if self.data_state is not None:
            changes = self.datamodule.compare(self.data_state, self.allow_changed_data)
            self.news += [f"  from here on  {change}" for change in changes]
            if self.start_step >= trainer.max_steps:
                trainer.fit_loop.epoch_loop.max_steps += 1  # or Lightning would not begin; Checkpoints puts it right
        leave_if_asked()
        if trainer.is_global_zero and not settings.trainer.fast_dev_run:
            self._take_folder(settings)
        if trainer.is_global_zero:
            self._announce()
        if self.nothing_left:
            sys.exit(0)

    def after_fit(self) -> None:
        if self.trainer.is_global_zero and not self.config.fit.trainer.fast_dev_run:
            print(ending(self.trainer))
            print(self.trainer.profiler.summary(), end="")  # type: ignore[attr-defined]  # which Lightning logs at most

    def _announce(self) -> None:
        settings, trainer = self.config.fit, self.trainer
        if self.nothing_left:
            print(*self.news, "nothing is left to do", sep="\n")
            return
        tokens = settings.data.batch_size * settings.model.context_length
        tokens *= trainer.accumulate_grad_batches * trainer.world_size
        print(*self.news, sep="\n", end="\n" if self.news else "")
        print(
            f"{settings.trainer.default_root_dir}: {self.model.model.num_parameters():,} parameters,"
            f" {trainer.max_steps:,} steps of {tokens:,} tokens, {trainer.precision} on {trainer.strategy.root_device}"
        )
        if trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1:
            announce_needs(settings)

    def _take_folder(self, config: Namespace) -> None:
        """What was found in it is looked at again: another run may have written to it until now."""
        self.held.enter_context(run_lock(config.trainer.default_root_dir))
        check_folder(config)
        if config.ckpt_path is not None and read_manifest(config.ckpt_path)["step"] != self.start_step:
            raise InputError(f"{config.ckpt_path}: another run has just replaced it; start again")
        if self.automatic and config.ckpt_path is not None:
            make_last(config.ckpt_path)
        for path in delete_leftovers(config.trainer.default_root_dir):
            self.news.append(f"{path}: left half-written by a run that was killed; deleted")


def settle_trainer(config: Namespace) -> None:
    """Checks the trainer's settings, and puts in what was left to the machine."""
    trainer = config.trainer
    if config.device is not None:
        trainer.accelerator, config.device = find_device(config.device).type, None
    trainer.precision = str(trainer.precision or native_precision(trainer.accelerator))  # 32 is a number
    check_numbers(config)
    check_trainer(trainer)


class SettingsCLI(RunCLI):
    """The settings as `lm fit` would see them, read and checked; no class is made, and no folder is looked at."""

    def before_instantiate_classes(self) -> None:
        settle_trainer(self.config.fit)

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _set_seed(self) -> None:
        pass


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns what Lightning and jsonargparse refuse into an InputError of one line."""
    try:
        yield
    except ArgumentError as error:
        message = textwrap.shorten(str(error), 400)  # on one line, however much of a wrong file it quotes
        raise InputError(f"{message}; `lm fit --print_config` shows every setting") from None
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from None
