"""Logs the processor seconds of a run: the clock of a race, on which waiting for other programs does not count."""

import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.machine.resources import children_seconds

TAG, STARTS = "processor_seconds", "starts"


class ProcessorClock(Callback):
    """Logs processor seconds at each validation and at the end; `lm race` adds it to its runs' callbacks.

    They are those of all processes (of the others, as of the last validation) and of the compilers that they have
    started, user and system, from the first line on: imports, compilation, validations, samples and saves count. A
    resumed run goes on from the seconds of its checkpoint, so that work lost by an interruption does not count, and
    each start does.
    """

    def __init__(self) -> None:
        self.before, self.starts = 0.0, 1
        self.others = 0.0  # of the other processes, at the last validation

    @property
    def own(self) -> float:
        return time.process_time() + children_seconds()

    @property
    def seconds(self) -> float:
        return self.before + self.own + self.others

    def _log(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({TAG: self.seconds, STARTS: float(self.starts)}, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.world_size > 1:
                own = torch.tensor(self.own, dtype=torch.float64, device=trainer.strategy.root_device)
                self.others = float(trainer.strategy.reduce(own.clone(), reduce_op="sum") - own)
            self._log(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._log(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, STARTS: self.starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.starts = state_dict["seconds"], state_dict[STARTS] + 1
