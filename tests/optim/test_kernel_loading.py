"""Proves that torch takes the place of kernels that cannot be had, and that a line says so if they do not compile."""

import pytest
import torch
from torch import nn

from lm.optim import kernel_loading
from lm.optim.kernel_loading import kernel_for


@pytest.fixture(autouse=True)
def anew():
    kernel_loading._loaded.cache_clear()
    yield
    kernel_loading._loaded.cache_clear()


@pytest.mark.parametrize("name", ["adamw_kernel", "clipping_kernel"])
def test_kernels_are_for_whole_float32_tensors_on_a_cpu(name):
    pytest.importorskip("llvmlite")
    weight = nn.Parameter(torch.zeros(4, 3))
    assert kernel_for(name, [weight, torch.zeros(3)]).__name__ == f"lm.optim.{name}"
    for other in (torch.zeros(4, 3).T, torch.zeros(3).double(), torch.zeros(3, device="meta")):
        assert kernel_for(name, [weight, other]) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'llvmlite'"), ""),
        (
            RuntimeError("LLVM\n  is too old"),
            "lm: adamw_kernel cannot be compiled (LLVM is too old); torch's operators take its place\n",
        ),
    ],
)
def test_kernels_that_cannot_be_had(error, said, monkeypatch, capsys):
    def fail(name):
        raise error

    monkeypatch.setattr(kernel_loading.importlib, "import_module", fail)
    for _ in range(2):
        assert kernel_for("adamw_kernel", [torch.zeros(3)]) is None
    assert capsys.readouterr() == ("", said)
