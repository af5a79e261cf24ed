"""Proves that FSDP gathers weights as bfloat16 where the precision says so, and computes what one process computes: two
processes, forked from this one, with half of the weights each."""

import os
import traceback
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from lm.model.fast import speed_up
from lm.model.transformer import TransformerLM
from lm.training.fast_path import shard

SHAPE = {"vocab_size": 64, "context_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2}
TOKENS = torch.arange(16).reshape(2, 8)


def gradients(model: TransformerLM, precision: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one step, and its gradients."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model(TOKENS, targets=TOKENS.roll(-1, 1))
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def make_model(kernels: bool) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(**SHAPE)
    speed_up(model, "blocks", kernels=kernels)
    return model


GATHER = "all_gather_single" if hasattr(distributed, "all_gather_single") else "all_gather_into_tensor"  # before 2.13


def work(rank: int, precision: str, kernels: bool, folder: Path) -> None:
    """Saves loss, gradients and, by dtype, how many numbers each gather has brought together."""
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


def work_in_two(precision: str, kernels: bool, folder: Path) -> None:
    pids = []
    for rank in range(2):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 1
        try:
            work(rank, precision, kernels, folder)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fsdp_gathers_in_the_precision_of_the_products(precision, kernels, monkeypatch, tmp_path):
    """The numbers are those of one process, bit for bit: both see the same batch, so that a mean is the gradient."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    work_in_two(precision, kernels, tmp_path)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model = make_model(kernels)
    loss, expected = gradients(model, precision)
    assert torch.equal(found["loss"], loss)
    for name, gradient in expected.items():
        assert torch.equal(found["gradients"][name], gradient), name
    matrices = sum(weight.numel() for name, weight in model.named_parameters() if ".attn." in name or ".ffn." in name)
    others = sum(weight.numel() for weight in model.parameters()) - matrices
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    numbers = {torch.bfloat16: 0, torch.float32: 0}
    for kind, count in found["gathered"]:
        numbers[kind] += count
    expected_numbers = {torch.bfloat16: 0, torch.float32: others}
    expected_numbers[dtype] += 2 * matrices  # forward and backward
    assert numbers == expected_numbers
