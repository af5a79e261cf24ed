"""Guards a run's folder, which is self-contained and has one writer at a time:

    config.yaml     the whole configuration
    tokenizer/      a copy of the tokenizer
    events.*        TensorBoard's curves
    last.ckpt       the newest state, to resume from
    best.ckpt       the state of the lowest validation loss
    step-N.ckpt     states kept on request
    shards/         the tensors of sharded checkpoints (shards.py)
    diverged.json   how a run of `lm sweep` or `lm race` diverged

While a run writes to it, its .lock names the process and the host (lock.py). This file refuses other commands' outputs
under a run's own names, and deletes what a killed run left half-written. It imports neither torch nor Lightning, so
that a command can read a folder without them.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenization import InputError
from tokenization.files import is_being_written

LAST, BEST, SHARDS, TOKENIZER, CONFIG = "last.ckpt", "best.ckpt", "shards", "tokenizer", "config.yaml"
DIVERGED, LOCK = "diverged.json", ".lock"
OWN_FILES = ("*.ckpt", "events.*", CONFIG, TOKENIZER, SHARDS, LOCK, DIVERGED)


def kept_name(step: int, every: int | None) -> str | None:
    """Returns the name under which this step's state is kept for good; None if it is not one of every so many."""
    return f"step-{step}.ckpt" if every is not None and step % every == 0 else None


def refuse_names_of_runs(outputs: Iterable[Path], runs: Iterable[Path], patterns: Sequence[str] = OWN_FILES) -> None:
    """Raises InputError for an output in a run's folder under a name that the run uses itself, or below such a one."""
    for path, run in itertools.product(outputs, runs):
        place = path.resolve()
        if not place.is_relative_to(run.resolve()):
            continue
        name = Path(*place.relative_to(run.resolve()).parts[:1])
        if any(name.match(pattern) for pattern in patterns):
            raise InputError(f"{path}: would be taken for the run's own {name}; choose another name")


def delete_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Deletes what killed runs left half-written, and returns the paths. The caller must hold the run's lock.

    What another command is writing beside the run, as `lm consolidate` does, stays.
    """
    folder = Path(folder)
    found = [*folder.glob(".*.ckpt.*.tmp"), *folder.glob(f"{TOKENIZER}/.*.tmp")]
    leftovers = [path for path in found if not is_being_written(path)]
    for path in leftovers:
        path.unlink()
    return leftovers
