"""What goes wrong in a run, and when: signals, failures, and numbers that are not finite."""

import errno
import os
from pathlib import Path

import pytest
import torch

from lm.model import fast, fast_kernels
from lm.monitoring.throughput import Throughput
from lm.runs import checkpoint
from lm.training.module import LanguageModel


class Moment:
    """Calls an action when one of the run's functions is called for the nth time, before or after its work."""

    def __init__(self, owner, name, count: int, action, after: bool = False):
        self.owner, self.name, self.count, self.action, self.after = owner, name, count, action, after

    def arm(self, patch: pytest.MonkeyPatch) -> None:
        original, calls = getattr(self.owner, self.name), [0]

        def wrapper(*args, **kwargs):
            calls[0] += 1
            if calls[0] == self.count and not self.after:
                self.action()
            result = original(*args, **kwargs)
            if calls[0] == self.count and self.after:
                self.action()
            return result

        patch.setattr(self.owner, self.name, wrapper)


def send(signum: int):
    return lambda: os.kill(os.getpid(), signum)


def spoil_loss(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The loss of these steps is NaN, although the gradient that it has by itself is finite."""
    losses = ((fast, "linear_cross_entropy"), (fast_kernels, "kernel_cross_entropy"))
    originals = [getattr(module, name) for module, name in losses]
    step = LanguageModel.training_step

    def training_step(self, batch, batch_idx):
        spoilt = torch.nan if self.global_step + 1 in bad else 0.0
        for (module, name), original in zip(losses, originals, strict=True):
            patch.setattr(module, name, lambda *args, original=original: original(*args) + spoilt)
        return step(self, batch, batch_idx)

    patch.setattr(LanguageModel, "training_step", training_step)


def spoil_gradient(patch: pytest.MonkeyPatch, bad: set[int]) -> None:
    backward = LanguageModel.backward

    def spoilt(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        if self.global_step + 1 in bad:
            next(self.parameters()).grad[0, 0] = torch.inf

    patch.setattr(LanguageModel, "backward", spoilt)


def watch_weights(patch: pytest.MonkeyPatch) -> dict[int, list[torch.Tensor]]:
    """Weights and moments when each step ends."""
    seen: dict[int, list[torch.Tensor]] = {}

    def remember(self, trainer, pl_module, *_):
        state = trainer.optimizers[0].state
        moments = [value for weight in state for value in (state[weight]["m"], state[weight]["v"])]
        seen[trainer.global_step] = [tensor.detach().clone() for tensor in [*pl_module.parameters(), *moments]]

    patch.setattr(Throughput, "on_train_batch_start", remember)
    return seen


def fail_to_read(broken: Path, patch: pytest.MonkeyPatch) -> None:
    """The disk fails where a checkpoint's bytes are verified."""
    verify_bytes = checkpoint.verify_bytes

    def read(file, path):
        if Path(path) == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return verify_bytes(file, path)

    patch.setattr(checkpoint, "verify_bytes", read)
