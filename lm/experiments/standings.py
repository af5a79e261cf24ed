"""Compares the contestants of a race with its base: race.csv, race.png, a table, and what a reader must know of it.

loss          mean over the runs, at the last step, with its standard error
difference    mean minus the base's: below zero is better
p             how often seeds alone would make so large a difference (significance.py); of a diverged run, nothing
"""

import csv
import io
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.experiments.contestants import LOSS, MEASURES, Budget
from lm.experiments.figures import RACE_PLOT, draw_race
from lm.experiments.ledger import Entry
from lm.experiments.results import show
from lm.experiments.significance import lowest_by_permutation, p_value, standard_error
from lm.machine.contention import MANY
from lm.monitoring.processor_clock import TAG
from lm.runs.events import Curve, read_curves
from lm.strict_json import to_json
from tokenization.files import write_text

COLUMNS = (
    *("contestant", "runs", "diverged", "loss", "standard_error", "difference", "p"),
    *("cpu_seconds", "wall_seconds", "steps", "tokens"),
)
TABLE = "race.csv"
MISSED = 0.05  # of the budget of processor seconds, which is worth a note
Row = dict[str, Any]


@dataclass
class Standings:
    """The runs that have ended, by contestant, the base first, and on what they are compared."""

    folder: Path
    entries: dict[str, list[Entry]]
    measure: str  # the tag of a curve
    budget: Budget

    def losses(self, name: str) -> list[float]:
        """Returns a contestant's figures, one for each run that has not diverged."""
        found = [entry.loss if self.measure == LOSS else entry.bits_per_byte for entry in self.entries[name]]
        return [loss for loss in found if loss is not None]

    @property
    def rows(self) -> list[Row]:
        """The table, a row for each contestant; None where there is nothing to tell."""
        base = next(iter(self.entries))
        return [self._row(name, base) for name in self.entries]

    def _row(self, name: str, base: str) -> Row:
        entries, losses, reference = self.entries[name], self.losses(name), self.losses(base)
        seconds = [entry.cpu_seconds for entry in entries if entry.cpu_seconds is not None]
        compared = name != base and bool(losses) and bool(reference)
        diverged = {each: sum(entry.diverged for entry in self.entries[each]) for each in (name, base)}
        return {
            "contestant": name,
            "runs": len(entries),
            "diverged": diverged[name],
            "loss": statistics.fmean(losses) if losses else None,
            "standard_error": standard_error(losses),
            "difference": statistics.fmean(losses) - statistics.fmean(reference) if compared else None,
            "p": p_value(losses, reference) if compared and not any(diverged.values()) else None,
            "cpu_seconds": statistics.fmean(seconds) if seconds else None,
            "wall_seconds": statistics.fmean(entry.wall_seconds for entry in entries) if entries else None,
            "steps": max((entry.steps for entry in entries), default=None),
            "tokens": max((entry.tokens for entry in entries), default=None),
        }

    def table(self) -> str:
        """Returns the table in lines of text."""
        width = max(len("contestant"), *map(len, self.entries))
        lines = [
            f"{MEASURES[self.measure]}; {self.budget}",
            f"{'contestant':<{width}}  runs  {'loss':>16}  difference       p  {'CPU s':>7}  {'steps':>6}"
            f"  {'tokens':>10}",
        ]
        for row in self.rows:
            loss = show(row["loss"], ".4f")
            loss += f" ± {row['standard_error']:.4f}" if row["standard_error"] is not None else ""
            lines.append(
                f"{row['contestant']:<{width}}  {row['runs']:>4}  {loss:>16}  {show(row['difference'], '+.4f'):>10}"
                f"  {show(row['p'], '.4f'):>6}  {show(row['cpu_seconds'], ',.1f'):>7}  {show(row['steps'], ',d'):>6}"
                f"  {show(row['tokens'], ',d'):>10}"
            )
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Returns what a reader must know of the figures, a line each."""
        return [*self._on_chance(), *self._on_runs()]

    def _on_chance(self) -> Iterator[str]:
        base, *others = self.rows
        if few := [row["contestant"] for row in self.rows if row["runs"] < 2]:
            yield (
                f"fewer than two runs of {', '.join(few)}: no p-value, and a seed alone may make the difference; give"
                " more --seeds"
            )
        compared = [row["contestant"] for row in others if row["p"] is not None]
        pairs = [(len(self.losses(name)), len(self.losses(base["contestant"]))) for name in compared]
        lowest = max((lowest_by_permutation(*pair) for pair in pairs), default=0.0)
        if lowest > 0.01:
            yield (
                "p takes the losses as normally distributed over seeds; without that, so few runs could not show a p"
                f" below {lowest:.2g}"
            )
        if len(compared) > 1:
            yield (
                f"{len(compared)} comparisons: if none is real, one in twenty such races has a p below"
                f" {0.05 / len(compared):.2g} somewhere"
            )

    def _on_runs(self) -> Iterator[str]:
        for name, entries in self.entries.items():
            if lost := [entry.seed for entry in entries if entry.diverged]:
                yield f"{name}: seed {', '.join(map(str, lost))} diverged and is left out of the means"
        runs = [entry for entries in self.entries.values() for entry in entries]
        crowded = [taken for entry in runs if (taken := max(entry.others_before or 0, entry.others_during or 0)) > MANY]
        budget = self.budget.cpu_seconds
        if crowded:
            effect = "losses by steps are the same" if budget is None else "a probe beside them allows fewer steps"
            yield (
                f"{len(crowded)} of {len(runs)} runs shared the machine with other programs, which took up to"
                f" {max(crowded):.1f} cores: seconds are longer than on a quiet machine; {effect}"
            )
        if again := sum(entry.starts > 1 for entry in runs):
            yield f"{again} of {len(runs)} runs were interrupted: their seconds include every start"
        for what in ("machine", "code"):
            if len(found := sorted({getattr(entry, what) for entry in runs})) > 1:
                yield f"the runs are of different {what}: {'; '.join(found)}"
        for row in self.rows if budget else ():
            spent = row["cpu_seconds"]
            if spent is not None and budget and abs(spent / budget - 1) > MISSED:
                yield f"{row['contestant']}: took {spent / budget:.0%} of its budget of processor seconds"

    def save(self) -> None:
        """Writes race.csv."""
        text = io.StringIO(newline="")
        sheet = csv.DictWriter(text, COLUMNS)
        sheet.writeheader()
        sheet.writerows(self.rows)
        write_text(self.folder / TABLE, text.getvalue())

    def to_json(self) -> str:
        """Returns the table as an object of JSON."""
        budget = {"steps": self.budget.steps, "cpu_seconds": self.budget.cpu_seconds}
        content = {"measure": MEASURES[self.measure], "budget": budget, "contestants": self.rows}
        return to_json(content | {"notes": self.notes()}, indent=2)

    def draw(self) -> Path:
        """Draws race.png and returns its path: by steps in a race of steps, else by processor seconds."""
        curves: dict[str, list[Curve]] = {}
        for name, entries in self.entries.items():
            for entry in (entry for entry in entries if not entry.diverged):
                found = read_curves(self.folder / name / f"seed-{entry.seed}")
                loss = found.get(self.measure, Curve())
                clock = dict(zip(found[TAG].steps, found[TAG].values, strict=True)) if TAG in found else {}
                by_steps = not self.budget.compares_seconds
                places = [float(step) if by_steps else clock.get(step, float("nan")) for step in loss.steps]
                curves.setdefault(name, []).append(Curve(loss.steps, places, loss.values))
        label = "processor seconds" if self.budget.compares_seconds else "optimizer steps"
        draw_race(self.folder / RACE_PLOT, curves, label, MEASURES[self.measure])
        return self.folder / RACE_PLOT
