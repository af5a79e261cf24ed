"""Skips and counts steps with non-finite numbers, and ends a run of too many in a row.

A non-finite loss makes its whole gradient NaN, so that a check of the gradient's norm, which is the same on every
process, covers both. The counters live on the device: on a GPU nothing waits for them between two logged steps.
Weights or moments that are not finite are found here; recovery.py ends the run.
"""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lm.runs.finite import nonfinite_names
from lm.runs.folder import LAST
from lm.runs.manifest import read_manifest
from lm.runs.states import named_tensors
from tokenization import InputError
from tokenization.files import writing


class Diverged(InputError):
    """Raised when a run has diverged; the message says how, and what is left."""


def spread_nonfinite(loss: Tensor) -> Tensor:
    """Returns a finite loss as it is, bit for bit; NaN for any other, with a gradient of NaN."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


class SkippedSteps:
    """Counts skipped steps, in all and in a row, each a 0-d int64 tensor on the gradient's device."""

    def __init__(self) -> None:
        self.total = torch.tensor(0)
        self.in_a_row = torch.tensor(0)

    def count(self, norm: Tensor) -> Tensor:
        """Counts a step by the norm of its gradient, 0-d, and returns whether to make it, a 0-d bool tensor."""
        good = norm.isfinite()
        self.total, self.in_a_row = self.total.to(norm.device), self.in_a_row.to(norm.device)
        self.total = self.total + ~good
        self.in_a_row = torch.where(good, 0, self.in_a_row + 1)
        return good

    def state_dict(self) -> dict[str, int]:
        return {"total": int(self.total), "in_a_row": int(self.in_a_row)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.total, self.in_a_row = torch.tensor(state_dict["total"]), torch.tensor(state_dict["in_a_row"])


class StopWhenDiverged(Callback):
    """Ends the run after model.max_skipped_steps in a row, and saves the batches of the last one."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        skipped: SkippedSteps = pl_module.skipped_steps  # type: ignore[assignment]
        free = not skipped.in_a_row.is_cuda  # reading it from a GPU would wait for all pending work
        step = trainer.global_step
        if not (free or step % trainer.log_every_n_steps == 0 or step == trainer.max_steps):  # type: ignore[attr-defined]
            return
        in_a_row = int(skipped.in_a_row)
        if in_a_row < min(pl_module.hparams["max_skipped_steps"], trainer.max_steps):
            return
        folder, batches = Path(trainer.default_root_dir), step_batches(trainer, step)
        path = folder / f"nonfinite-step-{step}.pt"
        if trainer.is_global_zero:
            inputs, targets = trainer.datamodule.training_batches(batches)  # type: ignore[attr-defined]
            with writing(path) as file:
                torch.save({"step": step, "batches": list(batches), "inputs": inputs, "targets": targets}, file)
        raise Diverged(
            f"loss or gradient was not finite in {in_a_row} steps in a row, up to step {step:,} (batches"
            f" {batches[0]:,} to {batches[-1]:,}, saved as {path}); {last_good(folder / LAST)}; lower"
            " model.learning_rate, or inspect the batch"
        )


def last_good(checkpoint: Path) -> str:
    """Says which step this good checkpoint is of, or that there is none."""
    if not checkpoint.exists():
        return "there is no good checkpoint"
    return f"{checkpoint} is the last good checkpoint, of step {read_manifest(checkpoint)['step']:,}"


def lost_tensors(trainer: Trainer) -> list[str]:
    """Returns the names of weights and moments on this device that hold a NaN or an infinity."""
    weights = dict(trainer.lightning_module.named_parameters())
    names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
    states = {
        f"{names.get(weight, f'parameter {number}')} ({key})": value  # FSDP keys some states by the weights' names
        for optimizer in trainer.optimizers
        for number, (weight, state) in enumerate(optimizer.state.items())
        for key, value in state.items()
    }
    return nonfinite_names(named_tensors(weights | states))


def step_batches(trainer: Trainer, step: int) -> range:
    """Returns the numbers of the batches of a step, counted from 1, on all devices."""
    per_step = trainer.accumulate_grad_batches * trainer.world_size
    return range((step - 1) * per_step, step * per_step)
