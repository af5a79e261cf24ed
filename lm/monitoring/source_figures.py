"""Shows how a mixture is drawn: each source's share of the windows so far, and the passes over it."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.data.datamodule import TokenDataModule
from lm.monitoring.saying import say


class SourceFigures(Callback):
    """Logs data/share and data/passes of each source at each logged step, and prints them after each validation.

    data: of more than one source.
    """

    def __init__(self, data: TokenDataModule):
        self.data = data

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mixture = self.data.mixture
        assert mixture is not None
        for name, share, file in zip(mixture.names, mixture.shares, mixture.files, strict=True):
            say(trainer, f"training on {name}: {float(share):.1%} of the windows; {len(file):,} tokens")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        for name, (share, passes) in self.data.source_figures().items():
            pl_module.log(f"data/share/{name}", share)
            pl_module.log(f"data/passes/{name}", passes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        figures = self.data.source_figures().items()
        listed = "; ".join(f"{name} {share:.1%}, {passes:.3g} passes" for name, (share, passes) in figures)
        say(trainer, f"step {trainer.global_step:,}: drawn from {listed}")
