"""Reads and verifies the end of a checkpoint file: a manifest and a digest, as text.

    PK...                               the archive; torch.load reads the file as it is
    {"step": 120, "files": {...}, ...}  the step and the best loss; the SHA-256 of data, tokenizer and configuration, of
                                        each of the tokenizer's files, and of shards
    sha256 9b04...                      of every byte before this line

It imports no torch, so that a command can verify bytes without it. The archive is checkpoint.py's.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from lm.runs.folder import BEST, CONFIG, SHARDS, TOKENIZER
from tokenization import InputError
from tokenization.files import file_sha256
from tokenization.formats.folder import FILES

MANIFEST_BYTES = 1 << 20  # at most
SHARD_NAME = re.compile(rf"{SHARDS}/step-[0-9]+-[0-9a-f]+/[0-9]+-of-[0-9]+\.pt")
DIGEST_LINE = len("sha256 \n") + 64  # bytes


class DigestingFile:
    """Passes on what is written, and keeps its SHA-256."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def make_manifest(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the step, the digests of data, tokenizer and configuration, and the SHA-256 of the tokenizer's files."""
    saved = checkpoint.get("callbacks", {}).get("Checkpoints", {})
    best_loss, branch = saved.get("best_loss", math.inf), saved.get("branch", 0)
    config, tokenizer = folder / CONFIG, [folder / TOKENIZER / name for name in sorted(FILES)]
    return {
        "format": 1,
        "step": checkpoint["global_step"],
        **checkpoint.get("TokenDataModule", {}),
        "config_sha256": file_sha256(config) if config.is_file() else None,
        **({"best_loss": best_loss} if math.isfinite(best_loss) else {}),  # in validation, until this step
        **({"branch": branch} if branch else {}),  # newest.py
        "files": {f"{TOKENIZER}/{path.name}": file_sha256(path) for path in tokenizer if path.is_file()},
    }


def open_checkpoint(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a checkpoint; InputError, which lists those that are there, if it does not exist."""
    path = Path(path)
    if path.is_file():
        return open(path, "rb")
    folder = path if path.is_dir() else path.parent
    found = ", ".join(str(file) for file in sorted(folder.glob("*.ckpt")) if file.is_file())
    if path.is_dir():
        what = "is a folder, not a checkpoint" if found else "is a folder without a checkpoint"
    elif path.is_symlink() and not path.exists():
        what = "is a broken link"
    else:
        what = "is not a regular file" if path.exists() else "no such checkpoint"
    raise InputError(f"{path}: {what}; " + (f"there is {found}" if found else "train with `lm fit`"))


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest, unverified; reads only the end of the file."""
    with open_checkpoint(path) as file:
        return _read_end(file, path)[0]


def training_facts(path: str | os.PathLike[str]) -> dict[str, int | float]:
    """Returns a checkpoint's step and, as far as its manifest tells, its validation_loss; nothing of imported weights.

    The manifest has the lowest validation loss so far, which is that of best.ckpt.
    """
    manifest = read_manifest(path)
    if not manifest["step"]:
        return {}
    loss = manifest.get("best_loss") if Path(path).name == BEST else None
    return {"step": manifest["step"]} | ({"validation_loss": loss} if isinstance(loss, float) else {})


def read_digest(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 that the file says it has, unverified."""
    with open_checkpoint(path) as file:
        return _read_end(file, path)[1].removeprefix("sha256 ")


def _read_end(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Returns the manifest and the digest line."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MANIFEST_BYTES - DIGEST_LINE))
    manifest, _, line = file.read().removesuffix(b"\n").rpartition(b"\n")
    try:
        parsed = json.loads(manifest[manifest.rindex(b"\n") :])
        digest, files, shards = line.decode("ascii"), parsed.get("files", {}), parsed.get(SHARDS, {})
        if len(digest) != DIGEST_LINE - 1 or not isinstance(parsed["step"], int):
            raise ValueError
        for names in (files, shards):
            if not isinstance(names, dict) or not all(isinstance(sha256, str) for sha256 in names.values()):
                raise TypeError
        if not all(map(SHARD_NAME.fullmatch, shards)):
            raise ValueError
        return parsed, digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path}: is not a checkpoint of `lm fit`, or not a whole one: the manifest at its end is missing"
        ) from None


def verify_bytes(file: BinaryIO, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest; InputError unless the file matches the digest at its end."""
    manifest, line = _read_end(file, path)
    left, sha256 = file.seek(0, os.SEEK_END) - DIGEST_LINE, hashlib.sha256()
    file.seek(0)
    while left and (chunk := file.read(min(left, 1 << 20))):
        sha256.update(chunk)
        left -= len(chunk)
    if line != f"sha256 {sha256.hexdigest()}" or file.read() != f"{line}\n".encode():
        raise InputError(
            f"{path}: is damaged and does not match the digest at its end; use an earlier one,"
            " which `lm fit --ckpt_path auto` finds by itself"
        )
    return manifest


def verify_tokenizer(path: str | os.PathLike[str], manifest: dict[str, Any]) -> None:
    """Raises InputError unless the tokenizer in the checkpoint's folder is the one it was saved beside."""
    for name, sha256 in manifest.get("files", {}).items():
        file = Path(path).parent / TOKENIZER / Path(name).name
        if not file.is_file():
            raise InputError(f"{file}: is missing, and {path} needs it; copy it from the tokenizer it was trained with")
        if file_sha256(file) != sha256:
            raise InputError(
                f"{file}: has changed since {path} was saved; put back the tokenizer that it was trained with"
            )
