"""A run is one folder, sufficient by itself, and this file knows what is in it:

    config.yaml  the whole configuration           last.ckpt  the newest state, to go on from
    tokenizer/   a copy of the tokenizer           best.ckpt  the state of the lowest validation loss
    events.*     what TensorBoard shows

A checkpoint is written beside its target, flushed to the disk and renamed, so that the name always stands for a
whole one; it is loaded with weights only, so that no code in it can run.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from lm.transformer import TransformerLM
from tokenization import InputError, Tokenizer

LAST, BEST, TOKENIZER, CONFIG = "last.ckpt", "best.ckpt", "tokenizer", "config.yaml"

MODEL_SETTINGS = (
    "vocab_size",
    "context_length",
    "d_model",
    "num_layers",
    "num_heads",
    "d_ff",
    "rope_theta",
    "norm_position",
    "position_encoding",
    "feed_forward",
    "vocab_multiple",
)


def save_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike) -> None:
    """Whole or not at all; what stood under the name stays until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        found = ", ".join(str(file) for file in sorted(folder.glob("*.ckpt")))
        raise InputError(f"{path}: no such checkpoint; " + (f"there is {found}" if found else "train with `lm fit`"))
    try:
        with warnings.catch_warnings(action="ignore"):  # its doubts about bytes that are no checkpoint
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever the bytes make of the reader
        raise InputError(f"{path}: cannot be read as a checkpoint; it is damaged, or not one of ours") from None
    ours = isinstance(checkpoint, dict) and {"state_dict", "hyper_parameters", "global_step"} <= checkpoint.keys()
    if ours and checkpoint["hyper_parameters"]:
        checkpoint["hyper_parameters"].setdefault("vocab_multiple", 1)  # older than this setting
    if not ours or not set(MODEL_SETTINGS) <= set(checkpoint["hyper_parameters"] or ()):
        raise InputError(f"{path}: is not a checkpoint of `lm fit`")
    return checkpoint


def load_model(path: str | os.PathLike) -> TransformerLM:
    """The trained model alone, on the CPU, ready to generate."""
    checkpoint = load_checkpoint(path)
    settings = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
    model = TransformerLM(**settings)
    prefix = "model."
    model.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
    )
    return model


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint: the copy in its folder."""
    return Tokenizer.load(Path(path).parent / TOKENIZER)


def compare_settings(checkpoint: dict[str, Any], settings: dict[str, Any], path: str | os.PathLike) -> list[str]:
    """What changes between a checkpoint and the run that goes on from it, a line each, "name: old -> new".

    Raises InputError where the change is one of the model's shape, which the weights do not fit.
    """
    changes = []
    for name, old in checkpoint["hyper_parameters"].items():
        new = settings.get(name)
        if new == old or (isinstance(old, (tuple, list)) and list(new or ()) == list(old)):
            continue
        if name in MODEL_SETTINGS:
            raise InputError(
                f"{path}: was trained with model.{name} {old}, not {new}; leave it at {old}, or start a new run"
            )
        changes.append(f"{name}: {old} -> {new}")
    return changes
