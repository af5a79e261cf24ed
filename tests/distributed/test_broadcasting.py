"""Proves that of several processes the first alone loads a state, which the others have from it."""

from types import SimpleNamespace

import pytest
import torch
from helpers.runs import same

from lm.distributed import broadcasting
from tokenization import InputError

STATE = {
    "global_step": 7,
    "state_dict": {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)},
    "optimizer_states": [{"state": {0: {"t": 7, "m": torch.ones(2, dtype=torch.bfloat16)}}, "betas": (0.9, 0.95)}],
}


def process(rank: int, load, messages: list) -> object:
    """from_first in a process of this rank; the messages of the first are those that the second gets."""

    def pass_on(value):
        if rank == 0:
            messages.append(value)
            return value
        return messages.pop(0)

    def share(tensor: torch.Tensor, source: int) -> None:
        tensor.copy_(pass_on(tensor.clone()))

    fake = SimpleNamespace(is_initialized=lambda: True, get_world_size=lambda: 2, get_rank=lambda: rank)
    fake.broadcast_object_list = lambda values: values.__setitem__(0, pass_on(values[0]))
    fake.broadcast, fake.get_backend, fake.Backend = share, lambda: "gloo", SimpleNamespace(NCCL="nccl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broadcasting, "distributed", fake)
        return broadcasting.from_first(load)


def test_the_others_get_what_the_first_has_loaded():
    messages: list = []
    assert same(process(0, lambda: STATE, messages), STATE)
    assert all(tensor.device.type == "meta" for tensor in messages[0]["state_dict"].values())  # sent one by one
    assert same(process(1, lambda: pytest.fail("the second one reads"), messages), STATE)
    assert messages == []


def test_what_the_first_refuses_all_refuse():
    messages: list = []

    def refuse() -> dict:
        raise InputError("last.ckpt: is damaged")

    for rank in range(2):
        with pytest.raises(InputError, match=r"^last.ckpt: is damaged$"):
            process(rank, refuse, messages)


def test_a_process_on_its_own_loads():
    assert broadcasting.from_first(lambda: STATE) is STATE
