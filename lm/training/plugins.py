"""What Lightning's Trainer is given instead of its own: how a run's configuration, checkpoints and curves are written,
and how its weights are spread over devices."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.events import EVENT_FILES
from lm.runs.folder import CONFIG
from lm.training.checks import settings_of
from lm.training.lightning_inside import has_event_file, shard_over_all, stamped_event_file, write_summary
from tokenization import InputError
from tokenization.files import write_text


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when training starts, and not before: a refused run changes no file."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **settings: Any) -> None:
        super().__init__(parser, config, **settings)
        try:
            self.content = parser.dump(config, skip_unset=False)
        except ValueError as error:  # an argument of a class that YAML does not have
            reason = str(error).partition("Errors:")[2].partition("- Not a valid")[0] or str(error)
            words = " ".join(reason.split()).strip("- ")
            raise InputError(f"config.yaml could not record a setting: {words}; leave it out") from None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(Path(trainer.default_root_dir) / CONFIG, self.content)
            settings = {
                f"{group}.{name}": value if isinstance(value, (bool, int, float, str)) else str(value)
                for group in ("model", "data")
                for name, value in vars(self.config[group]).items()
            }
            for logger in trainer.loggers:
                logger.log_hyperparams(settings | {"precision": str(trainer.precision)})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = settings_of(self.config)


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
        shard_over_all(self)
        super().setup_environment()


class RunLogger(TensorBoardLogger):
    """TensorBoard's event files and nothing else, straight into the run's folder."""

    def __init__(self, folder: str, step: int):
        """step: that the run begins after, 0 where an earlier attempt was killed before its first checkpoint; what it
        has drawn beyond disappears."""
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=step + 1)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """Writes an event file whose name sorts last, whatever the clock says: files are joined in that order."""
        if has_event_file(self):
            return cast(SummaryWriter, super().experiment)
        stamps = (path.name.split(".")[3] for path in Path(self.root_dir).glob(EVENT_FILES))
        newest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        with stamped_event_file(max(int(time.time()), newest + 1)):
            return cast(SummaryWriter, super().experiment)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Without the epoch, which Lightning adds: our runs count steps."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """For TensorBoard's HParams tab, which shows beside them the last values of these curves."""
        for summary in hparams(dict(params), dict.fromkeys(("val/loss", "val/bits_per_byte", "train/loss"), 0)):
            write_summary(self.experiment, summary)

    def save(self) -> None:
        """Without the hparams.yaml, which a resumed run would leave as it was: config.yaml is the record."""
        self.experiment.flush()
