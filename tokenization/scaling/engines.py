"""The engines that run tasks: they place, repeat and show them. What a task gives does not depend on its engine.

Threads    one task after another in this process, each on several threads (the default)
Part       the same, for one part of the tasks: a SLURM array or an indexed job of Kubernetes has the others
Ray        on the cores of this machine or a cluster, repeated elsewhere where a worker is lost
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tokenization.errors import InputError
from tokenization.places import one_line

RETRIES = 3  # of a task whose worker is lost

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


@dataclass(frozen=True)
class Ray:
    """Runs the tasks on Ray, on the cores of this machine or of a cluster.

    address: of the cluster, ray://HOST:PORT. None is the one that RAY_ADDRESS names, or that runs on this machine, or
    else one of this machine alone, which lasts as long as this process. cores: that a task takes.
    """

    address: str | None = None
    cores: int = 1
    shows_tasks = True
    takes_all = True

    def map(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> Iterator[Result]:
        """Yields the results as they come.

        A task whose worker is lost runs again, up to RETRIES times. After an error, the other tasks are still done;
        then the first error is raised.
        """
        from tqdm import tqdm

        ray = self._connect()
        task = ray.remote(num_cpus=self.cores, max_retries=RETRIES)(attempt)
        shared = ray.put(function)
        waiting = {task.options(name=str(item)).remote(shared, item, os.getcwd()): item for item in items}
        errors: list[Exception] = []
        try:
            with tqdm(total=len(items), desc=title, unit="task", disable=None) as bar:
                while waiting:
                    for reference in ray.wait(list(waiting))[0]:
                        item = waiting.pop(reference)
                        try:
                            result = ray.get(reference)
                        except ray.exceptions.RayTaskError:  # a fault of ours
                            raise
                        except ray.exceptions.RayError as error:
                            result = lost(item, error)
                        bar.update()
                        if isinstance(result, Exception):
                            errors.append(result)
                        else:
                            yield result
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
        if errors:
            raise errors[0]

    def _connect(self) -> Any:
        """Returns the module ray, connected. Raises InputError where it is missing, or the cluster is."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray: needs Ray; install the extra `cluster`: pip install '.[cluster]'") from None
        if not ray.is_initialized():
            try:
                ray.init(self.address, logging_level=logging.ERROR, log_to_driver=False)
            except Exception as error:  # of many classes
                place = self.address or os.environ.get("RAY_ADDRESS") or "a cluster on this machine"
                raise InputError(f"--engine ray: cannot connect to {place} ({one_line(error)})") from None
        return ray


def attempt(function: Callable[[Item], Result], item: Item, folder: str) -> Result | Exception:
    """Runs a task in a worker, and returns its error, if it is one for the user, without the worker's trace.

    folder: the command's current one, which its relative paths begin at; where the worker's host lacks it, they fail.
    """
    with suppress(OSError):
        os.chdir(folder)
    try:
        return function(item)
    except (InputError, OSError) as error:
        return error


def lost(item: object, error: Exception) -> InputError:
    """Returns the error for a task whose workers were lost too often."""
    reason = one_line(error).partition(". ")[0]
    return InputError(
        f"{item}: its worker was lost {RETRIES + 1} times ({type(error).__name__}: {reason}); all other tasks are done,"
        " and the same command continues with this one"
    )


def choose_engine(engine: str, part: str | None, cores: int | None = None) -> Engine:
    """Returns the engine that --engine and --part name. cores: of a task. Raises InputError for none that there is."""
    if part is not None:
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
        if not match or not int(match[1]) < int(match[2]):
            raise InputError(f"--part {part}: must be I/N with I from 0 to N-1; 0/8 is the first of eight")
        return Part(int(match[1]), int(match[2]))
    if engine == "threads":
        return Threads()
    if engine == "ray" or re.fullmatch(r"ray://[^/:]+:\d+", engine):
        return Ray(None if engine == "ray" else engine, cores or 1)
    raise InputError(f"--engine {engine}: no such engine; there are threads, ray, and ray://HOST:PORT")
