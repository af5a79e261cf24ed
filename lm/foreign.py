"""Files that anyone may have written, read in bounded time and memory: transformers' JSON, and weights in safetensors.

A file is what its name says or is refused in one line; nothing in it is run, and no weight is read before all that is
said of the weights has been checked.
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
LARGEST = {SETTINGS: 1 << 20, INDEX: 1 << 24, WORDS: 1 << 26}  # bytes, more than the largest models need
FLOATS = ("F16", "BF16", "F32", "F64")

brief = reprlib.Repr()
brief.maxstring = brief.maxother = 100


def shown(value: Any) -> str:
    """A stranger's value as it may stand in a message: on one line, and never long."""
    return brief.repr(value).strip("'")


def read_bytes(path: Path) -> bytes:
    """Of an ordinary file of ordinary size: reading a pipe or a device might never end."""
    try:
        size, regular = path.stat().st_size, path.is_file()
        if regular and 0 < size <= LARGEST[path.name]:
            return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; a folder for transformers has {SETTINGS}, {WEIGHTS} and {WORDS}"
        ) from None
    what = f"has {size:,} bytes, and can have {LARGEST[path.name]:,}" if regular else "is not an ordinary file"
    raise InputError(f"{path}: {what}; get the file again")


def read_json(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key stands there twice")
        return content

    try:
        content = json.loads(read_bytes(path).decode(), object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not what transformers writes ({shown(str(error))}); get the file again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not what transformers writes, but {shown(content)}; get the file again")
    return content


# --- weights ---------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A weight as a safetensors file announces it."""

    file: Path
    dtype: str
    shape: list[int]


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Each file of weights, and the names that it must hold, where an index says so."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return {folder / WEIGHTS: None}
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{folder / INDEX}: has no weight_map; get the file again")
    files: dict[Path, set[str]] = {}
    for name, file in places.items():
        if not (isinstance(file, str) and Path(file).name == file and file.isprintable() and file.endswith(SUFFIX)):
            raise InputError(f"{folder / INDEX}: names {shown(file)}; weights are in {SUFFIX} files beside the index")
        files.setdefault(folder / file, set()).add(name)
    return {**files}


def stored_weights(folder: Path) -> dict[str, Stored]:
    """All weights by transformers' names, from the headers alone; without RoPE's tables, which some versions saved."""
    stored: dict[str, Stored] = {}
    for file, expected in weight_files(folder).items():
        if not file.is_file():
            what = "is not an ordinary file" if file.exists() else "is missing"
            raise InputError(f"{file}: {what}; other forms than safetensors are not read: they can run code")
        try:
            with safe_open(file, framework="pt") as content:
                slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118, it is no dict
                found = {name: Stored(file, part.get_dtype(), part.get_shape()) for name, part in slices.items()}
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{file}: is damaged ({shown(str(error))}); get the file again") from None
        if expected is not None and (wrong := expected ^ found.keys()):
            raise InputError(f"{file}: {INDEX} and the file disagree about {shown(min(wrong))}; get both again")
        stored |= found
    return {name: weight for name, weight in stored.items() if not name.endswith("rotary_emb.inv_freq")}


def read_weights(stored: dict[str, Stored]) -> dict[str, Tensor]:
    """In float32."""
    weights = {}
    for file in dict.fromkeys(weight.file for weight in stored.values()):
        with safe_open(file, framework="pt") as content:
            for name in (name for name, weight in stored.items() if weight.file == file):
                weights[name] = content.get_tensor(name).float()
                if not weights[name].isfinite().all():
                    raise InputError(f"{file}: {name} has non-finite numbers in float32; get the file again")
    return weights
