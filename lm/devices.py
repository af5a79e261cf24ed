"""Where a trained model computes: the option --device of the commands that use one."""

import argparse

import torch

from tokenization import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")
HELP = "where the model computes; auto takes a CUDA GPU if there is one, else the CPU"


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto", help=f"{HELP} (default: auto)")


def find_device(name: str) -> torch.device:
    """Return the device that the name stands for; InputError where this machine has none.

    auto passes over Apple's GPUs: nobody has run this there yet.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"--device {name}: PyTorch {torch.__version__} finds none here; take --device cpu, or auto")
    return torch.device(name)
