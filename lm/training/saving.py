"""Writes a run's checkpoints: the newest state, the best one, and those to be kept, with the tokenizer beside them.

A run can resume from a boundary: a step has ended, and the next has not yet begun to change the weights. What is saved
is always the state at the last boundary, without what has happened since: half a step, half a validation.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import Trainer

from lm.runs.finite import in_words
from lm.runs.folder import BEST, LAST, kept_name
from lm.training.kept_tokenizer import KeptTokenizer
from lm.training.lightning_inside import whole_checkpoint
from lm.training.nonfinite import Diverged, last_good, lost_tensors
from lm.training.sharding import FullySharded


def run_folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


@dataclass
class Boundary:
    """The end of a step. Weights and optimizer need no copy: they change only in the next step's update."""

    step: int
    loops: dict[str, Any] = field(default_factory=dict)  # Lightning's counters
    validation_due: bool = False  # the validation of this step has not ended


class Saver:
    """Saves the state at the last boundary under the names that it deserves.

    keep_every_n_steps: every so many steps, it is also kept for good; None keeps none.
    """

    def __init__(self, keep_every_n_steps: int | None):
        self.keep_every_n_steps = keep_every_n_steps
        self.best_loss = float("inf")
        self.branch = 0  # newest.py
        self.boundary = self.saved = Boundary(0)
        self.tokenizer = KeptTokenizer()

    def stop_if_lost(self, trainer: Trainer) -> None:
        """Raises Diverged if weights or moments are not finite: they never recover, and must not replace good ones."""
        if bad := self.lost_anywhere(trainer):
            raise Diverged(
                f"{in_words(bad)} at step {self.boundary.step:,};"
                f" {last_good(run_folder(trainer) / LAST)}; lower model.learning_rate"
            )

    def lost_anywhere(self, trainer: Trainer) -> list[str]:
        """Returns the names of tensors that are not finite; asks all processes."""
        bad = lost_tensors(trainer)
        if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            return bad or ["what another device holds"]
        return []

    def try_to_save(self, trainer: Trainer, validation_loss: float = float("inf")) -> None:
        """Saves unless steps are being skipped; a full disk does not end the run, as the next save may find room."""
        self.stop_if_lost(trainer)
        if int(trainer.lightning_module.skipped_steps.in_a_row):  # type: ignore[arg-type, union-attr]
            return
        try:
            if math.isfinite(validation_loss) and validation_loss < self.best_loss:
                best_before, self.best_loss = self.best_loss, validation_loss  # best.ckpt records it
                try:
                    self.save(trainer, BEST)
                except OSError:
                    self.best_loss = best_before
                    raise
            self.save_last(trainer)
        except OSError as error:
            if trainer.is_global_zero:  # of a sharded run, all processes come here
                reason = " ".join(str(error).split())
                print(f"step {self.boundary.step:,}: not saved ({reason}); earlier checkpoints are kept")

    def save_last(self, trainer: Trainer) -> None:
        if self.boundary is self.saved:
            return
        if (kept := kept_name(self.boundary.step, self.keep_every_n_steps)) is not None:
            self.save(trainer, kept)
        self.save(trainer, LAST)  # after the others, which a run resumed from it would not write again
        self.saved = self.boundary

    def prepare(self, trainer: Trainer) -> None:
        """Writes what must be on the disk before a checkpoint is."""
        for logger in trainer.loggers:
            logger.save()  # the event file must not be behind the checkpoint
        self.tokenizer.put_back()

    def save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(trainer.strategy, FullySharded):
            trainer.strategy.in_all(lambda: self.prepare(trainer))  # what follows gathers from all processes, or none
        else:
            self.prepare(trainer)
        # Not trainer.save_checkpoint, which waits for the other processes: one of them may have failed.
        trainer.strategy.save_checkpoint(whole_checkpoint(trainer), run_folder(trainer) / name)
