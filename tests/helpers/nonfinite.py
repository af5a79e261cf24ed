"""NaN, inf and -inf, and how they are put into a step of training."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from lm.runs.checkpoint import load_checkpoint
from lm.training.module import LanguageModel

NAN, INF = math.nan, math.inf
VALUES = [NAN, INF, -INF]
SIX_STEPS = [
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=3",
    "--checkpoints.every_n_steps=1",
    "--checkpoints.keep_every_n_steps=3",
    "--samples.max_new_tokens=2",
]
PLACES = ("activation", "loss", "gradient")


def put(tensor: torch.Tensor, value: float, rng: random.Random) -> None:
    with torch.no_grad():
        tensor.view(-1)[rng.randrange(tensor.numel())] = value


def spoil_training(patch: pytest.MonkeyPatch, where: str, value: float, steps: set[int]) -> None:
    training_step, backward = LanguageModel.training_step, LanguageModel.backward

    def spoilt_step(self, batch, batch_idx):
        if where == "activation" and self.global_step + 1 in steps:
            hook = self.model.layers[0].register_forward_hook(lambda module, inputs, output: output + value)
            try:
                return training_step(self, batch, batch_idx)
            finally:
                hook.remove()
        loss = training_step(self, batch, batch_idx)
        return loss + value if where == "loss" and self.global_step + 1 in steps else loss

    def spoilt_backward(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        if where == "gradient" and self.global_step + 1 in steps:
            put(next(self.parameters()).grad, value, random.Random(0))

    patch.setattr(LanguageModel, "training_step", spoilt_step)
    patch.setattr(LanguageModel, "backward", spoilt_backward)


def assert_finite(run: Path) -> dict[str, int]:
    """Every checkpoint of the run verifies and holds finite numbers only -> their steps by name."""
    steps = {}
    for path in run.glob("*.ckpt"):
        state = load_checkpoint(path, finite=())
        for weight in state["state_dict"].values():
            assert weight.isfinite().all(), path
        for moments in state["optimizer_states"][0]["state"].values():
            assert all(moments[name].isfinite().all() for name in ("m", "v")), path
        steps[path.name] = state["global_step"]
    return steps


def read_strict_json(text: str):
    """What a reader makes of JSON that knows no NaN; Python's own would take it."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def slow(trials: list) -> list:
    """The trials as parameters of a test that only `make test-slow` runs."""
    return [pytest.param(*trial, marks=pytest.mark.slow) for trial in trials]
