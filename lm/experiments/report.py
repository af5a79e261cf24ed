"""Writes a report on one run, or on several compared, as one HTML page that needs no network and no other file.

    results         last and best losses, tokens, time, speed          from the event files (events.py)
    settings        those in which the runs differ                     from each config.yaml
    curves          against steps, tokens and time                     drawn by figures.py, inlined as SVG
    samples         the last of each run

Whatever comes from a run (samples, names, settings) is escaped, so that no browser reads it as HTML.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lm.durations import format_duration
from lm.experiments.figures import draw_curves, mean
from lm.runs.events import EVENT_FILES, Curve, Curves, read_curves
from lm.runs.folder import CONFIG, DIVERGED
from lm.training.config_files import read
from tokenization import InputError
from tokenization.plots import HOW_TO_GET_PLOTS, can_draw, curve_colour

SAMPLE = "sample/text_summary"
HIDDEN = {"trainer.default_root_dir", "ckpt_path", "config"}  # they always differ
GENERATOR = '<meta name="generator" content="lm report">'
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px; margin: 2em auto;
  padding: 0 1.5em }
h1 { font-size: 1.5em; overflow-wrap: anywhere }
h2 { font-size: 1.15em; margin: 2em 0 .6em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #eee }
td { white-space: nowrap }
th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
thead th { border-bottom: 1px solid #999; font-weight: 600 }
.scroll { overflow-x: auto }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 1em }
.curves img { width: 100% }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .5em }
.keys > span { margin-right: 1.5em; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f7f5; padding: .8em 1em; font: 14px/1.5 serif }
pre.code { font: 12px/1.45 monospace }
.note { color: #777; font-size: .88em }
"""


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

    def values(self, tag: str) -> list[Any]:
        return self.curves.get(tag, Curve()).values


# --- reading ---------------------------------------------------------------------------------------------------------


def find_runs(paths: list[Path]) -> list[Run]:
    """Reads the runs that the paths name; a folder of runs, such as a sweep's, stands for all runs in it."""
    folders: list[Path] = []
    for path in paths:
        inner = (
            []
            if any(path.glob(EVENT_FILES))
            else sorted({file.parent for file in path.glob(f"*/{EVENT_FILES}")}, key=by_number)
        )
        folders += [folder for folder in inner or [path] if folder not in folders]
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return [read_run(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]


def by_number(folder: Path) -> list[Any]:
    """Returns a sort key that compares numbers in folders' names as numbers: 8 comes before 16."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", folder.name)
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
    """Lists each setting in which the runs differ, with its value in each; "-" if a run does not have it."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, [run.settings.get(name, "-") for run in runs]) for name in names if name not in HIDDEN]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


# --- writing ---------------------------------------------------------------------------------------------------------


def best(run: Run) -> str:
    """Returns the lowest validation loss and its step, in words."""
    curve = run.curves.get("val/loss", Curve())
    points = [point for point in zip(curve.values, curve.steps, strict=True) if math.isfinite(point[0])]
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
        ("validation loss, last", "val/loss", last, ".4f"),
        ("bits per byte, last", "val/bits_per_byte", last, ".4f"),
        ("training loss, last 10 logged", "train/loss", end, ".4f"),
        ("tokens", "train/tokens_seen", last, ",.0f"),
        ("tokens/s, median", "train/tokens_per_second", statistics.median, ",.0f"),
        ("MFU, median", "train/mfu", statistics.median, ".1%"),
        ("skipped steps", "train/skipped_steps", last, ",.0f"),
        *((f"{tag}, highest", tag, max, ",.4g") for tag in memory_tags(runs)),
    ]
    columns = [(title, [figure(run, tag, of, form) for run in runs]) for title, tag, of, form in figures]
    columns[0][1][:] = [
        "diverged" if (run.folder / DIVERGED).exists() else cell for run, cell in zip(runs, columns[0][1], strict=True)
    ]
    columns.insert(1, ("best, at step", [best(run) for run in runs]))
    columns.insert(4, ("steps", [f"{run.end[0]:,}" for run in runs]))
    columns.insert(5, ("time without pauses", [format_duration(run.end[1]) for run in runs]))
    return [(title, cells) for title, cells in columns if any(cell != "-" for cell in cells)]


def memory_tags(runs: list[Run]) -> list[str]:
    return sorted({tag for run in runs for tag in run.curves if "memory" in tag})


def table(runs: list[Run], columns: list[tuple[str, list[Any]]]) -> Iterator[str]:
    """Yields the lines of an HTML table with a row for each run, so that many runs fit."""
    titles = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    yield f'<div class="scroll"><table><thead><tr><th></th>{titles}</tr></thead><tbody>'
    for place, run in enumerate(runs):
        cells = "".join(f"<td>{escape(str(column[place]))}</td>" for _, column in columns)
        yield f"<tr><td>{key(place)}{escape(run.name)}</td>{cells}</tr>"
    yield "</tbody></table></div>"


def page(runs: list[Run]) -> str:
    """Returns the whole report as HTML."""
    names = f"{len(runs)} runs" if len(runs) > 4 else ", ".join(run.name for run in runs)
    parts = [f"<h1>{escape(names)}</h1>", "<h2>Results</h2>", *table(runs, results(runs))]
    parts += [f'<p class="note">{escape(line)}</p>' for line in damage(runs)]
    if len(runs) > 1:
        rows = differences(runs)
        parts += ["<h2>Settings in which they differ</h2>", *(table(runs, rows) if rows else ["<p>none</p>"])]
    parts += ["<h2>Curves</h2>"]
    if can_draw():
        names_in_colour = (f"<span>{key(place)}{escape(run.name)}</span>" for place, run in enumerate(runs))
        parts += ['<p class="keys">', *names_in_colour, "</p>"]
        images = draw_curves([run.curves for run in runs], memory_tags(runs))
        parts += ['<div class="curves">', *(f'<img alt="{escape(title)}" src="{image}">' for title, image in images)]
        parts += ["</div>", '<p class="note">Training losses are drawn pale, and dark as means of neighbours.</p>']
    else:
        parts += [f"<p>{escape(HOW_TO_GET_PLOTS)}</p>"]
    parts += ["<h2>The last sample</h2>", *(part for run in runs for part in sample(run))]
    parts += ["<h2>Configuration</h2>"]
    for run in runs:
        parts += [f"<details><summary>{escape(str(run.folder))}</summary>"]
        parts += [f'<pre class="code">{escape(run.config or "no config.yaml")}</pre></details>']
    head = f'<meta charset="utf-8">{GENERATOR}<title>{escape(names)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def is_report(path: Path) -> bool:
    """Whether the file is a report that `lm report` wrote."""
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(1000)


def damage(runs: list[Run]) -> list[str]:
    return [line for run in runs for line in run.curves.damage]


def key(place: int) -> str:
    return f'<span class="key" style="background: {curve_colour(place)}"></span>'


def sample(run: Run) -> Iterator[str]:
    texts = run.curves.get(SAMPLE)
    if texts is None:
        yield f'<p class="note">{escape(run.name)}: none</p>'
        return
    yield f'<p class="note">{escape(run.name)}, step {texts.steps[-1]:,}</p><pre>{escape(texts.values[-1])}</pre>'
