"""Ray as an engine: tasks on the cores of this machine or of a cluster, repeated elsewhere where a worker is lost.

Only Ray's tasks are used. Whether a cluster answers is found out by a socket before Ray is asked to connect, because
Ray tries for a quarter of an hour where none does.
"""

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenization.errors import InputError
from tokenization.text.places import one_line

RETRIES = 3  # of a task whose worker is lost
ANSWER_SECONDS = 10  # until a cluster's host must have answered
QUICK = {  # Ray's settings for a command that connects to a cluster
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 seconds each
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5",  # three times, for ray://
}

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        then the first error is raised. After Ctrl-C, Ray is shut down, and with it the tasks that are not done.
        """
        from tqdm import tqdm

        ray = connect(self.address)
        errors: list[Exception] = []
        try:
            task = ray.remote(num_cpus=self.cores, max_retries=RETRIES)(attempt)
            shared = ray.put(function)
            waiting = {task.options(name=str(item)).remote(shared, item, os.getcwd()): item for item in items}
            with tqdm(total=len(items), desc=title, unit="task", disable=None) as bar:
                while waiting:
                    for reference in ray.wait(list(waiting))[0]:
                        result = outcome(ray, reference, waiting.pop(reference))
                        bar.update()
                        if isinstance(result, Exception):
                            errors.append(result)
                        else:
                            yield result
        except BaseException:
            ray.shutdown()  # ray.cancel aborts this process where a task ends at the same moment
            raise
        if errors:
            raise errors[0]


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


def outcome(ray: Any, reference: Any, item: object) -> Any:
    """Returns what a task that has ended gave: its result, or an error for the user.

    Raises InputError where the worker cannot read the task, as it then can read none, and what is a fault of ours.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error, ray.exceptions.RaySystemError):
            raise
        reason = one_line(error.cause).partition(" traceback: ")[0]
        raise InputError(
            f"--engine ray: a worker cannot read its task ({reason}); every machine of the cluster needs this package,"
            " in the same version"
        ) from None
    except ray.exceptions.RayError as error:
        reason = one_line(error).partition(". ")[0]
        return InputError(
            f"{item}: its worker was lost {RETRIES + 1} times ({type(error).__name__}: {reason}); all other tasks are"
            " done, and the same command continues with this one"
        )


# --- the cluster -----------------------------------------------------------------------------------------------------


def connect(address: str | None) -> Any:
    """Returns the module ray, connected to a cluster. Raises InputError where Ray is missing, or the cluster is."""
    place, named_by = find_cluster(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if place:  # read when Ray is imported
        for name, value in QUICK.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: needs Ray; install the extra `cluster`: pip install '.[cluster]'") from None
    if ray.is_initialized():
        return ray
    if place:
        check_answer(place, named_by)
    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # of many classes
        named = f"{place}, named by {named_by}" if place else os.environ.get("RAY_ADDRESS") or "this machine"
        hint = "; a cluster's own port is 6379, and 10001 for ray://, unless it was started with others"
        raise InputError(f"--engine ray: cannot use {named} ({one_line(error)}){hint if place else ''}") from None
    return ray


def find_cluster(address: str | None) -> tuple[str, str]:
    """Returns the HOST:PORT that Ray will connect to, and what names it; "" where Ray starts a cluster or seeks one.

    address: of --engine, or None.
    """
    named_by = "--engine" if address else "RAY_ADDRESS"
    name = address or os.environ.get("RAY_ADDRESS", "")
    if name in ("", "auto"):
        note = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
        with suppress(OSError):  # `ray start` has written it, and `ray stop` deletes it
            return note.read_text(encoding="utf-8").strip(), str(note)
        return "", ""
    scheme, _, place = name.rpartition("://")
    return (place, named_by) if scheme in ("", "ray") and name != "local" else ("", "")


def check_answer(place: str, named_by: str) -> None:
    """Raises InputError where nothing listens at HOST:PORT. named_by: what names it."""
    host, _, port = place.rpartition(":")
    try:
        if not (host and re.fullmatch("[0-9]{1,5}", port)):
            raise OSError("is not HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, UnicodeError, OverflowError) as error:  # a name that none can be, a port that none can be
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"--engine ray: no cluster answers at {place}, named by {named_by} ({reason}); start it, or set RAY_ADDRESS"
            " to another one's HOST:PORT, or to `local` for this machine alone"
        ) from None
