"""The ledger of a race: ledger.jsonl in its folder, a line of JSON for each run that has ended.

A line is added whole: the file is replaced by one that has it (tokenization/files.py). A line that is not whole, as an
interrupted copy may leave it, counts as a run that has not ended. A run that is repeated has its last line.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lm.strict_json import to_json
from tokenization import InputError
from tokenization.files import writing

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: a run that has ended."""

    contestant: str
    seed: int
    settings: str  # the digest of the contestant's settings, without the seed
    steps: int
    tokens: int
    loss: float | None  # validation loss of the last step, nats per token; None if the run has diverged
    best_loss: float | None
    bits_per_byte: float | None  # of the last step
    diverged: bool
    wall_seconds: float  # of training, without pauses
    cpu_seconds: float | None  # of the whole process and its compilers; None if it diverged before it could be told
    starts: int  # more than 1 if it was interrupted; each start costs processor seconds
    others_before: float | None  # cores that other programs took just before it; None if unknown
    others_during: float | None  # on average while it ran
    machine: str
    code: str
    date: str  # at its end: 2026-01-31T12:00:00+00:00


def read_ledger(folder: Path) -> tuple[dict[tuple[str, int], Entry], list[str]]:
    """Returns the entries by contestant and seed, and a line on each damaged line; nothing if there is no ledger."""
    path, entries, damage = folder / LEDGER, dict[tuple[str, int], Entry](), []
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = _entry(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            damage.append(f"{path}: line {number} is damaged; its run counts as not finished")
        else:
            entries[entry.contestant, entry.seed] = entry
    return entries, damage


def _entry(content: Any) -> Entry:
    """Returns the entry that a line holds; ValueError, TypeError or KeyError if it holds none."""
    entry = Entry(**{field.name: content[field.name] for field in fields(Entry)})
    numbers = (entry.seed, entry.steps, entry.tokens, entry.wall_seconds, entry.starts)
    losses = () if entry.diverged else (entry.loss, entry.bits_per_byte)
    others = (entry.best_loss, entry.cpu_seconds, entry.others_before, entry.others_during)
    optional = [value for value in others if value is not None]
    words = (entry.contestant, entry.settings, entry.machine, entry.code, entry.date)
    if not all(map(_is_number, (*numbers, *losses, *optional))) or not isinstance(entry.diverged, bool):
        raise ValueError
    if not all(isinstance(word, str) for word in words):
        raise ValueError
    "".join(words).encode()  # UnicodeEncodeError, a ValueError, for what no file can hold
    return entry


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_ledger(path: Path) -> bool:
    """Returns whether a file begins as a ledger does; an empty one counts."""
    start = b'{"contestant"'
    with open(path, "rb") as file:
        return start.startswith(file.read(len(start)))


def append(folder: Path, entry: Entry) -> None:
    """Adds a line to the ledger; whatever it holds stays."""
    path = folder / LEDGER
    before = path.read_bytes() if path.is_file() else b""
    if len(before) and not before.endswith(b"\n"):
        before += b"\n"  # after a line that was cut
    try:
        with writing(path) as file:
            file.write(before + to_json(asdict(entry)).encode() + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); the same command resumes") from None
