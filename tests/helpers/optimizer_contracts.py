"""What every optimizer must hold to: its state is counted, it skips bad steps, and it accepts no setting in vain."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.contracts import contract, loss_and_gradients
from helpers.registries import Settings
from lm.accounting import costs
from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS, group_settings


def train_a_step(settings: Settings, name: str) -> tuple[LanguageModel, Any]:
    """Returns a task whose optimizer has made a step, with the gradients of it."""
    torch.manual_seed(0)
    task = LanguageModel(**settings, optimizer=name)
    optimizer: Any = task.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    loss_and_gradients(task.model, settings)
    optimizer.step()
    return task, optimizer


def tensors(task: LanguageModel, optimizer: Any) -> list[Tensor]:
    """Returns the weights, and what the optimizer keeps of each."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return [*task.parameters(), *(value for value in kept if value.ndim)]


@contract("lm/accounting/costs.py")
def counted_is_kept(settings: Settings, optimizer: str) -> None:
    """The optimizer's state that is counted is what it keeps after a step."""
    task, made = train_a_step(settings, optimizer)
    kept = sum(tensor.nbytes for tensor in tensors(task, made)[len(list(task.parameters())) :])
    assert costs.state_bytes(task.model, optimizer)["optimizer state"] == kept, f"keeps {kept} bytes"


@contract("the optimizer")
def bad_steps_are_skipped(settings: Settings, optimizer: str, bad: float) -> None:
    """A step whose gradient is not finite changes nothing: neither where the gradients are dropped, nor by `take`."""
    task, made = train_a_step(settings, optimizer)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    for on_a_gpu in (False, True):
        before = [tensor.detach().clone() for tensor in tensors(task, made)]
        for weight in task.parameters():
            weight.grad = torch.full_like(weight, bad)
        if on_a_gpu:  # where nobody looks at the norm, and the optimizer is told by a tensor
            made.take = torch.tensor(False)
        else:
            task.configure_gradient_clipping(made)
            assert int(task.skipped_steps.total) == 1
        made.step()
        after = tensors(task, made)
        assert all(map(torch.equal, before, after)), f"{optimizer} has changed weights or state, on_a_gpu {on_a_gpu}"
        made.take = None
        made.zero_grad()
        loss_and_gradients(task.model, settings)
        made.step()
        after = tensors(task, made)
        assert not all(map(torch.equal, before, after)), f"{optimizer} makes no good step any more"
        assert all(tensor.isfinite().all() for tensor in after)


@contract("lm/training/optimizers.py")
def each_setting_counts(settings: Settings, optimizer: str, setting: str, value: Any) -> None:
    """A setting of the optimizers changes the steps of one whose entry in OPTIMIZERS names it; others refuse it."""
    if setting in OPTIMIZERS[optimizer][1]:
        usual, moved = (weights_after_two_steps(settings | of, optimizer) for of in ({}, {setting: value}))
        assert not all(map(torch.equal, usual, moved)), (
            f"{setting} {value} changes no step of {optimizer}; leave it out of its entry"
        )
        return
    refusal = f"{setting} is {value}, which has no effect on optimizer {optimizer}; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(refusal)}$"):
        LanguageModel(**settings, optimizer=optimizer, **{setting: value})


def weights_after_two_steps(settings: Settings, optimizer: str) -> list[Tensor]:
    """Returns the weights after two steps, as betas have no effect on some optimizers' first."""
    torch.manual_seed(0)
    task = LanguageModel(**settings, optimizer=optimizer)
    made = task.configure_optimizers()
    for group in made.param_groups:
        group.update(group_settings(task), lr=0.01)  # as each run does, which may resume one with other settings
    for _ in range(2):
        for group in made.param_groups:
            for weight in group["params"]:
                weight.grad = torch.randn_like(weight)
        made.step()
    return [weight.detach() for weight in task.parameters()]
