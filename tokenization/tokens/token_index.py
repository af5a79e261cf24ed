"""The index of a token set: index.json, which makes one long token file of the token files of a folder.

    corpus.tokens/00000.bin, 00000.bin.json, 00001.bin, ...     token files by themselves, the shards
    corpus.tokens/index.json                                    written last: the sums, the shards in their order with
                                                                their digests, the digest of all data one after another

A folder without an index is no token set, so an interrupted writer leaves none. Reading the tokens is token_set.py's.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tokenization.errors import InputError
from tokenization.files import write_text
from tokenization.tokens.token_format import (
    DTYPES,
    Description,
    check_size,
    is_token_file,
    read_description,
    verify_tokens,
)

INDEX = "index.json"
PLAN = "plan.json"  # of an encoding that has not ended, see set_encoding.py
SUFFIX = ".tokens"  # of a folder's name, by custom
FORMAT = 1
BLOCK_BYTES = 1 << 22  # that are read at once
TOTALS = [field.name for field in fields(Description)]


@dataclass(frozen=True)
class Shard:
    """A token file of a set: its name in the folder, and what its own description says."""

    path: str
    tokens: int
    documents: int
    bytes: int
    data_sha256: str


@dataclass(frozen=True)
class Index:
    """What index.json says. The description is that of one file with all the shards' tokens."""

    description: Description
    shards: tuple[Shard, ...]

    @property
    def text(self) -> str:
        """The index as JSON, with a digest of itself, so that a changed value is noticed."""
        values = {"format": FORMAT, **asdict(self.description), "shards": [asdict(shard) for shard in self.shards]}
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        return json.dumps(values | {"index_sha256": digest}, indent=2) + "\n"


def is_token_set(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder with an index of ours, or named as one that should have it."""
    folder = Path(path)
    return folder.is_dir() and (folder.suffix == SUFFIX or holds_index(folder))


def holds_index(folder: Path) -> bool:
    """Returns whether the index.json of a folder is one of ours, perhaps damaged or of another version."""
    try:
        return set(json.loads((folder / INDEX).read_bytes()).keys()) >= {"format", "shards"}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def read_index(folder: Path) -> Index:
    """Reads the index of a token set, and checks that its shards are there.

    Raises InputError where the index is missing or damaged, and for a shard that is missing or another than listed.
    Their sizes and descriptions are read, and not their tokens.
    """
    index = parse_index(folder)
    for shard in index.shards:
        check_shard(folder, shard, index.description)
    listed = {shard.path for shard in index.shards}
    if others := sorted(path.name for path in folder.glob("[!.]*.bin") if path.name not in listed):
        raise InputError(
            f"{folder}: holds {others[0]}, which {INDEX} does not list; move it away, or run `tokenization index"
            f" {shlex.quote(str(folder))} --overwrite`"
        )
    return index


def parse_index(folder: Path) -> Index:
    """Reads index.json. Raises InputError where it is missing, damaged or another program's."""
    path, remedy = folder / INDEX, f"write it with `tokenization index {shlex.quote(str(folder))}`"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise InputError(f"{path}: is of format {content['format']!r}, and this version reads format {FORMAT}")
        index = Index(
            Description(**{name: content[name] for name in TOTALS}),
            tuple(Shard(**shard) for shard in content["shards"]),
        )
        if not (has_right_types(index.description) and all(map(has_right_types, index.shards))):
            raise TypeError
    except FileNotFoundError:
        if (folder / PLAN).exists():
            raise InputError(
                f"{folder}: its encoding was interrupted; the same `tokenization encode` command resumes it"
            ) from None
        raise InputError(f"{folder}: is not a token set: it has no {INDEX}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path}: is not the index of a token set; {remedy}") from None
    names = [shard.path for shard in index.shards]
    whole = sum(shard.tokens for shard in index.shards) == index.description.tokens > 0
    if text != index.text or not whole or index.description.dtype not in DTYPES:
        raise InputError(f"{path}: has changed since it was written, according to its own digest; {remedy} --overwrite")
    if len(set(names)) < len(names) or any(name != Path(name).name for name in names):
        raise InputError(f"{path}: lists a shard twice, or one of another folder; {remedy} --overwrite")
    return index


def has_right_types(entry: Description | Shard) -> bool:
    """Returns whether each value has exactly the type that its field declares."""
    return all(type(getattr(entry, field.name)) is field.type for field in fields(entry))


def check_shard(folder: Path, shard: Shard, whole: Description) -> Description:
    """Returns the description of a shard.

    Raises InputError where it is missing, of another kind than the set, or not the file that is listed.
    """
    path = folder / shard.path
    if not path.is_file():
        raise InputError(f"{path}: is missing, and {INDEX} lists it; put it back, or index the folder again")
    found = check_size(path)
    check_kind(path, found, whole, "the set")
    if (found.tokens, found.data_sha256) != (shard.tokens, shard.data_sha256):
        raise InputError(
            f"{path}: is not the file that {INDEX} lists (digest {found.data_sha256[:12]}, not"
            f" {shard.data_sha256[:12]}); put it back, or index the folder again"
        )
    return found


def check_kind(path: Path, found: Description, wanted: Description, whose: str) -> None:
    """Raises InputError where a token file has not the tokenizer, vocabulary and dtype of others. whose: theirs."""
    if found.tokenizer_sha256 != wanted.tokenizer_sha256:
        raise InputError(f"{path}: was encoded by another tokenizer, not that of {whose}; take it out")
    for name in ("vocab_size", "dtype"):
        there, here = getattr(found, name), getattr(wanted, name)
        if there != here:
            raise InputError(f"{path}: {name} is {there}, and that of {whose} {here}; take it out")


def write_index(folder: Path, fresh: Collection[str] = ()) -> Index:
    """Verifies every token file of a folder, in the order of their names, and writes the index over them.

    fresh: the names of those that the same command has just written, whose digests are believed. Raises InputError for
    one that is damaged or of another tokenizer than the first, and where there is none.
    """
    paths = shard_paths(folder)
    found = [check_size(path) for path in paths]
    for path, description in zip(paths, found, strict=True):
        check_kind(path, description, found[0], paths[0].name)
    only = len(paths) == 1 and paths[0].name in fresh
    data_sha256 = found[0].data_sha256 if only else digest_of_all(paths, found, fresh)
    shards = tuple(
        Shard(path.name, about.tokens, about.documents, about.bytes, about.data_sha256)
        for path, about in zip(paths, found, strict=True)
    )
    index = Index(add_up(found, data_sha256), shards)
    write_text(folder / INDEX, index.text)
    return index


def digest_of_all(paths: Sequence[Path], found: Sequence[Description], fresh: Collection[str]) -> str:
    """Returns the digest of the data of all shards in sequence; verifies those that are not fresh."""
    sha256 = hashlib.sha256()
    with progress("verifying", sum(path.stat().st_size for path in paths)) as bar:

        def take(data: memoryview) -> None:
            sha256.update(data)
            bar.update(data.nbytes)

        for path, description in zip(paths, found, strict=True):
            if path.name in fresh:
                read_blocks(path, take)
            else:
                verify_tokens(path, description, take)
    return sha256.hexdigest()


def read_blocks(path: Path, take: Callable[[memoryview], object]) -> None:
    """Passes the content of a file on, some at a time."""
    with open(path, "rb") as file:
        while data := file.read(BLOCK_BYTES):
            take(memoryview(data))


def add_up(found: Sequence[Description], data_sha256: str) -> Description:
    """Returns the description of all these token files one after another.

    Where one does not know its documents or bytes (0), the sum does not either.
    """
    first, tokens = found[0], sum(about.tokens for about in found)
    known = all(about.documents or about.bytes for about in found)
    documents = sum(about.documents for about in found) if known else 0
    num_bytes = sum(about.bytes for about in found) if all(about.bytes for about in found) else 0
    return Description(first.dtype, tokens, documents, num_bytes, first.vocab_size, first.tokenizer_sha256, data_sha256)


def shard_paths(folder: Path) -> list[Path]:
    """Returns the token files of a folder, sorted by name.

    Raises InputError for a .bin without a description, a description without its file, and where there is none.
    """
    names = {path.name for path in folder.glob("[!.]*.bin")}
    for beside in folder.glob("[!.]*.json"):
        path = beside.with_suffix("")
        if beside.name not in (INDEX, PLAN) and is_token_file(path):
            if not path.is_file():
                raise InputError(f"{path}: is missing, though {beside.name} is there; put it back, or delete both")
            names.add(path.name)
    if not names:
        raise InputError(f"{folder}: holds no token file; `tokenization encode` or `tokenization adopt` makes them")
    paths = [folder / name for name in sorted(names)]
    for path in paths:
        read_description(path)
    return paths


def progress(title: str, size: int) -> Any:
    """Returns a bar of bytes, which is shown on a terminal after two seconds."""
    return tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=None, delay=2, leave=False)
