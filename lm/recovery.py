"""When a run's state is saved: at its steps and validations, on SIGTERM and Ctrl-C, and when something fails.

A state can be gone on from where a step has ended and nothing of the next has begun to change the weights. What is
saved is always the last such state, as it was before whatever has happened since: half a step, half a validation.
"""

import contextlib
import math
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lm.finite import in_words
from lm.nonfinite import Diverged, last_good, lost_tensors
from lm.run_folder import BEST, CONFIG, LAST, TOKENIZER
from lm.signals import Interrupted, heeded, leave_if_asked
from tokenization import InputError, Tokenizer
from tokenization.files import writing_together


def run_folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


class Signals:
    """The first SIGTERM or Ctrl-C asks the run to end after its step; a second Ctrl-C leaves at once."""

    def __init__(self, quiet: bool) -> None:
        self.received: int | None = None
        self.quiet = quiet
        for signum in heeded():
            signal.signal(signum, self)  # Lightning puts back what was there when the run ends

    def __call__(self, signum: int, frame: Any) -> None:
        if self.received is not None and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.received = self.received or signum
        if not self.quiet:
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: saving after this step; Ctrl-C leaves at once\n".encode())


@dataclass
class Boundary:
    """The end of a step. Weights and optimizer need no copy: they change in the next one's update, and only there."""

    step: int
    loops: dict[str, Any] = field(default_factory=dict)  # Lightning's counters
    validation_due: bool = False  # between its step and the validation that belongs to it


class Checkpoints(Checkpoint):
    """Keeps the newest state and that of the lowest validation loss, and the tokenizer beside them.

    Args:
        every_n_steps: last.ckpt is also written this often between validations.
        keep_every_n_steps: the states of these steps are kept for ever, as step-N.ckpt; null keeps none.
    """

    def __init__(self, every_n_steps: int = 500, keep_every_n_steps: int | None = None):
        for name, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"checkpoints.{name} is {value}; it must be at least 1")
        self.every_n_steps, self.keep_every_n_steps = every_n_steps, keep_every_n_steps
        self.best_loss = float("inf")
        self.boundary = self.saved = Boundary(0)
        self.validation_loss = 0.0  # the last one
        self.unsafe = ""  # why one cannot go back to the boundary just now
        self.signals: Signals | None = None
        self.tokenizer = KeptTokenizer()

    # --- steps and validations ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        leave_if_asked()
        self.signals = Signals(quiet=not trainer.is_global_zero)
        if not (run_folder(trainer) / BEST).exists():
            self.best_loss = float("inf")  # a run that goes on in another folder has its own best there
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.tokenizer.keep(trainer.datamodule.tokenizer, run_folder(trainer) / TOKENIZER)  # type: ignore[attr-defined]
        if self.boundary.validation_due:
            self._validate(trainer)
        trainer.fit_loop.epoch_loop.max_steps = pl_module.hparams["max_steps"]

    def _validate(self, trainer: Trainer) -> None:
        """Before the first step, what the interrupted run owed; as Lightning does it after a step."""
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.restarting = False  # from its first batch on
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.unsafe = "the weights were being changed; "

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.boundary.step:
            return  # in the middle of a step, whose batches accumulate
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops, at whatever step that is
        self.boundary, self.unsafe = self._this_boundary(trainer), ""

    def _this_boundary(self, trainer: Trainer) -> Boundary:
        due = (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
        return Boundary(trainer.global_step, trainer.fit_loop.state_dict(), due or trainer.should_stop)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Here, and not at the step's end: its figures have been logged by now, and belong to the checkpoint."""
        step = self.boundary.step
        if trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches:
            return
        self._leave_if_asked(trainer)
        kept = self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0
        if step % self.every_n_steps == 0 or kept:
            self._try_to_save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._leave_if_asked(trainer)

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.unsafe = "its validation was being recorded; "  # and would be so twice

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.boundary, self.unsafe = Boundary(trainer.global_step, trainer.fit_loop.state_dict()), ""
        self.validation_loss = trainer.callback_metrics["val/loss"].item()
        self._try_to_save(trainer, self.validation_loss)
        if trainer.global_step < trainer.max_steps:
            self._leave_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_lost(trainer)
        skipped = int(pl_module.skipped_steps.in_a_row)  # type: ignore[arg-type, union-attr]
        if skipped > 1:  # one may be a bad batch, more are the weights
            raise Diverged(
                f"the last {skipped} steps were skipped, as their loss or gradient was not finite;"
                f" {last_good(run_folder(trainer) / LAST)}; lower model.learning_rate"
            )
        if not math.isfinite(self.validation_loss):
            raise Diverged(
                f"the run has ended at step {trainer.global_step} with a validation loss of {self.validation_loss};"
                f" {last_good(run_folder(trainer) / BEST)}; lower model.learning_rate, or look at the validation text"
            )
        self._save_last(trainer)
        self.tokenizer.put_back()
        if self.tokenizer.was_lost:
            raise InputError(
                f"{run_folder(trainer) / TOKENIZER}: was deleted or changed while the run went on; the run is whole"
                " again, but look for what did it"
            )

    # --- signals and failures ----------------------------------------------------------------------------------------

    def _leave_if_asked(self, trainer: Trainer) -> None:
        """All processes together, at the same step; only the first says by its exit code that it was a signal."""
        assert self.signals is not None
        asked = self.signals.received is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            signum = self.signals.received or signal.SIGTERM
            raise Interrupted(128 + signum if trainer.is_global_zero else 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.signals is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # training had not begun, or leaves nothing behind
        if trainer.global_step == self.boundary.step + 1:  # a callback failed when the step was done
            self.boundary, self.unsafe = self._this_boundary(trainer), ""
            with contextlib.suppress(Exception):
                trainer._logger_connector.update_train_step_metrics()  # whose figures Lightning logs after them
        what = self._save_in_need(trainer, exception)
        print(f"stopped after step {self.boundary.step:,} of {trainer.max_steps:,}; {what}")

    def _save_in_need(self, trainer: Trainer, exception: BaseException) -> str:
        """Never over a good checkpoint with bad weights. Returns what to say about it."""
        if self.boundary is self.saved:
            reason = ""
        elif isinstance(exception, Diverged):
            reason = "nothing good has come since then; "
        elif self.unsafe:
            reason = self.unsafe
        elif bad := lost_tensors(trainer):
            reason = f"{in_words(bad)}; "
        else:
            try:
                self._save_last(trainer)
                reason = ""
            except Exception as failure:  # the first exception is the one to see
                reason = f"could not be saved ({' '.join(str(failure).split())}); "
        last = run_folder(trainer) / LAST
        if not last.exists():
            return f"{reason}nothing saved"
        return (
            f"{reason}`lm fit -c {run_folder(trainer) / CONFIG} --ckpt_path {last}` goes on from step {self.saved.step}"
        )

    # --- saving ------------------------------------------------------------------------------------------------------

    def _stop_if_lost(self, trainer: Trainer) -> None:
        """Weights that are not finite never become so again, and must not replace what is good."""
        bad = lost_tensors(trainer)
        if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            raise Diverged(
                f"{in_words(bad or ['what another device holds'])} at step {self.boundary.step};"
                f" {last_good(run_folder(trainer) / LAST)}; lower model.learning_rate"
            )

    def _try_to_save(self, trainer: Trainer, validation_loss: float = float("inf")) -> None:
        """A full disk need not end a run: the next save may find room. None while steps are being skipped."""
        self._stop_if_lost(trainer)
        if int(trainer.lightning_module.skipped_steps.in_a_row):  # type: ignore[arg-type, union-attr]
            return
        try:
            if math.isfinite(validation_loss) and validation_loss < self.best_loss:
                best_before, self.best_loss = self.best_loss, validation_loss  # which best.ckpt has to know
                try:
                    self._save(trainer, BEST)
                except OSError:
                    self.best_loss = best_before
                    raise
            self._save_last(trainer)
        except OSError as error:
            print(f"step {self.boundary.step}: not saved ({' '.join(str(error).split())}); what was saved before stays")

    def _save_last(self, trainer: Trainer) -> None:
        if self.boundary is self.saved:
            return
        step = self.boundary.step
        if self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0:
            self._save(trainer, f"step-{step}.ckpt")
        self._save(trainer, LAST)  # after the others: a run that goes on from it would not write them again
        self.saved = self.boundary

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            logger.save()  # what belongs to the checkpoint is in the event file before it
        self.tokenizer.put_back()
        # Not trainer.save_checkpoint, which waits for the other processes: one of them may be why this one saves.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(checkpoint, run_folder(trainer) / name)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["loops"]["fit_loop"] = self.boundary.loops

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time counts from each start
        state = checkpoint["callbacks"][self.state_key]
        loops = checkpoint["loops"]["fit_loop"]
        self.boundary = self.saved = Boundary(checkpoint["global_step"], loops, state["validation_due"])

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "validation_due": self.boundary.validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]


class KeptTokenizer:
    """The copy of the tokenizer in a run's folder: the checkpoints know its files by their digests."""

    def __init__(self) -> None:
        self.files: dict[Path, bytes] = {}
        self.was_lost = False

    def keep(self, tokenizer: Tokenizer, folder: Path) -> None:
        """One that is there and the same stays untouched."""
        try:
            same = Tokenizer.load(folder).digest == tokenizer.digest
        except InputError:
            same = False
        if not same:
            tokenizer.save(folder)
        self.files = {path: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}

    def put_back(self) -> None:
        """Writes the files anew, byte for byte, if one has been deleted or changed since then."""
        if all(path.is_file() and path.read_bytes() == content for path, content in self.files.items()):
            return
        self.was_lost = True
        with writing_together(*self.files) as files:
            for file, content in zip(files, self.files.values(), strict=True):
                file.write(content)
        print(f"{next(iter(self.files)).parent}: was deleted or changed while the run went on; written anew")
