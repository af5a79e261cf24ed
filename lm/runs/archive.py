"""Writes and reads torch's archives, of which checkpoints and shards consist.

An archive is read with weights_only, and only if it holds nothing but what ours hold: no code in it can run.
"""

import os
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lm.runs.manifest import DigestingFile

PICKLED_NAMES = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"}


def write_archive(content: Any, file: DigestingFile) -> None:
    """Writes the content; OSError if that fails."""
    try:
        torch.save(content, file)  # type: ignore[arg-type]
    except RuntimeError as error:  # torch hides a failed write behind one
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_archive(file: BinaryIO) -> Any:
    """Returns an archive's content, on the CPU; any exception if it is not one of ours."""
    check_archive(file)
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):  # torch's, about bytes that are no checkpoint
        return torch.load(file, map_location="cpu", weights_only=True)


def map_archive(path: Path) -> Any:
    """Returns an archive's content as read_archive does, but reads a tensor only where it is used."""
    with open(path, "rb") as file:
        check_archive(file)
    with warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_archive(file: BinaryIO) -> None:
    """Raises ValueError unless an archive holds only what ours hold: no compression, no other callables.

    torch's own list of permitted callables includes bytearray, which allocates whatever size a file asks for.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise ValueError("not an archive")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
            raise ValueError("compressed")
        (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name in ("GLOBAL", "INST") and not is_known(str(argument)):
                raise ValueError(f"calls {argument}")
            if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                raise ValueError("calls what cannot be read off the file")


def is_known(name: str) -> bool:
    """Returns whether archives of ours call what has this name."""
    return name in PICKLED_NAMES or (name.startswith("torch ") and name.endswith("Storage"))
