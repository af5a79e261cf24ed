"""Proves that FSDP gathers weights as bfloat16 where the precision says so, and computes what one process computes: two
processes with half of the weights each, forked from one without autograd's threads (a CUDA build of torch starts some).
"""

import pytest
import torch
from helpers.sharded_step import gradients, make_model


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fsdp_gathers_in_the_precision_of_the_products(precision, kernels, fork_server, monkeypatch, tmp_path):
    """The numbers are those of one process, bit for bit: both see the same batch, so that a mean is the gradient."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    settings = precision, "kernels" if kernels else "plain", tmp_path
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    both = [fork_server.start([rank, *settings], log, "helpers.sharded_step") for rank, log in enumerate(logs)]
    assert [process.wait() for process in both] == [0, 0], [log.read_text() for log in logs]
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
