"""Runs a race: contestants under one budget, several seeds each, one run at a time, seed by seed.

    OUTPUT/ledger.jsonl                  a line for each run that has ended (ledger.py)
    OUTPUT/race.json                     the contestants' settings and steps
    OUTPUT/race.csv, race.png            the results (standings.py)
    OUTPUT/NAME/seed-N/, seed-N.log      each run's folder, and what it printed

Seeds come in turn, so that a race that is stopped has compared all contestants on the first ones. Each run is an
`lm fit` of its own, with its seed for weights and for data; it compiles into an empty cache, so that none finds the
work of an earlier one done. The same command resumes an interrupted race, and can add seeds and contestants.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from lm.experiments.children import fit, last_line
from lm.experiments.contestants import OF_THE_SEED, Budget, Contestant, common_measure, steps_within
from lm.experiments.figures import RACE_PLOT
from lm.experiments.ledger import LEDGER, Entry, append, is_ledger, read_ledger
from lm.experiments.results import begins_with, check_results, summarise
from lm.experiments.short_runs import WATCH, callbacks, check_end, read_files
from lm.experiments.standings import COLUMNS, TABLE, Standings
from lm.machine.contention import MANY, load_of_others
from lm.monitoring.processor_clock import STARTS, TAG
from lm.runs.events import Curve, Curves, Start, read_curves
from lm.runs.folder import DIVERGED, LAST
from lm.runs.lock import run_lock
from lm.runs.manifest import read_manifest
from lm.strict_json import to_json
from tokenization import InputError
from tokenization.files import write_text
from tokenization.outputs import check_folder
from tokenization.plots import is_plot

RECORD = "race.json"
CLOCK = "lm.monitoring.processor_clock.ProcessorClock"  # a callback


class Run(NamedTuple):
    """One run of the race."""

    contestant: Contestant
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.contestant.name, self.seed

    def __str__(self) -> str:
        return f"{self.contestant.name}, seed {self.seed}"


class Race:
    """A race in its folder: which runs there are, which have ended, and how one is run."""

    def __init__(self, contestants: list[Contestant], seeds: int, budget: Budget, output: Path):
        """seeds: how many; they are 0, 1, ... InputError if the contestants cannot be compared."""
        self.contestants = {contestant.name: contestant for contestant in contestants}
        self.budget, self.output = budget, output
        self.measure = common_measure(contestants)
        self.runs = [Run(contestant, seed) for seed in range(seeds) for contestant in contestants]
        self.entries: dict[tuple[str, int], Entry] = {}

    @contextlib.contextmanager
    def opened(self, configs: list[str]) -> Iterator[list[str]]:
        """Locks the folder and reads what is there; yields lines on damage in the ledger.

        InputError if the race would replace any other file, or a contestant was another one before.
        """
        inputs = [path for each in self.contestants.values() for path in read_files(configs, each.config)]
        check_results(self.output, inputs, {TABLE: begins_with(COLUMNS), RACE_PLOT: is_plot, LEDGER: is_ledger})
        check_folder(self.output, inputs, [RECORD])
        with run_lock(self.output):
            entries, damage = read_ledger(self.output)
            self._recall({name for name, _ in entries})
            self.entries = {run.key: entries[run.key] for run in self.runs if self._is_done(run, entries)}
            yield damage

    # --- settings and steps ------------------------------------------------------------------------------------------

    def _recorded(self) -> dict[str, Any]:
        path = self.output / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            return {
                name: {"settings": dict(old["settings"]), "steps": int(old["steps"])} for name, old in record.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: is not what `lm race` writes; choose another --output, or delete it") from None

    def _recall(self, ended: Collection[str]) -> None:
        """Takes over the steps that an earlier start has found; InputError for a contestant with other settings.

        ended: those of which a run has ended. One that has not even a checkpoint begins anew.
        """
        for name, old in self._recorded().items():
            contestant = self.contestants.get(name)
            if contestant is None:
                continue
            was, now = old["settings"], contestant.settings
            has_run = name in ended or any((self.output / name).glob("*/*.ckpt"))
            if was != now and not has_run:
                continue
            for setting in sorted(was.keys() | now.keys()):
                if was.get(setting) != now.get(setting):
                    raise InputError(
                        f"{self.output}: {name} has run with {setting} {was.get(setting)}, not {now.get(setting)};"
                        " keep that value, or choose another --output or another name"
                    )
            contestant.set_length(old["steps"])

    def settle(self, show: Callable[[str], None]) -> None:
        """Finds the length of each contestant's runs, by a probe if need be, and records it."""
        for contestant in self.contestants.values():
            if not contestant.steps:
                show(f"{contestant.name}: timing some steps")
                contestant.set_length(steps_within(contestant, self.budget))
                record = self._recorded() | {
                    contestant.name: {"settings": contestant.settings, "steps": contestant.steps}
                }
                write_text(self.output / RECORD, to_json(record, indent=1) + "\n")
        for (name, seed), entry in self.entries.items():
            if not entry.diverged and entry.steps != self.contestants[name].steps:
                raise InputError(
                    f"{self.output / name}: seed {seed} has ended after {entry.steps:,} steps, and runs have"
                    f" {self.contestants[name].steps:,} now, as {RECORD} is another; choose another --output"
                )

    # --- running -----------------------------------------------------------------------------------------------------

    def folder(self, run: Run) -> Path:
        return self.output / run.contestant.name / f"seed-{run.seed}"

    def _is_done(self, run: Run, entries: dict[tuple[str, int], Entry]) -> bool:
        """Whether the ledger has the run with these settings, and its folder agrees."""
        entry, folder = entries.get(run.key), self.folder(run)
        if entry is None or entry.settings != run.contestant.digest:
            return False
        if entry.diverged and (folder / DIVERGED).exists():
            return True
        return (folder / LAST).exists() and read_manifest(folder / LAST)["step"] == entry.steps

    @property
    def left(self) -> list[Run]:
        """The runs that have not ended yet, in their order."""
        return [run for run in self.runs if run.key not in self.entries]

    def fit_arguments(self, run: Run) -> list[str]:
        """Returns a run's arguments of `lm fit`."""
        own: dict[str, Any] = dict.fromkeys(OF_THE_SEED, run.seed)
        own |= {"trainer.default_root_dir": self.folder(run), "ckpt_path": "auto"}
        flags = [f"--{name}={value}" for name, value in own.items()]
        own_callbacks = callbacks(run.contestant.config, WATCH, CLOCK)
        return [*run.contestant.arguments, *own_callbacks, *run.contestant.flags, *flags]

    def run(self, run: Run, others_before: float | None, show: Callable[[str], None]) -> list[str]:
        """Trains or resumes one run to its end and enters it; returns lines on damage in its curves.

        others_before: cores that other programs take; show: called with the newest line that the run has printed.
        """
        folder, log = self.folder(run), self.folder(run).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        during = None
        if not (folder / DIVERGED).exists():
            with tempfile.TemporaryDirectory(prefix="lm-race-") as cache, load_of_others() as load:
                code = fit(self.fit_arguments(run), log, show, TORCHINDUCTOR_CACHE_DIR=cache)
            if code and not (folder / DIVERGED).exists():
                raise InputError(f"{folder}: {last_line(log)}; {log} has its output; the same command resumes")
            if not (folder / DIVERGED).exists():
                check_end(folder, run.contestant.steps)
            during = load.cores
        curves = read_curves(folder)
        entry = self._enter(run, curves, others_before, during)
        append(self.output, entry)
        self.entries[run.key] = entry
        self.standings().save()
        return curves.damage

    def _enter(self, run: Run, curves: Curves, before: float | None, during: float | None) -> Entry:
        row = summarise(run.contestant.name, self.folder(run), curves)
        config = run.contestant.config
        batches = config.trainer.accumulate_grad_batches * config.data.batch_size
        origin = curves.starts[-1] if curves.starts else Start("unknown", "unknown")

        def last(tag: str) -> float | None:
            return next(reversed(curves.get(tag, Curve()).values), None)

        seconds = last(TAG)
        return Entry(
            contestant=run.contestant.name,
            seed=run.seed,
            settings=run.contestant.digest,
            steps=row["steps"],
            tokens=int(last("train/tokens_seen") or row["steps"] * batches * config.model.context_length),
            loss=None if row["diverged"] else row["validation_loss"],
            best_loss=row["best_validation_loss"],
            bits_per_byte=None if row["diverged"] else last("val/bits_per_byte"),
            diverged=row["diverged"],
            wall_seconds=row["seconds"],
            cpu_seconds=round(seconds, 2) if seconds is not None else None,
            starts=int(last(STARTS) or 1),
            others_before=before,
            others_during=during,
            machine=origin.machine,
            code=origin.code,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    # --- what comes of it --------------------------------------------------------------------------------------------

    def seconds_left(self, seconds: dict[str, list[float]]) -> float | None:
        """Estimates the seconds that the runs left will take; None before any has ended.

        seconds: those of the runs that have ended since this start, by contestant.
        """
        seen = [value for values in seconds.values() for value in values]
        if not seen:
            return None
        mean = sum(seen) / len(seen)
        own = {name: sum(values) / len(values) for name, values in seconds.items() if values}
        return sum(own.get(run.contestant.name, mean) for run in self.left)

    def standings(self) -> Standings:
        """Returns the comparison of the runs that have ended."""
        entries: dict[str, list[Entry]] = {name: [] for name in self.contestants}
        for run in self.runs:
            if run.key in self.entries:
                entries[run.contestant.name].append(self.entries[run.key])
        return Standings(self.output, entries, self.measure, self.budget)


class Gate:
    """Refuses to go on beside other programs in a race that compares seconds, unless told to."""

    def __init__(self, race: Race, even_if_busy: bool):
        self.race, self.strict = race, race.budget.compares_seconds and not even_if_busy
        self.warned = False

    def look(self, seconds: float = 2.0) -> tuple[float | None, str]:
        """Looks for so many seconds; returns the cores that others take, None if unknown, and a warning, once.

        InputError if they take cores and seconds are to be compared.
        """
        with load_of_others() as load:
            time.sleep(seconds)
        if load.cores is None or load.cores <= MANY:
            return load.cores, ""
        busy = f"other programs take {load.cores:.1f} cores"
        if self.strict:
            done, all_runs = len(self.race.entries), len(self.race.runs)
            raise InputError(
                f"{busy}, so seconds cannot be compared; end them, or add --even-if-busy, which the table will"
                f" say; {done} of {all_runs} runs have ended and are kept, and the same command resumes"
            )
        warning, self.warned = "" if self.warned else f"{busy}: seconds will be longer than on a quiet machine", True
        return load.cores, warning
