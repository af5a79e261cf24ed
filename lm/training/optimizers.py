"""Makes the optimizer that model.optimizer names, from one entry in OPTIMIZERS for each.

An entry names the settings that change the optimizer's steps; all others are refused. A step whose numbers are not
finite is skipped: on a CPU the parameters then have no gradient, and on a GPU the optimizer's `take`, a 0-d bool tensor
that tells whether to take the step, is False. Its `rates` give parameters a learning rate of their own
(lm/optim/adamw.py).
"""

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lm.accounting.costs import part_of
from lm.optim.adamw import AdamW
from lm.optim.muon import Muon
from lm.optim.orthogonalization import ITERATIONS
from lm.training.lightning_inside import has_trainer
from tokenization import InputError

if TYPE_CHECKING:
    from lm.training.module import LanguageModel

RATES = {"embeddings": "embedding_rate", "head": "head_rate", "norms": "gain_rate"}  # the setting of each part
ADAMW_SETTINGS = {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}  # with their defaults
MUON_SETTINGS = {"muon_rate": 1.0, "muon_iteration": "jordan", "cautious_decay": False}
SETTINGS: dict[str, Any] = ADAMW_SETTINGS | MUON_SETTINGS


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


OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], Collection[str]]]
OPTIMIZERS = {  # how each is made, and which of SETTINGS change its steps
    "adamw": (make_adamw, ADAMW_SETTINGS),
    "muon": (make_muon, SETTINGS),
    "normuon": (make_normuon, SETTINGS),
}


def make_optimizer(task: "LanguageModel", compiled: bool) -> torch.optim.Optimizer:
    """Returns the optimizer with learning rate 0; InputError if its class cannot skip a step on a GPU.

    compiled: whether its update is compiled. Raises ValueError for a setting that has no effect on it.
    """
    name = task.hparams["optimizer"]
    make, used = OPTIMIZERS[name]
    optimizer = make(task, lr=0.0, compiled=compiled, kernel=task.hparams["fast"], **group_settings(task))
    kind, rates = type(optimizer).__name__, rates_of(task)
    if not hasattr(optimizer, "take"):
        raise InputError(
            f"model.optimizer {name} would train on numbers that are not finite: its class, {kind}, has no `take`, by"
            " which a GPU skips a step; see AdamW"
        )
    if rates and not hasattr(optimizer, "rates"):
        raise InputError(f"model.optimizer {name} has one learning rate for all: its class, {kind}, has no `rates`")
    optimizer.rates = rates  # type: ignore[attr-defined]
    for setting, default in SETTINGS.items():
        value = task.hparams[setting]
        if setting not in used and (tuple(value) if isinstance(value, list) else value) != default:
            raise ValueError(f"{setting} is {value}, which has no effect on optimizer {name}; leave it out")
    return optimizer


def group_settings(task: "LanguageModel") -> dict[str, Any]:
    """Returns what the optimizer's groups hold beside the learning rate: those of ADAMW_SETTINGS that it uses."""
    used = OPTIMIZERS[task.hparams["optimizer"]][1]
    found = {setting: task.hparams[setting] for setting in ADAMW_SETTINGS if setting in used}
    return {setting: tuple(value) if isinstance(value, list) else value for setting, value in found.items()}


def rates_of(task: "LanguageModel") -> dict[Tensor, float]:
    """Returns the parameters whose learning rate is another multiple of model.learning_rate than 1, with that multiple.

    Raises ValueError for a multiple that is not above 0 and finite, and for a head that is the embedding.
    """
    multiples = {part: task.hparams[setting] for part, setting in RATES.items()}
    for part, multiple in multiples.items():
        if not 0 < multiple < math.inf:
            raise ValueError(f"{RATES[part]} is {multiple}; it must be above 0 and finite")
    if multiples["head"] != 1 and task.hparams["tie_embeddings"]:
        raise ValueError(
            f"head_rate is {multiples['head']}, but tie_embeddings makes the head the embedding; set embedding_rate"
        )
    rates = {weight: multiples.get(part_of(name), 1.0) for name, weight in task.model.named_parameters()}
    return {weight: multiple for weight, multiple in rates.items() if multiple != 1}
