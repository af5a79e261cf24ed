"""The engines that run tasks: they place, repeat and show them. A task's result does not depend on its engine.

Threads    one task after another in this process, each on several threads (the default)
Part       the same, for one part of the tasks: a SLURM array or an indexed job of Kubernetes has the others
Ray        on the cores of this machine or of a cluster (ray_engine.py)
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tokenization.errors import InputError
from tokenization.scaling.ray_engine import Ray

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """What runs tasks."""

    shows_tasks: bool  # as one progress bar; otherwise each task shows its own
    takes_all: bool  # and not only a part of the tasks

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Yields function(item) for each item, in any order. title: of the progress bar.

        Raises what a task raises. The tasks that are done by then stay done.
        """
        ...


@dataclass(frozen=True)
class Threads:
    """Runs the tasks one after another in this process."""

    shows_tasks = False
    takes_all = True

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Yields the results in order."""
        return map(function, items)


@dataclass(frozen=True)
class Part:
    """Runs every `count`-th task, beginning with `number`, which counts from 0."""

    number: int
    count: int
    shows_tasks = False
    takes_all = False

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Yields the results of this part, in order."""
        return map(function, items[self.number :: self.count])


def choose_engine(engine: str, part: str | None, cores: int | None = None) -> Engine:
    """Returns the engine that --engine and --part name. cores: of a task. Raises InputError for none that there is."""
    if part is not None:
        match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", part)
        if not match or not int(match[1]) < int(match[2]):
            raise InputError(f"--part {part}: must be I/N with I from 0 to N-1; 0/8 is the first of eight")
        return Part(int(match[1]), int(match[2]))
    if engine == "threads":
        return Threads()
    if engine == "ray" or re.fullmatch("ray://[^/:]+:[0-9]+", engine):
        return Ray(None if engine == "ray" else engine, cores or 1)
    raise InputError(f"--engine {engine}: no such engine; there are threads, ray, and ray://HOST:PORT")
