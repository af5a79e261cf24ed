"""Averages the metrics of a validation over all tokens of all devices."""

import math

import torch
from lightning import Trainer
from torch import Tensor

from lm.evaluation import METRICS
from lm.model.transformer import TransformerLM


def batch_means(model: TransformerLM, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Returns the mean of each of METRICS over the tokens of a batch.

    The loss is the model's own, which need not hold all logits at once; the other metrics share a second forward pass,
    whose logits are held whole.
    """
    means = {"loss": model(inputs, targets=targets)}
    others = {name: metric for name, metric in METRICS.items() if name not in means}
    if others:
        logits = model(inputs)
        means |= {name: metric(logits, targets).float().mean() for name, metric in others.items()}
    return means


class ValidationMeans:
    """Collects the means of METRICS over each batch, and its number of tokens."""

    def __init__(self) -> None:
        self.batches: list[tuple[dict[str, Tensor], int]] = []

    def add(self, means: dict[str, Tensor], tokens: int) -> None:
        self.batches.append((means, tokens))

    def over_all_devices(self, trainer: Trainer) -> tuple[dict[str, float], int, int]:
        """Returns the means over all tokens, the number of batches with a non-finite loss, and the number of batches.

        Sums in float64, so that the order, which depends on the number of devices, makes no difference.
        """
        found = [({name: float(mean) for name, mean in means.items()}, tokens) for means, tokens in self.batches]
        bad = sum(not math.isfinite(means["loss"]) for means, _ in found)
        sums = [sum(means[name] * tokens for means, tokens in found) for name in METRICS]
        totals = torch.tensor([*sums, sum(tokens for _, tokens in found), bad, len(found)], dtype=torch.float64)
        if trainer.world_size > 1:
            totals = trainer.strategy.reduce(totals.to(trainer.strategy.root_device), reduce_op="sum")
        *sums, tokens, bad, batches = totals.tolist()
        return {name: total / tokens for name, total in zip(METRICS, sums, strict=True)}, int(bad), int(batches)
