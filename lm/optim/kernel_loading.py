"""Finds the kernels of this folder, adamw_kernel.py and clipping_kernel.py, for the tensors that they know."""

import importlib
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn


def kernel_for(name: str, tensors: Iterable[Tensor]) -> ModuleType | None:
    """Returns the module of this name, such as "adamw_kernel"; None where it cannot be had, or does not know a tensor.

    It knows those that are contiguous, in float32, on a CPU, and whole; FSDP's are of a type of their own.
    """
    known = all(
        x.is_cpu and x.dtype == torch.float32 and type(x) in (Tensor, nn.Parameter) and x.is_contiguous()
        for x in tensors
    )
    return _loaded(name) if known else None


@cache
def _loaded(name: str) -> ModuleType | None:
    """Returns the module with its kernels compiled; None where there is no llvmlite, or they cannot be compiled."""
    try:
        module = importlib.import_module(f"{__package__}.{name}")
        module.load_kernels()
    except ModuleNotFoundError:  # no llvmlite
        return None
    except Exception as error:  # whatever LLVM raises
        reason = " ".join(str(error).split()) or repr(error)
        print(f"lm: {name} cannot be compiled ({reason}); torch's operators take its place", file=sys.stderr)
        return None
    return module
