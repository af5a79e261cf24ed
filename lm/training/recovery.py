"""Decides when a run's state is saved: at its steps and validations, on SIGTERM and Ctrl-C, and when something fails.

How it is saved is in saving.py.
"""

import contextlib
import math
import signal
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lm.machine.signals import Interrupted, Signals, exit_if_signalled
from lm.monitoring.ending import resuming
from lm.monitoring.overfitting import Overfitting
from lm.runs.finite import in_words
from lm.runs.folder import BEST, LAST, TOKENIZER, kept_name
from lm.runs.newest import branch_from
from lm.training.lightning_inside import (
    add_batches_trained,
    batches_trained,
    draw_step_now,
    has_begun_a_step,
    is_mid_step,
    is_validation_due,
    loop_counters,
    set_max_steps,
    validate_now,
)
from lm.training.nonfinite import Diverged, last_good, lost_tensors
from lm.training.saving import Boundary, Saver, run_folder
from lm.training.sharding import FullySharded
from tokenization import InputError


class Checkpoints(Checkpoint):
    """Saves the newest state and that of the lowest validation loss, with the tokenizer beside them.

    Args:
        every_n_steps: optimizer steps from one save of last.ckpt to the next; each validation saves it too.
        keep_every_n_steps: every this many steps, keep the state permanently as step-N.ckpt; null keeps none.
        sharded: each process of a run with trainer.strategy fsdp writes its own part of the weights and moments, into
            shards/ in the run's folder, which must be on a disk that all hosts share; `lm consolidate` makes one file
            of it. False gathers them in the first process.
    """

    def __init__(self, every_n_steps: int = 500, keep_every_n_steps: int | None = None, sharded: bool = False):
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} is {value}; it must be at least 1")
        self.every_n_steps, self.saver = every_n_steps, Saver(keep_every_n_steps)
        self.validation_loss = 0.0  # the last one
        self.unsafe = ""  # why the state at the boundary cannot be saved now
        self.signals: Signals | None = None

    # --- steps and validations ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        exit_if_signalled()
        self.signals = Signals(quiet=not trainer.is_global_zero)
        anew = any(callback.began_anew for callback in trainer.callbacks if isinstance(callback, Overfitting))  # type: ignore[attr-defined]
        if anew or not (run_folder(trainer) / BEST).exists():
            self.saver.best_loss = math.inf
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.saver.tokenizer.keep(trainer.datamodule.tokenizer, run_folder(trainer) / TOKENIZER)  # type: ignore[attr-defined]
        self.saver.boundary.loops = self.saver.boundary.loops or loop_counters(trainer)
        self.saver.branch = branch_from(self.saver.branch, self.saver.boundary.step, run_folder(trainer))
        set_max_steps(trainer, pl_module.hparams["max_steps"])  # cli.py may have added one
        if self.saver.boundary.validation_due:
            validate_now(trainer)  # the interrupted run still owes it

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.unsafe = "the weights were being changed; "

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.saver.boundary.step:
            return  # within a step that accumulates batches
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops, at whatever step that is
        self.saver.boundary, self.unsafe = self._this_boundary(trainer), ""

    def _this_boundary(self, trainer: Trainer) -> Boundary:
        due = is_validation_due(trainer) or trainer.should_stop
        return Boundary(trainer.global_step, loop_counters(trainer), due)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Saves here, not at the step's end, so that the checkpoint comes after the step's figures are logged."""
        step = self.saver.boundary.step
        if is_mid_step(trainer):
            return
        self._exit_if_signalled(trainer)
        if step % self.every_n_steps == 0 or kept_name(step, self.saver.keep_every_n_steps):
            self.saver.try_to_save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._exit_if_signalled(trainer)

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.unsafe = "its validation was being recorded; "  # resuming would record it twice

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        begun = has_begun_a_step(trainer)  # where trainer.max_time has ended it: a run resumes before that step
        loops = self.saver.boundary.loops if begun else loop_counters(trainer)
        self.saver.boundary, self.unsafe = Boundary(trainer.global_step, loops), ""
        self.validation_loss = trainer.callback_metrics["val/loss"].item()
        self.saver.try_to_save(trainer, self.validation_loss)
        if trainer.global_step < trainer.max_steps:
            self._exit_if_signalled(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saver.stop_if_lost(trainer)
        skipped = int(pl_module.skipped_steps.in_a_row)  # type: ignore[arg-type, union-attr]
        if skipped > 1:  # one may be a bad batch; more mean bad weights
            raise Diverged(
                f"the last {skipped} steps were skipped because their loss or gradient was not finite;"
                f" {last_good(run_folder(trainer) / LAST)}; lower model.learning_rate"
            )
        if not math.isfinite(self.validation_loss):
            raise Diverged(
                f"the run has ended at step {trainer.global_step:,} with a validation loss of {self.validation_loss};"
                f" {last_good(run_folder(trainer) / BEST)}; lower model.learning_rate, or inspect data.val_path"
            )
        self.saver.save_last(trainer)
        self.saver.tokenizer.put_back()
        if self.saver.tokenizer.was_lost:
            raise InputError(
                f"{run_folder(trainer) / TOKENIZER}: was deleted or changed during the run and has been restored; find"
                " out what did it"
            )

    # --- signals and failures ----------------------------------------------------------------------------------------

    def _exit_if_signalled(self, trainer: Trainer) -> None:
        """Raises Interrupted in all processes at the same step; only the first one's exit code names the signal."""
        assert self.signals is not None
        asked = self.signals.received is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            signum = self.signals.received or signal.SIGTERM
            raise Interrupted(128 + signum if trainer.is_global_zero else 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.signals is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # training has not begun, or saves nothing
        sharded = isinstance(trainer.strategy, FullySharded)
        if not trainer.is_global_zero and not (sharded and isinstance(exception, Interrupted)):
            return  # a signal ends all processes at one step, where they can still gather a sharded state
        if trainer.global_step == self.saver.boundary.step + 1:  # a callback failed after the step was done
            self.saver.boundary, self.unsafe = self._this_boundary(trainer), ""
            with contextlib.suppress(Exception):
                draw_step_now(trainer)
        outcome = self._save_after_failure(trainer, exception, sharded)
        if trainer.is_global_zero:
            print(f"stopped after step {self.saver.boundary.step:,} of {trainer.max_steps:,}; {outcome}")

    def _save_after_failure(self, trainer: Trainer, exception: BaseException, sharded: bool) -> str:
        """Saves the state unless it is bad or incomplete, and returns words on the outcome.

        A sharded state is gathered from all processes, and after a failure of one that would wait for ever.
        """
        if self.saver.boundary is self.saver.saved:
            reason = ""
        elif isinstance(exception, Diverged):
            reason = "no good state since then; "
        elif sharded and not isinstance(exception, Interrupted):
            reason = "the state is spread over the processes, and one of them has failed; "
        elif self.unsafe:
            reason = self.unsafe
        elif bad := self.saver.lost_anywhere(trainer) if sharded else lost_tensors(trainer):
            reason = f"{in_words(bad)}; "
        else:
            try:
                self.saver.save_last(trainer)
                reason = ""
            except Exception as failure:  # the first exception matters more
                reason = f"could not be saved ({' '.join(str(failure).split())}); "
        last, step = run_folder(trainer) / LAST, self.saver.saved.step
        if not last.exists():
            return f"{reason}nothing saved"
        return f"{reason}`{resuming(run_folder(trainer))}` resumes from step {step:,}"

    # --- what a checkpoint holds of this ------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"] = self.saver.boundary.loops
        checkpoint["processes"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time counts from each start
        state = checkpoint["callbacks"][self.state_key]
        loops, batches = checkpoint["loops"]["fit_loop"], checkpoint["global_step"] * trainer.accumulate_grad_batches
        add_batches_trained(loops, batches - batches_trained(checkpoint))  # fewer processes accumulate more of them
        self.saver.boundary = self.saver.saved = Boundary(checkpoint["global_step"], loops, state["validation_due"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.saver.best_loss,
            "branch": self.saver.branch,
            "validation_due": self.saver.boundary.validation_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saver.best_loss, self.saver.branch = state_dict["best_loss"], state_dict.get("branch", 0)
