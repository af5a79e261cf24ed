"""Sends a state from the first process to the others, so that it alone reads a checkpoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from lm.runs.states import replace_tensors
from tokenization import InputError


def from_first(load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns in every process the state that the first one loads; its InputError is raised in all of them.

    Everything but the tensors is sent at once, and then one tensor after another: they meet on the GPU with NCCL.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return load()
    state, outcome = {}, None
    if distributed.get_rank() == 0:
        try:
            state = load()
            outcome = replace_tensors(state, lambda _, tensor: tensor.to("meta"))
        except InputError as error:
            outcome = error
    sent: list[Any] = [outcome]
    distributed.broadcast_object_list(sent)
    if isinstance(sent[0], InputError):
        raise sent[0]
    device = torch.device("cpu")
    if distributed.get_backend() == distributed.Backend.NCCL:
        device = torch.device("cuda", torch.cuda.current_device())

    def send(name: str, tensor: Tensor) -> Tensor:
        distributed.broadcast(tensor.detach().to(device).contiguous(), 0)
        return tensor

    def receive(name: str, tensor: Tensor) -> Tensor:
        received = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        distributed.broadcast(received, 0)
        return received.cpu()

    return replace_tensors(state or sent[0], send if state else receive)  # type: ignore[no-any-return]
