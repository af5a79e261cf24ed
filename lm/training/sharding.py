"""Shards a run over all devices by FSDP's second version, and saves and restores what it has sharded.

A checkpoint is one file, for which the first process gathers the state, or each process writes its own rows
(checkpoints.sharded, lm/runs/shards.py). Saving is done by all processes together: it succeeds in all, or fails in all
with the same error, so that none of them waits for the others later.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import all_gather_object
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lm.runs.checkpoint import open_state, save_checkpoint
from lm.runs.folder import SHARDS
from lm.runs.manifest import read_manifest
from lm.runs.shards import delete_unused_shards, new_shards, put_rows, take_rows, write_shard
from lm.training.lightning_inside import shard_over_all
from tokenization import InputError

T = TypeVar("T")


class FullySharded(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all devices: --trainer.strategy fsdp.

    By FSDP's second version, under which clip_gradients sees whole gradients. sharded_checkpoints: each process writes
    its own rows, instead of the first one all of them.
    """

    def __init__(self, sharded_checkpoints: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=sharded_checkpoints)
        self.sharded_checkpoints = sharded_checkpoints
        self.written: tuple[int, dict[str, str]] = (-1, {})  # the step of the newest shards, and their digests

    def setup_environment(self) -> None:
        shard_over_all(self)
        super().setup_environment()

    # --- saving ------------------------------------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        return self.rename(state, OptimStateKeyType.PARAM_ID) if self.sharded_checkpoints else state

    def rename(self, moments: dict[str, Any], keys: OptimStateKeyType) -> dict[str, Any]:
        """Returns an optimizer's state with the names of its parameters as keys, or their numbers, as it is saved."""
        assert self.model is not None
        return FullyShardedDataParallel.rekey_optim_state_dict(moments, keys, self.model)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint; OSError in all processes if that fails in one of them."""
        path, shards = Path(filepath), None
        if self.sharded_checkpoints:
            checkpoint, rows = take_rows(checkpoint)
            shards = self.write_shards(path.parent, checkpoint["global_step"], rows)
        self.in_all(lambda: commit(checkpoint, path, shards) if self.global_rank == 0 else None)

    def write_shards(self, run: Path, step: int, rows: dict[str, Tensor]) -> dict[str, str]:
        """Returns the digests of a step's shards, which all processes write unless they have done so already."""
        if self.written[0] != step:
            names = self.broadcast(new_shards(step, self.world_size))
            try:
                digests = self.in_all(lambda: write_shard(run / names[self.global_rank], rows))
            except OSError:
                if self.global_rank == 0:
                    delete_unused_shards(run)  # what the others have written: the disk may be full
                raise
            self.written = step, dict(zip(names, digests, strict=True))
        return self.written[1]

    def in_all(self, work: Callable[[], T]) -> list[T]:
        """Does the work in each process and returns the results of all; the error of one is raised in all."""
        outcome: T | Exception
        try:
            outcome = work()
        except (InputError, OSError) as error:
            outcome = error
        outcomes: list[Any] = [None] * self.world_size
        all_gather_object(outcomes, outcome)
        for result in outcomes:
            if isinstance(result, Exception):
                raise result
        return outcomes

    # --- restoring ---------------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restores weights and moments from a checkpoint of either form, and returns it.

        Of a single file the first process alone reads the tensors, and sends the others their rows.
        """
        if SHARDS not in read_manifest(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only)
        assert self.model is not None
        checkpoint = self.read_rows(Path(checkpoint_path))
        weights = get_model_state_dict(self.model)
        fill(weights, checkpoint["state_dict"])
        set_model_state_dict(self.model, weights)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            moments: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer)
            named = self.rename(saved, OptimStateKeyType.PARAM_NAME)
            for name, state in moments["state"].items():
                fill(state, named["state"][name])
            set_optimizer_state_dict(self.model, optimizer, moments | {"param_groups": named["param_groups"]})
        return checkpoint

    def read_rows(self, path: Path) -> dict[str, Any]:
        """Returns a sharded checkpoint with this process's rows in place of the tensors."""
        read: dict[str, Any] = {}

        def read_own() -> None:
            checkpoint, shards = open_state(path)
            assert shards is not None
            read.update(put_rows(checkpoint, shards.read(self.global_rank, self.world_size)))

        self.in_all(read_own)
        return read


def commit(checkpoint: dict[str, Any], path: Path, shards: dict[str, str] | None) -> None:
    """Writes the file that makes a checkpoint of what is beside it, and deletes the shards of the one before."""
    for name in shards or ():
        if not (path.parent / name).is_file():
            raise InputError(
                f"{path.parent / name}: was written by another process, and is not to be seen here; put the run's"
                " folder on a disk that all hosts share, or set checkpoints.sharded to false"
            )
    save_checkpoint(checkpoint, path, shards)
    if shards is not None:
        delete_unused_shards(path.parent)


@torch.no_grad()
def fill(state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Copies saved values into a state, in which sharded tensors have this process's rows."""
    for name, value in state.items():
        if not isinstance(value, DTensor):
            state[name] = saved[name]
        elif value.to_local().numel():
            value.to_local().copy_(saved[name])
