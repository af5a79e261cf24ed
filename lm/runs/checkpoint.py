"""Saves and loads checkpoints: one file each, an archive by torch.save with a manifest and a digest behind it.

The state and its manifest change together, in the one rename that gives them their name. The file is written beside its
target and flushed to the disk first, and the folder afterwards, so that the name always stands for a whole file. It is
verified before use, and loaded with weights_only from an archive restricted to what ours hold: no code in it can run.
The format of the file's end is in manifest.py. The tensors of a sharded checkpoint lie in files beside it (shards.py).
"""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm.model.initialization import START_SETTINGS
from lm.model.transformer import DEFAULTS, MODEL_SETTINGS, TransformerLM
from lm.runs.archive import map_archive, read_archive, write_archive
from lm.runs.finite import in_words, nonfinite_names
from lm.runs.folder import BEST, LAST, SHARDS, TOKENIZER
from lm.runs.manifest import (
    DigestingFile,
    make_manifest,
    open_checkpoint,
    read_manifest,
    verify_bytes,
    verify_tokenizer,
)
from lm.runs.shards import SHAPES, Shards, put_rows
from lm.runs.states import named_tensors
from lm.strict_json import to_json
from tokenization import InputError, Tokenizer
from tokenization.files import writing

# The settings that a checkpoint from before them had.
OLDER: dict[str, Any] = {**DEFAULTS, **START_SETTINGS, "optimizer": "adamw"}
# With an average, the weights are the averaged ones, and it holds those that training goes on with.
STATES = WEIGHTS, MOMENTS, AVERAGE = "state_dict", "optimizer_states", "average"
UNREADABLE = "cannot be read as a checkpoint; it is not one of ours"
TABLE_BYTES = 1 << 30  # of position tables at most, in the model of a checkpoint from anywhere


def save_checkpoint(
    checkpoint: dict[str, Any], path: str | os.PathLike[str], shards: Mapping[str, str] | None = None
) -> None:
    """Writes a checkpoint, whole or not at all.

    shards: the SHA-256 of each file of a sharded one, which must have been written; by name, relative to the folder.
    """
    path = Path(path)
    manifest = to_json(make_manifest(checkpoint, path.parent) | ({SHARDS: dict(shards)} if shards else {}))
    with writing(path) as file:
        digesting = DigestingFile(file)
        write_archive(checkpoint, digesting)
        digesting.write(f"\n{manifest}\n".encode())
        file.write(f"sha256 {digesting.sha256.hexdigest()}\n".encode())


def find_checkpoint(run: str | os.PathLike[str]) -> Path:
    """Returns the checkpoint that a run's folder stands for, the best or else the last; a file stands for itself."""
    run = Path(run)
    return next((run / name for name in (BEST, LAST) if (run / name).is_file()), run)


def verify(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of a checkpoint that a run can resume from; InputError if it cannot.

    The checkpoint and its tokenizer must be byte for byte what was saved, and its numbers finite.
    """
    check_checkpoint(path)
    manifest = read_manifest(path)
    verify_tokenizer(path, manifest)
    return manifest


# --- loading ---------------------------------------------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) < 100 and all(type(entry) in (int, float, str, bool, type(None)) for entry in value)
    return type(value) in (int, float, str, bool, type(None))


def load_checkpoint(
    path: str | os.PathLike[str], finite: Iterable[str] = STATES, parts: Collection[str] = STATES
) -> dict[str, Any]:
    """Verifies a checkpoint and loads it from the very bytes it has verified; InputError if anything is wrong.

    finite: the parts that must hold no NaN and no infinity. parts: those that are needed of a sharded checkpoint.
    """
    checkpoint, shards = open_state(path)
    if shards is not None:
        checkpoint = put_rows(checkpoint, shards.read(parts=parts))
    _refuse_nonfinite(checkpoint, path, finite)
    return checkpoint


def check_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Does as load_checkpoint, but of a sharded checkpoint only verifies the shards, one at a time."""
    checkpoint, shards = open_state(path)
    if shards is not None:
        shards.verify()
    _refuse_nonfinite(checkpoint, path, STATES)
    return checkpoint


def peek_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Loads a checkpoint that another process has verified, and reads none of its tensors until one is used."""
    with open_checkpoint(path):
        pass
    try:
        checkpoint = map_archive(Path(path))
    except Exception:
        raise InputError(f"{path}: {UNREADABLE}") from None
    return _with_all_settings(checkpoint, path)


def open_state(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Shards | None]:
    """Returns the verified content of a checkpoint's file, and its shards, which are still unread."""
    with open_checkpoint(path) as file:
        manifest = verify_bytes(file, path)
        try:
            checkpoint = read_archive(file)
        except Exception:  # arbitrary bytes raise anything
            raise InputError(f"{path}: {UNREADABLE}") from None
    checkpoint = _with_all_settings(checkpoint, path)
    if SHAPES not in checkpoint:
        return checkpoint, None
    return checkpoint, Shards.find(Path(path), manifest.get(SHARDS, {}), checkpoint[SHAPES])


def _with_all_settings(checkpoint: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a checkpoint with the settings that older ones lack; InputError if `lm fit` has not written it."""
    ours = isinstance(checkpoint, dict) and {"state_dict", "hyper_parameters", "global_step"} <= checkpoint.keys()
    settings = checkpoint["hyper_parameters"] if ours else None
    settings = OLDER | settings if isinstance(settings, dict) else {}
    if not (set(MODEL_SETTINGS) <= set(settings) and all(map(_is_plain, settings.values()))):
        raise InputError(f"{path}: is not a checkpoint of `lm fit`")
    complete: dict[str, Any] = checkpoint | {"hyper_parameters": settings}
    return complete


def _refuse_nonfinite(checkpoint: dict[str, Any], path: str | os.PathLike[str], parts: Iterable[str]) -> None:
    if bad := nonfinite_names(named_tensors({part: checkpoint.get(part) for part in parts})):
        raise InputError(
            f"{path}: is from a run that has diverged: {in_words(bad)}; use an earlier one, which `lm fit"
            " --ckpt_path auto` finds by itself"
        )


def load_model(path: str | os.PathLike[str], finite: bool = True) -> TransformerLM:
    """Returns the trained model of a checkpoint, on the CPU.

    finite: refuse weights that are not; an evaluation may want to see what they give.
    """
    checkpoint, prefix = load_checkpoint(path, (WEIGHTS,) if finite else (), (WEIGHTS,)), "model."
    settings = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
    weights = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    if not _fits(settings, weights):
        raise InputError(f"{path}: its weights are not those of the model that its settings describe")
    model = TransformerLM(**settings)
    model.load_state_dict(weights)
    return model


def _fits(settings: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Whether the weights are those of a model with these settings.

    Checked on the meta device, so that hostile sizes allocate nothing.
    """
    try:
        if settings["num_layers"] > len(weights):
            return False
        model = TransformerLM(**settings, device="meta")
    except (ValueError, TypeError, RuntimeError):
        return False
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return tables <= TABLE_BYTES and shapes == {name: weight.shape for name, weight in weights.items()}


def load_tokenizer(path: str | os.PathLike[str], vocab_size: int | None = None) -> Tokenizer:
    """Returns the tokenizer in a checkpoint's folder, verified.

    vocab_size: the model's; InputError if the tokenizer has more tokens.
    """
    folder = Path(path).parent / TOKENIZER
    verify_tokenizer(path, read_manifest(path))
    tokenizer = Tokenizer.load(folder)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"{folder}: has {tokenizer.vocab_size} tokens, but the model in {path} has rows for {vocab_size}; they do"
            " not belong together"
        )
    return tokenizer
