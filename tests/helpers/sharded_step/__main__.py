"""One of two processes: `main(["0", "bf16-mixed", "kernels", "FOLDER"])` saves what it has found in FOLDER/found.pt.

Loss, gradients and, by dtype, how many numbers each gather has brought together.
"""

from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from helpers.sharded_step import gradients, make_model
from lm.training.fast_path import shard

GATHER = "all_gather_single" if hasattr(distributed, "all_gather_single") else "all_gather_into_tensor"  # before 2.13


def main(arguments: list[str]) -> int:
    rank, precision, kernels, folder = int(arguments[0]), arguments[1], arguments[2] == "kernels", Path(arguments[3])
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    gathered: list[tuple[torch.dtype, int]] = []
    gather = getattr(distributed, GATHER)

    def note(*arguments, **settings):
        output = settings.get("output_tensor", settings.get("output", arguments[0] if arguments else None))
        gathered.append((output.dtype, output.numel()))
        return gather(*arguments, **settings)

    setattr(distributed, GATHER, note)
    model = make_model(kernels)
    shard(model, init_device_mesh("cpu", (2,)), precision)
    loss, found = gradients(model, precision)
    whole = {name: gradient.full_tensor() for name, gradient in found.items()}
    if rank == 0:
        torch.save({"loss": loss, "gradients": whole, "gathered": gathered}, folder / "found.pt")
    return 0
