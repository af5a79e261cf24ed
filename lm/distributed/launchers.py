"""Finds out which processes a launcher has started for a run: torchrun's, or SLURM's by srun.

Lightning's own launcher, which starts the processes of one host (trainer.devices 2) when training begins, is left to
Lightning.
"""

import os
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from tokenization import InputError
from tokenization.numerals import whole_number


@dataclass(frozen=True)
class World:
    """The processes that a launcher has started, equally many on each node."""

    launcher: str
    environment: ClusterEnvironment
    rank: int
    size: int
    nodes: int

    @property
    def per_node(self) -> int:
        return self.size // self.nodes

    def parts_of_trainer(self, settings: Namespace) -> dict[str, Any]:
        """Returns the trainer's number of nodes, and of devices where the settings leave it open.

        settings: the trainer's. InputError if they have another number of nodes; 1 is the default, and no wish.
        """
        if settings.num_nodes not in (1, self.nodes):
            raise InputError(
                f"trainer.num_nodes is {settings.num_nodes}, and {self.launcher} has started {self.nodes}; leave"
                " trainer.num_nodes out, as it is read from the environment"
            )
        left_open = settings.devices in ("auto", -1)
        return {"num_nodes": self.nodes} | ({"devices": self.per_node} if left_open else {})

    def check(self, trainer: Trainer) -> None:
        """Raises InputError unless the trainer has a device for each process of this node."""
        if trainer.num_devices != self.per_node:
            raise InputError(
                f"trainer.devices is {trainer.num_devices}, and {self.launcher} has started {self.per_node} a node;"
                " set --trainer.devices auto, which reads the number from the environment"
            )


def find_world() -> World | None:
    """Returns the processes that a launcher has started, or None if this process is on its own."""
    if TorchElasticEnvironment.detect():
        size, local = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        nodes = _number("GROUP_WORLD_SIZE", size // local)
        if size != nodes * local:
            raise InputError(
                f"torchrun has started {size} processes on {nodes} nodes, {local} of them on this one; give every node"
                " the same --nproc-per-node"
            )
        return World("torchrun", TorchElasticEnvironment(), _number("RANK"), size, nodes)
    if SLURMEnvironment.detect():
        size, nodes = _number("SLURM_NTASKS"), _number("SLURM_NNODES", 1)
        if size % nodes or (size > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ):
            raise InputError(f"SLURM has started {size} processes on {nodes} nodes; set --ntasks-per-node")
        environment = SLURMEnvironment(auto_requeue=False)  # its checkpoint may be from the middle of a step
        return World("SLURM", environment, _number("SLURM_PROCID", 0), size, nodes)
    return None


def _number(variable: str, default: int | None = None) -> int:
    value = os.environ.get(variable, default)
    try:
        return whole_number(str(value))
    except ValueError:
        raise InputError(f"{variable} is {value}; the launcher must set it to a number") from None
