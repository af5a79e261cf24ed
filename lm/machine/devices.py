"""Finds the device that --device names, and waits for a device before the clock is read."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenization import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
HELP = "the device that the model runs on; auto takes a CUDA GPU if there is one, otherwise the CPU"


def find_device(name: str) -> "torch.device":
    """Returns the device of this name; InputError if there is none.

    auto never takes Apple's GPUs: nobody has run this there yet.
    """
    import torch

    if name not in DEVICES:
        raise InputError(f"device {name!r}: it can be {', '.join(DEVICES)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"--device {name}: PyTorch {torch.__version__} finds none here; take --device cpu, or auto")
    return torch.device(name)


def wait_for(device_type: str) -> None:
    """Returns when a device has done all that it was given: a GPU's work goes on behind the program that times it."""
    import torch

    waits: dict[str, Callable[[], Any]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    if device_type in waits:
        waits[device_type]()
