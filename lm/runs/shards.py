"""Keeps the tensors of a sharded checkpoint: each process's rows of them, in a file of its own beside the checkpoint.

    last.ckpt                               the rest of the state, and a manifest with the digest of each shard
    shards/step-120-6f1c09ab/0-of-2.pt      the first process's rows of the weights and of the optimizer's moments
    shards/step-120-6f1c09ab/1-of-2.pt      the second process's

The shards are written first, under a new name, and the checkpoint last, in one rename: so it is there with all its
shards, or the one before is. Checkpoints of one step share their shards, which are deleted when no checkpoint names
them any more. A tensor is cut along its first dimension as torch.chunk cuts it, which is what FSDP does.

torch.distributed.checkpoint gives each process its rows (lm/training/sharding.py), but its own files are not used:
their index is a pickle, which can run code when it is read.
"""

import hashlib
import math
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from lm.runs.archive import read_archive, write_archive
from lm.runs.finite import in_words, nonfinite_names
from lm.runs.folder import SHARDS
from lm.runs.manifest import DigestingFile, read_manifest
from lm.runs.states import named_tensors, replace_tensors
from tokenization import InputError
from tokenization.files import writing

SHAPES = "sharded"  # a checkpoint's key: {name of a sharded tensor: its whole shape}
REMEDY = "use an earlier checkpoint, which `lm fit --ckpt_path auto` finds by itself"


# --- writing ---------------------------------------------------------------------------------------------------------


def take_rows(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Splits a state into what all processes have alike and, by dotted name, this one's rows of the sharded tensors."""
    shapes: dict[str, list[int]] = {}
    rows: dict[str, Tensor] = {}

    def take(name: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        local = tensor.to_local()
        alone = local.untyped_storage().nbytes() == local.nbytes  # an archive holds whole storages
        shapes[name], rows[name] = list(tensor.shape), local if alone else local.clone()
        return local.new_empty(0)

    return replace_tensors(checkpoint, take) | {SHAPES: shapes}, rows


def new_shards(step: int, count: int) -> list[str]:
    """Returns new names for the shards of a step, relative to the run's folder."""
    folder = f"{SHARDS}/step-{step}-{secrets.token_hex(4)}"
    return [f"{folder}/{number}-of-{count}.pt" for number in range(count)]


def write_shard(path: Path, rows: dict[str, Tensor]) -> str:
    """Writes a shard, whole or not at all, and returns its SHA-256."""
    with writing(path) as file:
        digesting = DigestingFile(file)
        write_archive(rows, digesting)
    return digesting.sha256.hexdigest()


def unused_shards(run: Path) -> list[Path]:
    """Lists the folders of shards that no checkpoint names; none while a checkpoint's manifest cannot be read."""
    try:
        named = {(run / name).parent for path in run.glob("*.ckpt") for name in read_manifest(path).get(SHARDS, {})}
    except (InputError, OSError):
        return []
    return [folder for folder in sorted((run / SHARDS).glob("step-*")) if folder not in named]


def delete_unused_shards(run: Path) -> list[Path]:
    """Deletes the folders of unused_shards, and returns their paths. The caller must be the run's only writer."""
    unused = unused_shards(run)
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)  # another program may be reading a file, on a disk over a network
    return unused


# --- reading ---------------------------------------------------------------------------------------------------------


def rows_of(rows: int, number: int, count: int) -> range:
    """Returns which of so many rows the part of this number holds, of so many parts."""
    each = -(-rows // count)
    return range(min(number * each, rows), min((number + 1) * each, rows))


def put_rows(checkpoint: dict[str, Any], rows: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the state that take_rows has split, with these rows in their places."""
    state: dict[str, Any] = replace_tensors(checkpoint, lambda name, tensor: rows.get(name, tensor))
    state.pop(SHAPES)
    return state


@dataclass(frozen=True)
class Shards:
    """The shards of a checkpoint: {name: SHA-256} of the files, in order, and {name: shape} of the tensors."""

    checkpoint: Path
    digests: dict[str, str]
    shapes: dict[str, list[int]]

    @classmethod
    def find(cls, path: Path, digests: dict[str, str], shapes: Any) -> "Shards":
        """Checks that the files are there and large enough; InputError, which names the one that is not."""
        sizes = 0
        for name in digests:
            file = path.parent / name
            if not file.is_file():
                raise InputError(f"{file}: is missing, and {path} needs it; {REMEDY}")
            sizes += file.stat().st_size
        plain = isinstance(shapes, dict) and all(
            isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)
            for shape in shapes.values()
        )
        if not plain or sum(map(math.prod, shapes.values())) > sizes:
            raise InputError(f"{path}: does not describe its shards; {REMEDY}")
        return cls(path, digests, shapes)

    def read(
        self,
        number: int = 0,
        count: int = 1,
        parts: Collection[str] | None = None,
        done: Callable[[], object] = lambda: None,
    ) -> dict[str, Tensor]:
        """Returns, by dotted name, the rows that a process holds, of so many processes: of all, if it is alone.

        parts: only those tensors of the state; None takes all. Reads the files that hold such rows, whatever number of
        processes has written them, and verifies them; InputError if one is damaged. done: called after each file.
        """
        wanted = {
            name: rows_of(shape[0], number, count)
            for name, shape in self.shapes.items()
            if parts is None or name.partition(".")[0] in parts
        }
        whole: dict[str, Tensor] = {}
        for index, file in enumerate(self.digests):
            held = {name: rows_of(self.shapes[name][0], index, len(self.digests)) for name in wanted}
            common = {
                name: range(max(rows.start, held[name].start), min(rows.stop, held[name].stop))
                for name, rows in wanted.items()
            }
            common = {name: rows for name, rows in common.items() if rows}
            shard = self.read_file(index, file) if common else {}
            for name, rows in common.items():
                start, begin = wanted[name].start, held[name].start
                if name not in whole:
                    whole[name] = shard[name].new_empty((len(wanted[name]), *self.shapes[name][1:]))
                whole[name][rows.start - start : rows.stop - start] = shard[name][
                    rows.start - begin : rows.stop - begin
                ]
            done()
        return whole

    def read_file(self, index: int, name: str) -> dict[str, Tensor]:
        """Returns the rows in a shard, from the very bytes whose digest was verified."""
        path = self.checkpoint.parent / name
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.digests[name]:
                raise InputError(f"{path}: is damaged and does not match its digest in {self.checkpoint}; {REMEDY}")
            try:
                rows = read_archive(file)
            except Exception:  # arbitrary bytes raise anything
                rows = None
        shapes = {
            name: (len(rows_of(shape[0], index, len(self.digests))), *shape[1:]) for name, shape in self.shapes.items()
        }
        if not isinstance(rows, dict) or {name: tuple(row.shape) for name, row in named_tensors(rows)} != shapes:
            raise InputError(f"{path}: does not hold the rows that {self.checkpoint} names; {REMEDY}")
        return rows

    def verify(self) -> None:
        """Raises InputError, which names the file, unless every shard is what was saved, and finite."""
        for index, name in enumerate(self.digests):
            if bad := nonfinite_names(named_tensors(self.read_file(index, name))):
                raise InputError(
                    f"{self.checkpoint.parent / name}: is from a run that has diverged: {in_words(bad)}; use an"
                    " earlier checkpoint, which `lm fit --ckpt_path auto` finds by itself"
                )
