"""Reads the runs of a report, and puts into words what they have reached, where they ran, and how they differ.

    results         last and best losses, tokens, time, speed          from the event files (events.py)
    origin          dates, machine and code                            as each start of the run recorded them
    differences     the settings in which the runs differ              from each config.yaml

report_page.py makes a page of it.
"""

import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.durations import format_duration
from lm.experiments.figures import last_since, mean
from lm.runs.events import EVENT_FILES, Curve, Curves, read_curves
from lm.runs.folder import CONFIG, DIVERGED
from lm.training.config_files import read
from tokenization import InputError

HIDDEN = {"trainer.default_root_dir", "ckpt_path", "config"}  # they always differ


@dataclass
class Run:
    """A run as a report shows it: its curves and its settings."""

    name: str
    folder: Path
    curves: Curves
    settings: dict[str, Any]  # by dotted names
    config: str  # config.yaml as it is

    @property
    def end(self) -> tuple[int, float]:
        """The step and the seconds, without pauses, of the last point; (0, 0.0) if there is none."""
        return max(((curve.steps[-1], curve.seconds[-1]) for curve in self.curves.values()), default=(0, 0.0))

    @property
    def files(self) -> list[Path]:
        """What is read of the run."""
        return [self.folder / CONFIG, *self.folder.glob(EVENT_FILES)]

    def values(self, tag: str) -> list[Any]:
        return self.curves.get(tag, Curve()).values


# --- reading ---------------------------------------------------------------------------------------------------------


def find_runs(paths: list[Path]) -> list[Run]:
    """Reads the runs that the paths name; a folder of runs, such as a sweep's or a race's, stands for all of them."""
    folders = list({folder.resolve(): folder for path in paths for folder in run_folders(path)}.values())
    places = [folder.resolve() for folder in folders]
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        root = os.path.commonpath([place.parent for place in places])
        names = [str(place.relative_to(root)) for place in places]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def run_folders(path: Path) -> list[Path]:
    """Returns the folders of the runs that a path stands for: itself, those in it, or those of a race's contestants."""
    for pattern in (EVENT_FILES, f"*/{EVENT_FILES}", f"*/*/{EVENT_FILES}"):
        if found := {file.parent for file in path.glob(pattern)}:
            return sorted(found, key=lambda folder: (by_number(folder.parent), by_number(folder)))
    return [path]


def by_number(folder: Path) -> list[Any]:
    """Returns a sort key that compares numbers in folders' names as numbers: 8 comes before 16."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)", folder.name)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def read_run(folder: Path, name: str) -> Run:
    curves, path = read_curves(folder), folder / CONFIG
    content = (read(path) or {}) if path.is_file() else {}
    config = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a configuration that `lm fit` wrote; correct it, or move it away")
    return Run(name, folder, curves, dict(flatten(content)), config)


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings under dotted names: {"model": {"d_model": 64}} -> ("model.d_model", 64)."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(runs: list[Run]) -> list[tuple[str, list[Any]]]:
    """Lists each setting in which the runs differ, with its value in each; "-" if a run does not have it.

    Lists, such as those of callbacks, which are long, come last.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, [run.settings.get(name, "-") for run in runs]) for name in names if name not in HIDDEN]
    rows.sort(key=lambda row: any(isinstance(value, list) for value in row[1]))
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


# --- in words --------------------------------------------------------------------------------------------------------


def best(run: Run) -> str:
    """Returns the lowest validation loss on the present text and its step, in words."""
    curve, since = run.curves.get("val/loss", Curve()), last_since(run.curves)
    points = [(loss, step) for loss, step in zip(curve.values, curve.steps, strict=True) if math.isfinite(loss)]
    points = [point for point in points if point[1] > since]
    return "{:.4f} at {:,}".format(*min(points)) if points else "-"


def results(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Returns the columns of the table of results for which at least one run has a figure."""

    def figure(run: Run, tag: str, of: Callable[[list[float]], float], form: str) -> str:
        values = run.values(tag) if of in (last, end) else list(filter(math.isfinite, run.values(tag)))
        return format(of(values), form) if values else "-"

    def last(values: list[float]) -> float:
        return values[-1]

    def end(values: list[float]) -> float:
        return mean(values[-10:])

    figures: list[tuple[str, str, Callable[..., float], str]] = [
        ("validation loss, nats per token", "val/loss", last, ".4f"),
        ("bits per byte", "val/bits_per_byte", last, ".4f"),
        ("training loss, mean of the last 10", "train/loss", end, ".4f"),
        ("tokens", "train/tokens_seen", last, ",.0f"),
        ("passes over the text", "train/passes", last, ",.2f"),
        ("tokens/s, median", "train/tokens_per_second", statistics.median, ",.0f"),
        ("MFU, median", "train/mfu", statistics.median, ".1%"),
        ("peak memory, GB", "train/peak_memory_gb", max, ",.2f"),
        ("skipped steps", "train/skipped_steps", last, ",.0f"),
    ]
    columns = [(title, [figure(run, tag, of, form) for run in runs]) for title, tag, of, form in figures]
    columns[0][1][:] = [
        "diverged" if (run.folder / DIVERGED).exists() else cell for run, cell in zip(runs, columns[0][1], strict=True)
    ]
    columns.insert(1, ("lowest validation loss, at step", [best(run) for run in runs]))
    columns.insert(4, ("steps", [f"{run.end[0]:,}" for run in runs]))
    columns.insert(5, ("time without pauses", [format_duration(run.end[1]) for run in runs]))
    return [(title, cells) for title, cells in columns if any(cell != "-" for cell in cells)]


def origin(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Returns the columns that say when, on which machine and by which code; an older run has recorded only when."""

    def when(seconds: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"

    def each(values: list[str]) -> str:
        return "; ".join(dict.fromkeys(filter(None, values))) or "-"

    columns = [
        ("began", [when(run.curves.began) for run in runs]),
        ("last logged", [when(run.curves.ended) for run in runs]),
        ("machine", [each([start.machine for start in run.curves.starts]) for run in runs]),
        ("code", [each([start.code for start in run.curves.starts]) for run in runs]),
    ]
    return [(title, cells) for title, cells in columns if any(cell != "-" for cell in cells)]
