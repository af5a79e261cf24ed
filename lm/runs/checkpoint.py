"""A checkpoint is one file: what torch.save writes, and behind it, as text, a manifest and a digest.

    PK...                                      the archive; torch.load reads the file as it is
    {"step": 120, "tokenizer": "6f1c...", ...} what it was saved from, and the SHA-256 of the tokenizer's files
    sha256 9b04...                             of every byte before this line

So the state and its manifest change together, in the one rename that puts them under their name; it is written beside
its target and flushed to the disk before, and the folder after, so that the name always stands for a whole one. It is
verified before use, and loaded with weights only, from an archive that holds what ours hold: no code in it can run.
"""

import hashlib
import json
import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lm.model.transformer import DEFAULTS, MODEL_SETTINGS, TransformerLM
from lm.runs.finite import in_words, named_tensors, nonfinite_names
from lm.runs.folder import BEST, CONFIG, LAST, TOKENIZER
from lm.strict_json import to_json
from tokenization import InputError, Tokenizer
from tokenization.files import file_sha256, writing

OLDER: dict[str, Any] = {**DEFAULTS, "optimizer": "adamw"}  # what checkpoints from before a setting were
MANIFEST_BYTES = 1 << 16  # at most
DIGEST_LINE = len("sha256 \n") + 64
PICKLED_NAMES = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict"}
WEIGHTS, MOMENTS = "state_dict", "optimizer_states"
TABLE_BYTES = 1 << 30  # of position tables at most, in the model of a checkpoint from anywhere


# --- writing ---------------------------------------------------------------------------------------------------------


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
    """The step; the digests of data, tokenizer and configuration; the SHA-256 of the files that belong to it."""
    config, tokenizer = folder / CONFIG, sorted(path for path in (folder / TOKENIZER).glob("[!.]*") if path.is_file())
    return {
        "format": 1,
        "step": checkpoint["global_step"],
        **checkpoint.get("TokenDataModule", {}),
        "config_sha256": file_sha256(config) if config.is_file() else None,
        "files": {f"{TOKENIZER}/{path.name}": file_sha256(path) for path in tokenizer},
    }


def save_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike) -> None:
    """Whole or not at all."""
    path = Path(path)
    manifest = to_json(make_manifest(checkpoint, path.parent))
    with writing(path) as file:
        digesting = DigestingFile(file)
        try:
            torch.save(checkpoint, digesting)  # type: ignore[arg-type]
        except RuntimeError as error:  # what torch makes of a write that failed
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        digesting.write(f"\n{manifest}\n".encode())
        file.write(f"sha256 {digesting.sha256.hexdigest()}\n".encode())


# --- verifying -------------------------------------------------------------------------------------------------------


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """What the checkpoint says about itself, unverified, without reading more of it."""
    with open_checkpoint(path) as file:
        return _read_end(file, path)[0]


def verify(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the manifest of a checkpoint that can be gone on from.

    Its bytes, and its tokenizer's, are those that were saved, and its numbers are finite.
    """
    load_checkpoint(path)
    manifest = read_manifest(path)
    verify_tokenizer(path, manifest)
    return manifest


def find_checkpoint(run: str | os.PathLike) -> Path:
    """A run's folder stands for its best checkpoint, or for the last where no validation has found one."""
    run = Path(run)
    return next((run / name for name in (BEST, LAST) if (run / name).is_file()), run)


def open_checkpoint(path: str | os.PathLike) -> BinaryIO:
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        found = ", ".join(str(file) for file in sorted(folder.glob("*.ckpt")))
        raise InputError(f"{path}: no such checkpoint; " + (f"there is {found}" if found else "train with `lm fit`"))
    return open(path, "rb")


def _read_end(file: BinaryIO, path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """The manifest and the digest line."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MANIFEST_BYTES - DIGEST_LINE))
    manifest, _, line = file.read().removesuffix(b"\n").rpartition(b"\n")
    try:
        parsed = json.loads(manifest[manifest.rindex(b"\n") :])
        digest, files = line.decode("ascii"), parsed.get("files", {})
        if len(digest) != DIGEST_LINE - 1 or not isinstance(parsed["step"], int):
            raise ValueError
        if not isinstance(files, dict) or not all(isinstance(sha256, str) for sha256 in files.values()):
            raise TypeError
        return parsed, digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path}: is not a checkpoint of `lm fit`, or not a whole one: the manifest at its end is missing"
        ) from None


def _verify_bytes(file: BinaryIO, path: str | os.PathLike) -> dict[str, Any]:
    manifest, line = _read_end(file, path)
    left, sha256 = file.seek(0, os.SEEK_END) - DIGEST_LINE, hashlib.sha256()
    file.seek(0)
    while left and (chunk := file.read(min(left, 1 << 20))):
        sha256.update(chunk)
        left -= len(chunk)
    if line != f"sha256 {sha256.hexdigest()}" or file.read() != f"{line}\n".encode():
        raise InputError(
            f"{path}: is damaged, says the digest at its end; use another, or let --ckpt_path auto find one"
        )
    return manifest


def verify_tokenizer(path: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """The copy of the tokenizer in the checkpoint's folder is the one that was there when it was saved."""
    for name, sha256 in manifest.get("files", {}).items():
        file = Path(path).parent / TOKENIZER / Path(name).name
        if not file.is_file():
            raise InputError(f"{file}: is missing; {path} needs it, and the tokenizer it was trained with has it")
        if file_sha256(file) != sha256:
            raise InputError(
                f"{file}: has changed since {path} was saved; put back the tokenizer that it was trained with"
            )


# --- reading ---------------------------------------------------------------------------------------------------------


def check_archive(file: BinaryIO) -> None:
    """Raises ValueError unless an archive holds what ours hold: nothing packed that could grow, no other callables.

    torch's own list of what a file may call has bytearray in it, which takes all the memory one asks for.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise ValueError("no archive")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
            raise ValueError("packed")
        (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            storage = str(argument).startswith("torch ") and str(argument).endswith("Storage")
            if opcode.name in ("GLOBAL", "INST") and argument not in PICKLED_NAMES and not storage:
                raise ValueError(f"calls {argument}")
            if opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                raise ValueError("names what it calls where one cannot read it")


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) < 100 and all(type(entry) in (int, float, str, bool, type(None)) for entry in value)
    return type(value) in (int, float, str, bool, type(None))


def load_checkpoint(path: str | os.PathLike, finite: Iterable[str] = (WEIGHTS, MOMENTS)) -> dict[str, Any]:
    """Verified, and loaded from the very bytes that were.

    finite: the parts of it that must not hold a NaN or an infinity.
    """
    with open_checkpoint(path) as file:
        _verify_bytes(file, path)
        try:
            check_archive(file)
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # its doubts about bytes that are no checkpoint
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # whatever the bytes make of the readers
            raise InputError(f"{path}: cannot be read as a checkpoint; it is not one of ours") from None
    ours = isinstance(checkpoint, dict) and {"state_dict", "hyper_parameters", "global_step"} <= checkpoint.keys()
    settings = checkpoint["hyper_parameters"] if ours else None
    settings = OLDER | settings if isinstance(settings, dict) else {}
    if not (set(MODEL_SETTINGS) <= set(settings) and all(map(_plain, settings.values()))):
        raise InputError(f"{path}: is not a checkpoint of `lm fit`")
    if bad := nonfinite_names(named_tensors({part: checkpoint.get(part) for part in finite})):
        raise InputError(
            f"{path}: is of a run that has diverged: {in_words(bad)}; use an earlier one, or let --ckpt_path auto find"
            " one"
        )
    return checkpoint | {"hyper_parameters": settings}


def load_model(path: str | os.PathLike, finite: bool = True) -> TransformerLM:
    """The trained model alone, on the CPU, ready to generate.

    finite: refuse weights that are not; whoever measures how good a model is may want to see them, too.
    """
    checkpoint, prefix = load_checkpoint(path, (WEIGHTS,) if finite else ()), "model."
    settings = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
    weights = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    if not _fits(settings, weights):
        raise InputError(f"{path}: holds weights of another model than its settings describe")
    model = TransformerLM(**settings)
    model.load_state_dict(weights)
    return model


def _fits(settings: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Found out without memory, whatever sizes the settings of a stranger's checkpoint name."""
    try:
        if settings["num_layers"] > len(weights):
            return False
        model = TransformerLM(**settings, device="meta")
    except (ValueError, TypeError, RuntimeError):
        return False
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return tables <= TABLE_BYTES and shapes == {name: weight.shape for name, weight in weights.items()}


def load_tokenizer(path: str | os.PathLike, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint: the copy in its folder, verified.

    vocab_size: the model's, which must have a row for every token.
    """
    folder = Path(path).parent / TOKENIZER
    if folder.is_dir():
        verify_tokenizer(path, read_manifest(path))
    tokenizer = Tokenizer.load(folder)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: has {tokenizer.vocab_size} tokens, but the model in {path} has rows for {vocab_size}; they do"
            " not belong together"
        )
    return tokenizer
