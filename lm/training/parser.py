"""Defines the settings of `lm fit` and `lm validate`, and reads them from arguments and configurations."""

import contextlib
import logging
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lm.data.datamodule import TokenDataModule
from lm.machine.devices import HELP, find_device
from lm.machine.resources import native_precision
from lm.monitoring.baselines import Baselines
from lm.monitoring.callbacks import Norms
from lm.monitoring.samples import TextSamples
from lm.training.checks import check_numbers, check_trainer
from lm.training.command_line import arrange, explain
from lm.training.lightning_inside import (
    CommandLine,
    HelpFormatter,
    describe_option,
    read_settings_strictly,
    silence_harmless_warnings,
    tell_one_batch_from_all,
)
from lm.training.module import LanguageModel
from lm.training.plugins import SaveConfig
from lm.training.recovery import Checkpoints
from lm.training.short_help import short_help
from tokenization import InputError
from tokenization.numerals import whole_number

LINKED = {  # settings that follow from another and cannot be set themselves
    "data.context_length": "model.context_length",
    "data.vocab_size": "model.vocab_size",
    "model.max_steps": "trainer.max_steps",
}
DESCRIPTIONS = {
    "fit": """Train a model on token files, or resume a run.

  lm fit -c configs/demo.yaml                                             a run as its configuration describes it
  lm fit -c configs/demo.yaml --trainer.max_steps 4000                    with a setting of your own
  lm fit -c configs/debug.yaml --data.train_path a.bin:0.7,b.tokens:0.3   windows of two sources, by weight
  lm fit -c configs/demo.yaml --ckpt_path auto                            resume it, or begin it
  lm fit -c configs/demo.yaml --init_from checkpoints/other/best.ckpt     begin with another model's weights
  lm fit -c configs/demo.yaml --print_config                              every setting, without training

A run's folder, trainer.default_root_dir, holds config.yaml, last.ckpt, best.ckpt and the curves for TensorBoard.""",
    "validate": """Measure a model's loss, perplexity and bits per byte on the validation file.

  lm validate checkpoints/demo                                            the best checkpoint of a run
  lm validate checkpoints/demo/last.ckpt                                  another one
  lm validate checkpoints/demo --data.val_path other.bin                  on another text
  lm validate checkpoints/demo --trainer.limit_val_batches 1.0            on all of it, whatever the run's limit

The settings are those of the run's config.yaml; -c names another configuration.""",
}
USAGE = "lm {} [-c CONFIG] [--SETTING VALUE ...]"
DEFAULTS: dict[str, Any] = {  # of the trainer, where they differ from Lightning's
    "default_root_dir": "checkpoints/run",
    "max_steps": 1000,
    "max_epochs": -1,
    "val_check_interval": 100,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}


WORDS = {  # on settings that do something else here than Lightning's help says, or that it does not explain
    "config": "the configuration, a YAML file; several may be given, and later ones override earlier ones",
    "seed_everything": "seed of all random numbers; true draws one, and false seeds nothing",
    "trainer.default_root_dir": "the run's folder",
    "trainer.max_steps": "the last optimizer step, at which the schedule ends",
    "trainer.max_time": "end the run after this time, as DD:HH:MM:SS",
    "trainer.accumulate_grad_batches": "batches of each device in an optimizer step",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, ...; null is bf16-mixed where the device multiplies bfloat16"
    " natively, else 32-true",
    "trainer.devices": "how many devices to use, a list of them, or auto",
    "trainer.strategy": "how several devices train together: ddp, fsdp, or auto",
    "trainer.val_check_interval": "training batches from one validation to the next",
    "trainer.limit_val_batches": "validate on the first batches of the file: 10 is ten, 1 is one, 1.0 is all of them",
    "trainer.log_every_n_steps": "optimizer steps from one logged step to the next",
    "trainer.enable_progress_bar": "false prints a line at each logged step instead of a bar; null does so"
    " where stderr is not a terminal",
}


class SettingsCLI(CommandLine):
    """Reads and checks the settings of `lm fit` or `lm validate`; instantiates nothing and reads no run's folder.

    The settings are in .settings, by the names of --print_config.
    """

    def __init__(self, argv: list[str]):
        """argv: the subcommand and its arguments; InputError if they are wrong."""
        read_settings_strictly()
        tell_one_batch_from_all()
        silence_harmless_warnings()
        for library in ("lightning.pytorch", "lightning.fabric"):  # missing devices, tips, adverts
            logging.getLogger(library).setLevel(logging.WARNING)
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # on request
        self.asked = argv[0]
        parser_settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        texts = {"usage": USAGE.format(self.asked), "description": DESCRIPTIONS[self.asked]}
        super().__init__(
            LanguageModel,
            TokenDataModule,
            args=arrange(argv),
            parser_kwargs={
                "prog": "lm",
                "formatter_class": HelpFormatter,
                **parser_settings,
                self.asked: parser_settings | texts,
            },
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfig,
            trainer_defaults=dict(DEFAULTS),
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """Returns the requested command, and which arguments of the Trainer's method of that name are not settings.

        Each command has a parser of its own, which takes a tenth of a second to build: the others are not needed.
        """
        loaders = {"fit": {"train_dataloaders", "val_dataloaders"}, "validate": {"dataloaders"}}[self.asked]
        return {self.asked: {"model", "datamodule", "ckpt_path", "weights_only"} | loaders}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings other than those of trainer, model and data."""
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(TextSamples, "samples")
        parser.add_lightning_class_args(Norms, "norms")
        parser.add_lightning_class_args(Baselines, "baselines")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="the checkpoint to resume from, or to validate: a file; last or best of the run's folder; or auto, the"
            " newest there that verifies, or a new run if the folder holds none",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="begin a new run with the weights of this checkpoint or run, which may be imported; everything else"
            " starts anew; has no effect when --ckpt_path resumes a run",
        )
        parser.add_argument(
            "--allow_changed_data",
            type=bool,
            default=False,
            help="resume with other token files than the checkpoint was trained on; applies once, and is not recorded",
        )
        parser.add_argument(
            "--device",
            type=Literal["auto", "cpu", "cuda", "mps"] | None,
            default=None,
            help=f"{HELP}; replaces trainer.accelerator, and is recorded there",
        )
        parser.add_argument("--help-all", action="help", help="describe every setting and exit")
        for name, words in WORDS.items():
            describe_option(parser, name, words)
        for target, source in LINKED.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments; InputError, on one line, if the parser refuses them."""
        usual = contextlib.ExitStack()
        if not {"-h", "--help"}.isdisjoint(args):
            words = short_help(self.asked, USAGE.format(self.asked), DESCRIPTIONS[self.asked], self.options(self.asked))
            usual.enter_context(self.another_help(self.asked, words))
        try:
            with usual:
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            names = [name for name in self.option_names(args[0]) if name not in LINKED]
            raise InputError(explain(str(error), args, names)) from None

    def before_instantiate_classes(self) -> None:
        """Checks the parsed settings."""
        settle_trainer(self.settings)


def settle_trainer(settings: Namespace) -> None:
    """Fills in the settings that depend on the machine, and checks all numbers and the trainer's settings."""
    trainer = settings.trainer
    apple = trainer.accelerator == "auto" and torch.backends.mps.is_available()  # which Lightning's auto would take
    if settings.device is not None or apple:
        trainer.accelerator, settings.device = find_device(settings.device or "auto").type, None
    if isinstance(trainer.devices, str):
        with contextlib.suppress(ValueError):  # the parser takes a number on the command line for a name
            trainer.devices = whole_number(trainer.devices.strip())
    trainer.precision = str(trainer.precision or native_precision(trainer.accelerator))  # YAML reads 32 as a number
    check_numbers(settings)
    check_trainer(trainer)
