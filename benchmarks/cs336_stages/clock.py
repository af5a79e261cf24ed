"""Seconds of the processor, by phase, of work that is repeated until they mean something."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class Clock:
    """Adds up the processor's seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[phase] += time.process_time() - start


def repeat(work: Callable[[Clock], Result], enough: float) -> tuple[Result, dict[str, float]]:
    """Returns what a work gives, and its mean seconds by phase over as many runs as take `enough` seconds together."""
    clock, runs = Clock(), 0
    while not runs or sum(clock.seconds.values()) < enough:
        result, runs = work(clock), runs + 1
    return result, {phase: seconds / runs for phase, seconds in clock.seconds.items()}
