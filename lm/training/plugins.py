"""Replaces parts of Lightning's Trainer: what writes configuration, checkpoints and curves."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lm.distributed.broadcasting import from_first
from lm.machine.identity import code_in_words, machine_in_words
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.events import CODE, EVENT_FILES, MACHINE
from lm.runs.folder import CONFIG
from lm.runs.recorded_settings import settings_of
from lm.training.lightning_inside import WholeRecords, has_event_file, stamped_event_file, write_summary
from tokenization import InputError
from tokenization.files import write_text

LAYOUT = {  # of TensorBoard's Custom Scalars tab: chapters of charts, each of the tags that its patterns match
    "loss": {
        "training and validation loss, nats per token": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "validation and baselines, bits per byte": ["Multiline", ["^val/bits_per_byte$", "^baselines/"]],
        "validation loss minus training loss": ["Multiline", ["^val/gap$"]],
    },
    "optimization": {
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm before clipping": ["Multiline", ["^train/gradient_norm$"]],
        "steps skipped": ["Multiline", ["^train/skipped_steps$"]],
    },
    "text": {
        "passes over the training tokens": ["Multiline", ["^train/passes$", "^data/passes/"]],
        "shares of a mixture": ["Multiline", ["^data/share/"]],
    },
    "speed": {
        "tokens per second": ["Multiline", ["^train/tokens_per_second$"]],
        "MFU": ["Multiline", ["^train/mfu$"]],
        "peak memory, GB": ["Multiline", ["^train/peak_memory_gb$"]],
    },
    "norms by part": {
        "gradients": ["Multiline", ["^gradient_norm/"]],
        "weights": ["Multiline", ["^weight_norm/"]],
        "activations": ["Multiline", ["^activation_rms/"]],
    },
}
hparam_summaries: Callable[..., tuple[Any, ...]] = hparams  # torch's has no annotations


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when training starts, not earlier, so that a refused run changes no file."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **settings: Any) -> None:
        super().__init__(parser, config, **settings)
        try:
            self.content = parser.dump(config, skip_unset=False)
        except ValueError as error:  # a class's argument of a type that YAML lacks
            reason = str(error).partition("Errors:")[2].partition("- Not a valid")[0] or str(error)
            words = " ".join(reason.split()).strip("- ")
            raise InputError(f"config.yaml cannot record a setting: {words}; leave it out") from None

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
            facts = {
                "precision": str(trainer.precision),
                MACHINE: machine_in_words(trainer.strategy.root_device, trainer.world_size),
                CODE: code_in_words(),
            }
            for logger in trainer.loggers:
                logger.log_hyperparams(settings | facts)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = settings_of(self.config)


class RunCheckpointIO(TorchCheckpointIO):
    """Writes and reads checkpoints by lm/runs/checkpoint.py; of several processes the first one reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return from_first(lambda: load_checkpoint(path))


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard's event files, and nothing else, into the run's folder."""

    def __init__(self, folder: str, step: int):
        """step: the one that the run begins after, 0 for a new run. What an earlier start drew beyond it disappears."""
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=step + 1)
        self.records: WholeRecords | None = None  # of the event file; there is none in other processes than the first
        self.short_of_room = False

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of an event file whose name sorts last, whatever the clock says: files are read in that order."""
        if has_event_file(self):
            return cast(SummaryWriter, super().experiment)
        stamps = (path.name.split(".")[3] for path in Path(self.root_dir).glob(EVENT_FILES))
        newest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        with stamped_event_file(max(int(time.time()), newest + 1)):
            writer = cast(SummaryWriter, super().experiment)
        self.records = WholeRecords(writer)
        writer.add_custom_scalars(LAYOUT)
        return writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the metrics without the epoch that Lightning adds: a run counts steps."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Logs settings for TensorBoard's HParams tab, which shows the last values of these curves beside them."""
        for summary in hparam_summaries(
            dict(params), dict.fromkeys(("val/loss", "val/bits_per_byte", "train/loss"), 0)
        ):
            write_summary(self.experiment, summary)

    def save(self) -> None:
        """Flushes the event file; writes no hparams.yaml, which a resumed run would not update.

        A full disk does not end the run: the figures that find no room are left out, which a line says once.
        """
        self.experiment.flush()
        if self.records is None:
            return
        failure, self.records.failure = self.records.failure, None
        if failure and not self.short_of_room:
            print(f"some figures are not drawn ({' '.join(str(failure).split())}); the run goes on without them")
        self.short_of_room = failure is not None or self.records.failing
