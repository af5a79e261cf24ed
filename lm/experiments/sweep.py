"""Runs a sweep: a short `lm fit` for each of several values of one setting, one after another.

    OUTPUT/sweep.json, sweep.csv, sweep.png     the results          OUTPUT/NAME-VALUE/     each run's folder
    OUTPUT/NAME-VALUE.log                       what it printed

Each run is a process of its own. The same command resumes an interrupted sweep, and can add values. A run that diverges
(divergence.py) is cut short, and counts as a result. With model.learning_rate, model.min_learning_rate changes in
proportion, so that every run has a cosine of the same shape.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.experiments.children import fit, last_line
from lm.experiments.contestants import LOSS, Contestant, common_measure
from lm.experiments.figures import SWEEP_PLOT
from lm.experiments.results import COLUMNS, DIGEST, INTERVAL, TABLE, Results, begins_with, check_results, in_json
from lm.experiments.short_runs import (
    WATCH,
    Settings,
    callbacks,
    check_end,
    check_settings,
    data_files,
    digests,
    read_files,
)
from lm.runs.folder import DIVERGED
from lm.runs.lock import run_lock
from lm.strict_json import to_json
from tokenization import InputError
from tokenization.outputs import check_folder
from tokenization.plots import is_plot

RATE, LOWEST_RATE = "model.learning_rate", "model.min_learning_rate"
LENGTHS = ("trainer.max_steps", "trainer.accumulate_grad_batches")
NOT_SWEPT = {  # settings that have one value, with what to do
    **dict.fromkeys(("config", "ckpt_path", "trainer.default_root_dir"), "each run has its own; name another setting"),
    "data.val_path": "losses on different text cannot be compared; name another setting",
}


class Sweep:
    """The runs of a sweep by the names of their folders, each with its value as given and its settings."""

    def __init__(self, parameter: str, values: list[str], arguments: list[str], output: Path | None):
        if parameter in NOT_SWEPT:
            raise InputError(f"--param {parameter}: {NOT_SWEPT[parameter]}")
        self.parameter, self.arguments = parameter, arguments
        self.runs: dict[str, tuple[str, Namespace]] = {}
        for text in values:
            config = Settings(["fit", *arguments, f"--{parameter}={text}"]).config.fit
            name = re.sub(r"[^\w.+-]+", "_", f"{parameter.rpartition('.')[2]}-{config[parameter]}")
            if name in self.runs:
                raise InputError(f"--values: {self.runs[name][0]} and {text} would be one run; give each value once")
            self.runs[name] = text, config
        first = next(iter(self.runs.values()))[1]
        home = Path(first.trainer.default_root_dir)
        self.output = output or home.with_name(f"sweep-{home.name}-{parameter.rpartition('.')[2]}")
        if parameter == RATE:
            self._scale_lowest_rate()
        for text, config in self.runs.values():
            try:
                check_settings(config)
                digests(config)  # for data that is not there
            except InputError as error:
                raise InputError(f"--values: {text}: {error}") from None
        self._check_measure()
        self.settings = self._common_settings(first)

    def _check_measure(self) -> None:
        """Raises InputError if the runs would be validated on different text."""
        contestants = [Contestant(text, [], config, {}) for text, config in self.runs.values()]
        try:
            measure = common_measure(contestants)
        except InputError as error:
            raise InputError(f"--values: {error}") from None
        if measure != LOSS:
            raise InputError(
                f"--param {self.parameter}: losses of different tokenizers cannot be compared; take lm race"
            )

    def _scale_lowest_rate(self) -> None:
        base = Settings(["fit", *self.arguments]).config.fit.model
        share = base.min_learning_rate / base.learning_rate if base.learning_rate else 0.0
        for _, config in self.runs.values():
            config.model.min_learning_rate = float(f"{share * config.model.learning_rate:.6g}")

    def _common_settings(self, config: Namespace) -> dict[str, Any]:
        """Returns the settings common to all runs, which a later start of the sweep must share."""
        own = {self.parameter, "config", "trainer.default_root_dir", *([LOWEST_RATE] if self.parameter == RATE else [])}
        own |= {"model.max_steps", "data.context_length", "data.vocab_size"}  # linked to settings listed anyway
        own |= {INTERVAL} if self.parameter in LENGTHS else set()  # it is cut to the length of each run
        flat = {name: in_json(value) for name, value in vars(config.clone().as_flat()).items() if name not in own}
        swept = data_files(config)[:-1] if self.parameter == "data.train_path" else []
        flat |= {name: digest for name, digest in digests(config).items() if name.removeprefix(DIGEST) not in swept}
        settings: dict[str, Any] = json.loads(to_json(flat, default=str))
        return settings

    def fit_arguments(self, name: str) -> list[str]:
        """Returns a run's arguments of `lm fit`."""
        text, config = self.runs[name]
        changes = {
            self.parameter: text,
            "trainer.default_root_dir": self.output / name,
            "trainer.val_check_interval": config.trainer.val_check_interval,
            "ckpt_path": "auto",
        }
        if self.parameter == RATE:
            changes[LOWEST_RATE] = config.model.min_learning_rate
        return [*self.arguments, *callbacks(config, WATCH), *(f"--{key}={setting}" for key, setting in changes.items())]

    def lowest_rates(self) -> list[float]:
        """Returns each run's model.min_learning_rate; empty if the sweep does not change it."""
        return [config.model.min_learning_rate for _, config in self.runs.values()] if self.parameter == RATE else []

    @contextlib.contextmanager
    def opened(self, configs: list[str]) -> Iterator[Results]:
        """Locks the folder of the results, and yields those of an earlier start.

        configs: the configuration files among the arguments. InputError if the results would replace any other file.
        """
        inputs = [path for _, config in self.runs.values() for path in read_files(configs, config)]
        check_results(self.output, inputs, {TABLE: begins_with(COLUMNS), SWEEP_PLOT: is_plot})
        check_folder(self.output, inputs, ["sweep.json", *(f"{name}.log" for name in self.runs)])
        with run_lock(self.output):
            results = Results.read(self.output, self.parameter, self.settings)
            results.record()  # before the first run: an interrupted one is gone on with by the same settings alone
            yield results

    def run(self, name: str, show: Callable[[str], None]) -> None:
        """Trains or resumes one run to its end; InputError if it failed other than by diverging.

        show: called twice a second with the newest line that the run has printed.
        """
        folder, log = self.output / name, self.output / f"{name}.log"
        if (folder / DIVERGED).exists():
            return
        if fit(self.fit_arguments(name), log, show) and not (folder / DIVERGED).exists():
            raise InputError(f"{folder}: {last_line(log)}; {log} has its output; the same command resumes the sweep")
        if not (folder / DIVERGED).exists():
            check_end(folder, self.runs[name][1].trainer.max_steps)
