"""Measures how much of the processor other programs take, from Linux's /proc; other systems do not tell.

    taken = (busy time of our cores - processor time of us and our children) / seconds        in cores

Training with more threads than free cores loses more than its share: the threads wait for each other at every matrix
product. How they wait is waiting.py's.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tokenization.systems import available_cores, own_cores, ticks_per_second

BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal: the columns of /proc/stat that are not idle
MANY, FEW = 0.3, 0.15  # cores missing; between the two, the last answer holds
SHORTEST = 0.3  # seconds; the clocks of /proc tick a hundred times a second
LOOK_EVERY = 5.0  # seconds between looks during a run: each reads every process of the machine


class OtherPrograms:
    """Watches, from one look to the next, whether other programs take cores that our threads need."""

    def __init__(self, threads: int, proc: str | os.PathLike[str] = "/proc"):
        """threads: how many of ours want a core each."""
        self.threads, self.proc = threads, Path(proc)
        self.taken, self.in_the_way, self.changed = 0.0, False, False
        self._begin()

    def _begin(self) -> None:
        self.start, self.ran, self.own = time.perf_counter(), ran_on_our_cores(self.proc), ran_ourselves(self.proc)

    def look(self, after: float = SHORTEST) -> bool:
        """Measures again, unless fewer seconds than these have passed, and returns whether it has."""
        start, ran, own = self.start, self.ran, self.own
        if time.perf_counter() - start < after:
            return False
        self._begin()
        if ran is None or own is None or self.ran is None or self.own is None:
            return False
        self.taken = max(0.0, (self.ran - ran - (self.own - own)) / (self.start - start))
        missing = self.taken - (available_cores() - self.threads)
        before, self.in_the_way = self.in_the_way, missing > (FEW if self.in_the_way else MANY)
        self.changed = self.in_the_way != before
        return True

    def __str__(self) -> str:
        if not self.in_the_way:
            return "other programs no longer slow this run down"
        cores = available_cores()
        words = f"other programs take {self.taken:.1f} of {cores} cores and slow this run down"
        left = max(1, cores - round(self.taken))
        return words if left >= self.threads else f"{words}; a small model may be faster with OMP_NUM_THREADS={left}"


class Load:
    """How many cores other programs took, on average; None until it has been measured, and where nothing tells."""

    cores: float | None = None


@contextlib.contextmanager
def load_of_others(proc: Path = Path("/proc")) -> Iterator[Load]:
    """Measures the load of other programs on our cores while the block runs."""
    load, start, ran, own = Load(), time.perf_counter(), ran_on_our_cores(proc), ran_ourselves(proc)
    yield load
    seconds, ran_then, own_then = time.perf_counter() - start, ran_on_our_cores(proc), ran_ourselves(proc)
    if None not in (ran, own, ran_then, own_then) and seconds >= SHORTEST:
        load.cores = round(max(0.0, (ran_then - ran - (own_then - own)) / seconds), 2)  # type: ignore[operator]


@contextlib.contextmanager
def watching_others() -> Iterator[None]:
    """Watches other programs while the block imports torch; torch's threads then wait as these demand."""
    others = OtherPrograms(threads=available_cores())
    yield
    if "torch" in sys.modules and others.look():
        from lm.machine.resources import use_granted_cores
        from lm.machine.waiting import wait_briefly

        use_granted_cores()  # the number of threads decides how wait_briefly does it
        wait_briefly(others.in_the_way)


def ran_on_our_cores(proc: Path) -> float | None:
    """Returns the busy seconds of the cores that we may use, whoever used them; None if unknown."""
    try:
        names = {f"cpu{number}" for number in own_cores() or ()}
        lines = [line.split() for line in (proc / "stat").read_text(encoding="utf-8").splitlines()]
        ticks = [int(line[1 + column]) for line in lines if line[0] in names for column in BUSY]
        return sum(ticks) / ticks_per_second() if ticks else None
    except (OSError, ValueError, IndexError):
        return None


def ran_ourselves(proc: Path) -> float | None:
    """Returns the processor seconds of this process and its descendants, living and dead; None if unknown."""
    parents, seconds = {}, {}
    try:
        for path in proc.glob("[0-9]*/stat"):
            fields = read_stat(path)
            if fields:
                parents[int(path.parent.name)] = int(fields[1])
                seconds[int(path.parent.name)] = sum(map(int, fields[11:15])) / ticks_per_second()
    except (OSError, ValueError, IndexError):
        return None
    ours = {os.getpid() if "LOCAL_WORLD_SIZE" not in os.environ else os.getppid()}  # torchrun started our siblings
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(seconds.get(pid, 0.0) for pid in ours)


def read_stat(path: Path) -> list[str]:
    """Returns the fields of a stat file from the state on; the name before may hold spaces. Empty if it has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
