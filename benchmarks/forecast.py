"""Forecasts finished runs as `lm fit` does, and compares with how they ended: the tables of docs/forecast.md.

  python benchmarks/forecast.py checkpoints/race-*                  all runs of these races
  python benchmarks/forecast.py checkpoints/race-* --of race-new    forecasts this race's alone, from all before

Each run is cut at a share of its steps and forecast from the newest runs that began before it, of whatever race. A run
whose curve an earlier one has to the last digit is passed over: it is the same run again.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from lm.monitoring.forecast import MOST_RUNS, read_losses, tells_of
from lm.monitoring.loss_law import Losses
from lm.monitoring.posterior import Forecast, forecast_loss
from lm.runs.events import read_curves
from lm.runs.folder import CONFIG
from tokenization import InputError

SHARES = {"a quarter": 1 / 4, "a third": 1 / 3, "a half": 1 / 2, "three quarters": 3 / 4}


def read_runs(races: list[Path]) -> dict[Path, Losses]:
    """Returns the finished runs of the races by their folder, in the order in which they began."""
    began, runs = {}, {}
    for folder in sorted(path.parent for race in races for path in race.glob(f"*/*/{CONFIG}")):
        try:
            run = read_losses(folder)
        except InputError:
            continue
        if run.finished:
            began[folder], runs[folder] = read_curves(folder).began, run
    return {folder: runs[folder] for folder in sorted(runs, key=began.__getitem__)}


@dataclass(frozen=True)
class Case:
    """A run's forecast and its outcome. earlier: how many runs told of it."""

    forecast: Forecast
    outcome: float
    earlier: int

    @property
    def held(self) -> bool:
        return self.forecast.low <= self.outcome <= self.forecast.high


def forecast_then(runs: dict[Path, Losses], share: float, races: list[str] | None) -> dict[Path, Case]:
    """Forecasts each run of these races, or of all, at a share of its steps."""
    found: dict[Path, Case] = {}
    before: list[Losses] = []
    for folder, run in runs.items():
        chosen = races is None or folder.parent.parent.name in races
        if chosen and all(other.training != run.training for other in before):
            earlier = [other for other in before if tells_of(other, run)][-MOST_RUNS:]
            forecast = forecast_loss(run.until(share), earlier)
            if forecast is not None:
                found[folder] = Case(forecast, run.validation[run.course.steps], len(earlier))
        before.append(run)
    return found


def print_tables(runs: dict[Path, Losses], found: dict[str, dict[Path, Case]]) -> None:
    print("| cut at | held | median width | median error |\n|---|---|---|---|")
    for words, cases in found.items():
        held = sum(case.held for case in cases.values())
        width = statistics.median((case.forecast.high - case.forecast.low) / case.outcome for case in cases.values())
        error = statistics.median(abs(case.forecast.loss - case.outcome) / case.outcome for case in cases.values())
        print(f"| {words} | {held} of {len(cases)} | {width:.2%} | {error:.2%} |")
    print("\n| run | steps | earlier runs | forecast at a quarter | outcome | held |\n|---|---|---|---|---|---|")
    for folder, case in found["a quarter"].items():
        name, steps = "/".join(folder.parts[-3:]), runs[folder].course.steps
        band = str(case.forecast).removeprefix("final loss about ")
        print(f"| `{name}` | {steps} | {case.earlier} | {band} | {case.outcome:.3f} | {'yes' if case.held else 'no'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", nargs="+", type=Path, help="folders of races")
    parser.add_argument("--of", nargs="+", metavar="NAME", help="forecast the runs of these races alone")
    given = parser.parse_args()
    runs = read_runs(given.races)
    found = {words: forecast_then(runs, share, given.of) for words, share in SHARES.items()}
    if not all(found.values()):
        sys.exit("no finished run of these races can be forecast at every share; name others, or another --of")
    print_tables(runs, found)


if __name__ == "__main__":
    main()
