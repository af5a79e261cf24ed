"""`lm fit` and `lm validate`: LightningCLI with the defaults, links and checks that make a run one folder.

Nothing is computed here. Every check comes before anything is written.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lm.callbacks import Checkpoints, TextSamples, Throughput, TrainingBar
from lm.checkpoint import CONFIG, LAST, compare_settings, load_checkpoint, save_checkpoint
from lm.data import TokenDataModule
from lm.module import LanguageModel
from tokenization import InputError

HARMLESS_WARNINGS = (
    "LightningCLI's args parameter",  # said whenever the arguments do not come from sys.argv
    "You're resuming from a checkpoint that ended before",  # our batches follow from the step: nothing is lost
    "The '.*_dataloader' does not have many workers",  # a batch takes 0.1 ms to gather
    ".*isinstance\\(treespec, LeafSpec\\)",  # Lightning 2.6 with torch 2.13
    "Checkpoint directory .* exists and is not empty",
)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when training starts, and not before: a refused run changes no file."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / CONFIG
            path.parent.mkdir(parents=True, exist_ok=True)  # a logger would have made it
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)


class RunCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: our way."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(path)


class FullySharded(ModelParallelStrategy):
    """--trainer.strategy fsdp: weights, gradients and optimizer state are spread over all devices, by FSDP's second
    version, under which clip_gradients sees whole gradients; a checkpoint is still one file, and holds all of them."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()


class RunLogger(TensorBoardLogger):
    """TensorBoard's event files and nothing else, straight into the run's folder."""

    def __init__(self, folder: str):
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Without the epoch, which Lightning adds: our runs count steps."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def save(self) -> None:
        """Without the hparams.yaml, which a resumed run would leave as it was: config.yaml is the record."""
        self.experiment.flush()


def native_precision(accelerator: str) -> str:
    """bf16-mixed where the device multiplies bfloat16 natively, else float32."""
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        processor = torch.cpu.get_capabilities()
        native = bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def check_trainer(trainer: Namespace) -> None:
    """trainer: its settings. A run has a length, and is validated and saved between two steps."""
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        if not isinstance(trainer[name], int) or trainer[name] < 1:
            raise InputError(f"trainer.{name} is {trainer[name]}; it must be a whole number, at least 1")
    if trainer.gradient_clip_val is not None or trainer.gradient_clip_algorithm is not None:
        raise InputError("trainer.gradient_clip_val has no effect; model.max_gradient_norm bounds the gradient")
    if trainer.val_check_interval % trainer.accumulate_grad_batches:
        raise InputError(
            f"trainer.val_check_interval {trainer.val_check_interval} counts batches, and must be a multiple of"
            f" trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}"
        )


def check_folder(config: Namespace) -> None:
    """A folder is one run's: only its own checkpoints go on in it."""
    last = Path(config.trainer.default_root_dir) / LAST
    goes_on = config.ckpt_path is not None and Path(config.ckpt_path).resolve().parent == last.parent.resolve()
    if last.exists() and not goes_on and not config.trainer.fast_dev_run:
        raise InputError(
            f"{last.parent}: already holds a run; go on with it by --ckpt_path {last}, or name another folder with"
            " --trainer.default_root_dir"
        )


def check_continuation(checkpoint: dict[str, Any], config: Namespace) -> None:
    """There are steps left, and a step still consists of as many batches: batches are counted by the step."""
    if "loops" not in checkpoint:
        raise InputError(f"{config.ckpt_path}: holds weights alone, and nothing to go on from")
    step, batches_per_step = checkpoint["global_step"], config.trainer.accumulate_grad_batches
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    if batches != step * batches_per_step:
        raise InputError(
            f"{config.ckpt_path}: was trained with trainer.accumulate_grad_batches {batches // step}, not"
            f" {batches_per_step}; leave it at that, or start a new run"
        )
    if step >= config.trainer.max_steps:
        raise InputError(
            f"{config.ckpt_path}: is at step {step}, and trainer.max_steps is {config.trainer.max_steps}; raise"
            " --trainer.max_steps to train on"
        )


class RunCLI(LightningCLI):
    """A run's folder is trainer.default_root_dir."""

    def __init__(self, argv: list[str]):
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for library in ("lightning.pytorch", "lightning.fabric"):  # devices that are not there, tips, adverts
            logging.getLogger(library).setLevel(logging.WARNING)
        parser_settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            LanguageModel,
            TokenDataModule,
            args=argv,
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
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(TextSamples, "samples")
        parser.link_arguments("model.context_length", "data.context_length")
        parser.link_arguments("model.vocab_size", "data.vocab_size")
        parser.link_arguments("trainer.max_steps", "model.max_steps")

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise InputError(f"seed_everything: {error}") from None

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's settings silently override the command line; see compare_settings."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        if config.trainer.precision is None:
            config.trainer.precision = native_precision(config.trainer.accelerator)
        check_trainer(config.trainer)
        checkpoint = load_checkpoint(config.ckpt_path) if config.ckpt_path is not None else None
        changes = compare_settings(checkpoint, vars(config.model), config.ckpt_path) if checkpoint else []
        if self.config.subcommand == "validate":
            if checkpoint is None:
                raise InputError("which checkpoint? --ckpt_path checkpoints/RUN/best.ckpt names one")
            return
        check_folder(config)
        self.data_state: dict[str, Any] | None = None
        if checkpoint is not None:
            check_continuation(checkpoint, config)
            self.data_state = checkpoint[TokenDataModule.__name__]
            print(f"going on from {config.ckpt_path}, step {checkpoint['global_step']}")
            for change in changes:
                print(f"  from here on  {change}")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # a module's word that settings do not fit together
            raise InputError(str(error)) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.config.subcommand].trainer
        if self.config.subcommand != "fit":
            kwargs["logger"] = False
        elif config.logger in (None, True):
            kwargs["logger"] = RunLogger(config.default_root_dir)
        if config.strategy == "fsdp":
            kwargs["strategy"] = FullySharded()
        shown = config.enable_progress_bar is not False
        self.trainer_defaults["callbacks"] = [Throughput(), TrainingBar()] if shown else [Throughput()]
        trainer = super().instantiate_trainer(plugins=[RunCheckpointIO()], **kwargs)
        if isinstance(trainer.strategy, FSDPStrategy):
            raise InputError("trainer.strategy FSDPStrategy: it is FSDP's first version; fsdp is the second")
        return trainer

    def before_fit(self) -> None:
        self.datamodule.setup("fit")  # what is wrong with the data is said before Lightning opens the run's folder
        settings, trainer = self.config.fit, self.trainer
        if self.data_state is not None:
            self.datamodule.load_state_dict(self.data_state)
        tokens = settings.data.batch_size * settings.model.context_length
        tokens *= trainer.accumulate_grad_batches * trainer.world_size
        print(
            f"{settings.trainer.default_root_dir}: {self.model.model.num_parameters():,} parameters,"
            f" {trainer.max_steps:,} steps of {tokens:,} tokens, {trainer.precision} on {trainer.strategy.root_device}"
        )
