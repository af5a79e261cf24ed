"""Reads untrusted files in bounded time and memory: the JSON of transformers, and safetensors.

A file that is not what its name says is refused with one line. Nothing in a file is executed, and no weight is read
before the headers of all files have been checked.
"""

import json
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenization import InputError

SETTINGS, WEIGHTS, INDEX, WORDS = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
SUFFIX = ".safetensors"
LARGEST = {SETTINGS: 1 << 20, INDEX: 1 << 24, WORDS: 1 << 26}  # bytes; more than the largest models need
FLOATS = ("F16", "BF16", "F32", "F64")

brief = reprlib.Repr()
brief.maxstring = brief.maxother = 100


def shown(value: Any) -> str:
    """Formats an untrusted value for a message: printable, on one line, and short."""
    return brief.repr(value).strip("'")


def read_bytes(path: Path) -> bytes:
    """Reads a regular file of reasonable size; InputError for anything else: a pipe or a device might never end."""
    try:
        size, regular = path.stat().st_size, path.is_file()
        if regular and 0 < size <= LARGEST[path.name]:
            return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a transformers folder has {SETTINGS}, {WEIGHTS} and {WORDS}"
        ) from None
    what = f"is {size:,} bytes long, not 1 to {LARGEST[path.name]:,}" if regular else "is not a regular file"
    raise InputError(f"{path}: {what}; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; InputError for anything else, and for a key that occurs twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key occurs twice")
        return content

    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"), object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a JSON object ({shown(str(error))}); download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object ({shown(content)}); download it again")
    return content


# --- weights ---------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A weight as its safetensors header describes it."""

    file: Path
    dtype: str
    shape: list[int]


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Finds the files of weights; with an index, also the names that each must hold."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return {folder / WEIGHTS: None}
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{folder / INDEX}: has no weight_map; download it again")
    files: dict[Path, set[str]] = {}
    for name, file in places.items():
        if not (isinstance(file, str) and Path(file).name == file and file.isprintable() and file.endswith(SUFFIX)):
            raise InputError(f"{folder / INDEX}: names {shown(file)}, which is not a {SUFFIX} file beside the index")
        files.setdefault(folder / file, set()).add(name)
    return {**files}


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Lists all weights by transformers' names, from the headers alone, without stored tables of RoPE."""
    stored: dict[str, Stored] = {}
    for file, expected in weight_files(folder).items():
        if not file.is_file():
            what = "is not a regular file" if file.exists() else "is missing"
            raise InputError(f"{file}: {what}; formats other than safetensors are not read, as they can run code")
        try:
            with safe_open(file, framework="pt") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118, it is not a dict
                found = {name: Stored(file, part.get_dtype(), part.get_shape()) for name, part in slices.items()}
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{file}: is damaged ({shown(str(error))}); download it again") from None
        if expected is not None and (wrong := expected ^ found.keys()):
            raise InputError(f"{file}: {INDEX} and the file disagree about {shown(min(wrong))}; download both again")
        stored |= found
    return {name: weight for name, weight in stored.items() if not name.endswith("rotary_emb.inv_freq")}


def read_weights(stored: dict[str, Stored]) -> dict[str, Tensor]:
    """Reads weights as float32; InputError for one that is not finite."""
    weights = {}
    for file in dict.fromkeys(weight.file for weight in stored.values()):
        with safe_open(file, framework="pt") as content:
            for name in (name for name, weight in stored.items() if weight.file == file):
                weights[name] = content.get_tensor(name).float()
                if not weights[name].isfinite().all():
                    raise InputError(f"{file}: {name} has values that are not finite in float32; download it again")
    return weights
