"""Averages the losses of a validation over all tokens of all devices."""

import math

import torch
from lightning import Trainer
from torch import Tensor


class ValidationLosses:
    """Collects the mean loss of each batch, and its number of tokens."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, tokens: int) -> None:
        self.batches.append((loss, tokens))

    def over_all_devices(self, trainer: Trainer) -> tuple[float, int, int]:
        """Returns the mean over all tokens, the number of batches with a non-finite loss, and the number of batches.

        Sums in float64, so that the order, which depends on the number of devices, makes no difference.
        """
        losses = [(float(loss), tokens) for loss, tokens in self.batches]
        bad = sum(not math.isfinite(loss) for loss, _ in losses)
        sums = [sum(loss * tokens for loss, tokens in losses), sum(tokens for _, tokens in losses), bad, len(losses)]
        totals = torch.tensor(sums, dtype=torch.float64)
        if trainer.world_size > 1:
            totals = trainer.strategy.reduce(totals.to(trainer.strategy.root_device), reduce_op="sum")
        nats, tokens, bad, batches = totals.tolist()
        return nats / tokens, int(bad), int(batches)
