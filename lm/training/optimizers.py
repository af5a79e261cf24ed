"""Makes the optimizer that model.optimizer names, from one entry in OPTIMIZERS for each.

An optimizer skips a step whose numbers are not finite: on a CPU its parameters have no gradient then, on a GPU its
attribute `take`, a 0-d bool tensor, is false (lm/optim/adamw.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from lm.optim.adamw import AdamW
from lm.optim.muon import Muon
from lm.optim.orthogonalization import ITERATIONS
from lm.training.lightning_inside import has_trainer
from tokenization import InputError

if TYPE_CHECKING:
    from lm.training.module import LanguageModel

MUON_SETTINGS = {"muon_rate": 1.0, "muon_iteration": "jordan", "cautious_decay": False}  # at which each does nothing


def make_adamw(task: "LanguageModel", **settings: Any) -> AdamW:
    return AdamW(task.parameters(), **settings)


def make_muon(task: "LanguageModel", **settings: Any) -> Muon:
    half = has_trainer(task) and str(task.trainer.precision).startswith("bf16")
    return Muon(
        task.model.named_parameters(),
        rate=task.hparams["muon_rate"],
        dtype=torch.bfloat16 if half else torch.float32,
        iteration=ITERATIONS[task.hparams["muon_iteration"]],
        cautious=task.hparams["cautious_decay"],
        **settings,
    )


def make_normuon(task: "LanguageModel", **settings: Any) -> Muon:
    return make_muon(task, normalize=True, **settings)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]]
OPTIMIZERS = {"adamw": make_adamw, "muon": make_muon, "normuon": make_normuon}


def make_optimizer(task: "LanguageModel", compiled: bool) -> torch.optim.Optimizer:
    """Returns the optimizer with learning rate 0; InputError if its class cannot skip a step on a GPU.

    compiled: whether its update is compiled. Raises ValueError for a setting of Muon's that it does not have.
    """
    name = task.hparams["optimizer"]
    settings = {setting: task.hparams[setting] for setting in ("weight_decay", "betas", "eps")}
    optimizer = OPTIMIZERS[name](task, lr=0.0, compiled=compiled, **settings)
    if not hasattr(optimizer, "take"):
        raise InputError(
            f"model.optimizer {name} would train on numbers that are not finite: its class, {type(optimizer).__name__},"
            " has no `take`, by which a GPU skips a step; see AdamW"
        )
    for setting, nothing in () if isinstance(optimizer, Muon) else MUON_SETTINGS.items():
        if task.hparams[setting] != nothing:
            raise ValueError(
                f"{setting} is {task.hparams[setting]}, which has no effect on optimizer {name}; leave it out"
            )
    return optimizer
