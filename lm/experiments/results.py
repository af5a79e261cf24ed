"""Collects the results of a sweep: sweep.json, sweep.csv, a table, a plot, and the edge of stability.

A run below the edge trains, and one beyond it diverges (Cohen et al. 2021); the best learning rate is often just below.
The edge lies between the highest value that trained and the lowest that diverged, and is known no better than that.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.experiments.figures import SWEEP_PLOT, draw_sweep, mean
from lm.runs.events import Curve, Curves, read_curves
from lm.runs.folder import DIVERGED
from lm.strict_json import to_json
from tokenization import InputError
from tokenization.files import write_text
from tokenization.outputs import check_file, check_folder

COLUMNS = (
    "value",
    "validation_loss",
    "best_validation_loss",
    "train_loss",
    "diverged",
    "steps",
    "seconds",
    "tokens_per_second",
    "folder",
)
TABLE = "sweep.csv"
INTERVAL = "trainer.val_check_interval"
DIGEST = "the digest of "  # and a path: how the digests of data are named among the settings
RISE = 1.25  # a loss of one batch may be off by less
Row = dict[str, Any]


def check_results(folder: Path, inputs: list[Path], kinds: Mapping[str, Callable[[Path], bool]]) -> None:
    """Raises InputError if the results would replace anything but earlier results.

    kinds: for each result's file name, a function that says whether an existing file is such a result.
    """
    check_folder(folder)
    for name, is_kind in kinds.items():
        check_file(folder / name, inputs, f"a {name} of `lm`", is_kind)


def begins_with(columns: Sequence[str]) -> Callable[[Path], bool]:
    """Returns a function that says whether a file is a CSV table with these columns."""

    def is_table(path: Path) -> bool:
        with open(path, "rb") as file:
            return file.readline(1000).decode(errors="replace").split() == [",".join(columns)]

    return is_table


def summarise(value: Any, folder: Path, curves: Curves) -> Row:
    """Returns a run's row of the table.

    validation_loss is the last step's and train_loss the mean of the last ten logged, both in nats per token;
    tokens_per_second is the median. A run has diverged if it was cut short, if its validation loss is not finite, or
    if its training loss ends far above the first one logged.
    """
    mark = folder / DIVERGED
    train, validation = (curves.get(tag, Curve()).values for tag in ("train/loss", "val/loss"))
    speeds = list(filter(math.isfinite, curves.get("train/tokens_per_second", Curve()).values))
    last = validation[-1] if validation and not mark.exists() else math.nan
    end = mean(train[-10:]) if train else math.nan
    first = next(filter(math.isfinite, train), math.nan)
    steps = (
        json.loads(mark.read_text(encoding="utf-8"))["steps"]
        if mark.exists()
        else max(curve.steps[-1] for curve in curves.values())
    )
    return {
        "value": value,
        "validation_loss": last if math.isfinite(last) else None,
        "best_validation_loss": min(filter(math.isfinite, validation), default=None),
        "train_loss": end if math.isfinite(end) else None,
        "diverged": not math.isfinite(last) or end > RISE * first,
        "steps": steps,
        "seconds": round(max((curve.seconds[-1] for curve in curves.values()), default=0.0), 1),
        "tokens_per_second": round(statistics.median(speeds)) if speeds else None,
        "folder": folder.name,
    }


def in_json(value: Any) -> Any:
    """Returns a setting as JSON can hold it: the .inf that max_gradient_norm may be becomes "inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def show(value: float | None, form: str) -> str:
    """Formats a cell of a table; "-" where there is nothing to tell."""
    return "-" if value is None else format(value, form)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_row(row: Row) -> Row:
    """Returns a row that has been read; ValueError for values that `summarise` does not give."""
    optional = [row[name] for name in ("best_validation_loss", "train_loss", "tokens_per_second")]
    numbers = [row["steps"], row["seconds"], *(value for value in optional if value is not None)]
    numbers += [] if row["diverged"] else [row["validation_loss"]]
    if not all(map(is_number, numbers)) or not isinstance(row["folder"], str) or not isinstance(row["diverged"], bool):
        raise ValueError
    return row


def edge_of_stability(rows: list[Row]) -> tuple[float | None, float | None]:
    """Returns the bounds of the edge, or None: the highest value below it that trained, the lowest that diverged."""
    above = min((row["value"] for row in rows if row["diverged"]), default=None)
    good = [row["value"] for row in rows if not row["diverged"]]
    below = max((value for value in good if above is None or value < above), default=None)
    return below, above


@dataclass
class Results:
    """The results of the sweep in a folder: a row for each run, by the name of the run's folder."""

    folder: Path
    parameter: str
    settings: dict[str, Any]  # common to all runs
    rows: dict[str, Row]

    @classmethod
    def read(cls, folder: Path, parameter: str, settings: dict[str, Any]) -> "Results":
        """Reads the results of an earlier start of the sweep; InputError if the folder holds another sweep.

        A sweep that has left no checkpoint yet may begin anew with other settings.
        """
        path = folder / "sweep.json"
        if not path.exists():
            return cls(folder, parameter, settings, {})
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            rows = {row["folder"]: check_row({name: row[name] for name in COLUMNS}) for row in old["runs"]}
            was = {"param": old["parameter"]} | {name: in_json(value) for name, value in old["settings"].items()}
            now = {"param": parameter} | settings
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: is not what `lm sweep` writes; delete it, or choose another --output") from None
        begun = rows or any(folder.glob("*/*.ckpt")) or any(folder.glob(f"*/{DIVERGED}"))
        for name in sorted(was.keys() | now.keys()) if begun else ():
            if (name.startswith(DIGEST) and name not in was) or (name == INTERVAL and name not in now):
                continue  # of a sweep of before, which recorded the one and not the other
            if was.get(name) != now.get(name):
                raise InputError(
                    f"{folder}: holds a sweep with {name} {was.get(name)}, not {now.get(name)}; keep that value, or"
                    " choose another --output"
                )
        return cls(folder, parameter, settings, rows)

    def record(self) -> None:
        """Writes sweep.json, which tells a later start what the runs have in common."""
        content = {"parameter": self.parameter, "runs": self.sorted(), "settings": self.settings}
        write_text(self.folder / "sweep.json", to_json(content, indent=1) + "\n")

    def add(self, name: str, value: Any) -> list[str]:
        """Adds the results of a run that has just ended, saves all, and returns lines on damage in its curves."""
        folder = self.folder / name
        curves = read_curves(folder)  # none if it was cut short before its first logged step
        self.rows[name] = summarise(in_json(value), folder, curves)
        self.record()
        text = io.StringIO(newline="")
        sheet = csv.DictWriter(text, COLUMNS)
        sheet.writeheader()
        sheet.writerows(self.sorted())
        write_text(self.folder / TABLE, text.getvalue())
        return curves.damage

    def sorted(self) -> list[Row]:
        """Returns the rows by value if all values are numbers, else in the order given."""
        rows = list(self.rows.values())
        return sorted(rows, key=lambda row: row["value"]) if self.are_numbers() else rows

    def are_numbers(self) -> bool:
        return all(is_number(row["value"]) for row in self.rows.values())

    def in_words(self, name: str) -> str:
        row = self.rows[name]
        loss = "diverged" if row["diverged"] else f"validation loss {row['validation_loss']:.4f}"
        return f"{loss}, {row['steps']:,} steps in {row['seconds']:,.0f} s"

    def table(self) -> str:
        lines = [f"{self.parameter:>22}  valid. loss     best    train  steps  seconds  tokens/s"]
        for row in self.sorted():
            loss = "diverged" if row["diverged"] else show(row["validation_loss"], ".4f")
            lines.append(
                f"{row['value']!s:>22}  {loss:>11}  {show(row['best_validation_loss'], '.4f'):>7}"
                f"  {show(row['train_loss'], '.4f'):>7}  {row['steps']:>5,}  {row['seconds']:>7,.0f}"
                f"  {show(row['tokens_per_second'], ',.0f'):>8}"
            )
        return "\n".join(lines)

    def conclusion(self) -> Iterator[str]:
        """Yields a line about the best value and one about the edge of stability."""
        rows = self.sorted()
        good = [row for row in rows if not row["diverged"]]
        if good:
            best = min(good, key=lambda row: row["validation_loss"])
            beyond = len(rows) > 1 and self.are_numbers() and best in (rows[0], rows[-1])
            yield (
                f"best: {self.parameter} {best['value']}, validation loss {best['validation_loss']:.4f}"
                f"{'; it is the last of the range, so a better one may lie beyond' if beyond else ''}"
            )
        if not self.are_numbers():
            return
        below, above = edge_of_stability(rows)
        if above is not None:
            yield f"edge of stability: {f'between {below} and' if below is not None else 'below'} {above}"
        elif self.parameter == "model.learning_rate":
            yield f"edge of stability: above {below}; nothing diverged"

    def draw(self) -> Path:
        """Draws sweep.png and returns its path."""
        rows = self.sorted()
        curves = [read_curves(self.folder / row["folder"]).get("train/loss", Curve()) for row in rows]
        edge = edge_of_stability(rows) if self.are_numbers() else (None, None)
        draw_sweep(self.folder / SWEEP_PLOT, self.parameter, rows, curves, edge)
        return self.folder / SWEEP_PLOT
