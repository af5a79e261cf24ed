"""Kernels of this package: how they are compiled and cached, and how a team of threads divides the work of one.

    @compiled(__file__)
    def double(task: int) -> None:
        x = load64(task + FIELDS)
        first, behind = portion(task)
        ...                                  # the numbers from the first to before the one behind

    run(double, len(x), x)

A task is an array of int64: two C functions, the number of units that the team divides, and the kernel's own fields.
"""

import functools
import struct
from array import array
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from llvmlite import ir  # type: ignore[import-untyped]
from torch import Tensor

from lm.machine import lanes
from lm.machine.lanes import LANES
from lm.machine.teams import Team
from tokenization.native.compiling import Kernel, cache_folder
from tokenization.native.instructions import instruction, load64

THREAD_NUMBER, NUM_THREADS, UNITS, FIELDS = range(0, 32, 8)  # where a task has them, in bytes; FIELDS: the first one
SMALL = 1 << 14  # numbers: as long as it takes to wake the other threads

Function = TypeVar("Function", bound=Callable[..., Any])


class CachedKernel(Kernel):
    """A kernel outside of the tokenizer; its machine code is cached by a digest of its sources.

    sources: the files that define the kernel and what it calls, but for this one and lanes.py. Where one of them has
    changed since it was imported, nothing is cached: what is compiled is partly of the one text, partly of the other.
    """

    def __init__(self, function: Callable[..., Any], *sources: str) -> None:
        super().__init__(function)
        self.sources = (__file__, lanes.__file__, *sources)
        self.imported = [_digest_at_import(source) for source in self.sources]

    def _cached(self) -> Path | None:
        folder, now = cache_folder(), [_digest(source) for source in self.sources]
        name = f"{self.source.name}-{sha256(b''.join(now)).hexdigest()[:16]}.o"
        return Path(folder, name) if folder and now == self.imported else None


def _digest(source: str) -> bytes:
    return sha256(Path(source).read_bytes()).digest()


_digest_at_import = functools.cache(_digest)


def compiled(*sources: str) -> Callable[[Function], Function]:
    """Marks a function to be compiled at its first call. sources: as CachedKernel's."""

    def mark(function: Function) -> Function:
        return cast(Function, CachedKernel(function, *sources))

    return mark


@instruction
def call_function(builder: Any, address: Any) -> Any:
    """Calls a C function without arguments that returns an int."""
    kind = ir.FunctionType(lanes.INT, []).as_pointer()
    return builder.sext(builder.call(builder.inttoptr(address, kind), []), lanes.LONG)


@compiled()
def thread_of(task: int) -> tuple[int, int]:
    """Returns the number of this thread, and how many there are."""
    if load64(task + NUM_THREADS) == 0:
        return 0, 1
    return call_function(load64(task + THREAD_NUMBER)), call_function(load64(task + NUM_THREADS))


@compiled()
def portion(task: int) -> tuple[int, int]:
    """Returns the first of this thread's units, and the one behind its last."""
    thread, threads = thread_of(task)
    units = load64(task + UNITS)
    return units * thread // threads, units * (thread + 1) // threads


@compiled()
def share_of(length: int, thread: int, threads: int) -> tuple[int, int]:
    """Returns the first of a thread's numbers in an array, in whole vectors, and the one behind its last."""
    if thread == threads - 1:
        return length * thread // threads & -LANES, length
    return length * thread // threads & -LANES, length * (thread + 1) // threads & -LANES


@functools.cache
def _team(size: int) -> Team:
    return Team()


def team_size() -> int:
    """Returns how many threads a kernel has."""
    return _team(torch.get_num_threads()).size


def run(kernel: Callable[[int], None], units: int, *fields: int | float | Tensor, small: bool = False) -> None:
    """Runs a kernel, whose threads divide the units. small: in this thread alone, as others would come too late."""
    team = _team(torch.get_num_threads())
    threads = (0, 0) if small else (team.thread_number, team.num_threads)
    task = array("q", (*threads, units, *map(as_int, fields)))
    address, _ = task.buffer_info()
    if small:
        kernel(address)
    else:
        team.run(kernel, address)


def as_int(value: int | float | Tensor) -> int:
    """Returns a field as a kernel reads it: a number, the bits of a float32, or an address."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return int.from_bytes(struct.pack("<f", value), "little") if isinstance(value, float) else value
