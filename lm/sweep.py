"""`lm sweep`: one setting, several values, a short `lm fit` for each, one after another; then a table and a plot.

    OUTPUT/sweep.json, sweep.csv, sweep.png     the results          OUTPUT/NAME-VALUE/     each run's folder
    OUTPUT/NAME-VALUE.log                       what it printed

Each run is a process of its own. The same command goes on where a sweep was interrupted, and more values can be added;
a run that diverges (divergence.py) is cut short, and is a result. With model.learning_rate, model.min_learning_rate
moves in proportion, so that every run has a cosine of one shape.
"""

import argparse
import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.checks import check_length
from lm.cli import SettingsCLI
from lm.divergence import MARK
from lm.figures import is_plot
from lm.run_folder import run_lock
from lm.strict_json import to_json
from lm.sweep_results import COLUMNS, PLOT, TABLE, Results, begins_with, check_results, in_json
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path
from tokenization.outputs import check_folder

HELP = """Train shortly with each of several values of one setting, and compare.

  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 3e-3 1e-2 3e-2 --trainer.max_steps 200
  lm sweep -c configs/demo.yaml --param data.batch_size --values 1 4 16 64 --output checkpoints/batch-sizes

Everything else that `lm fit` takes can be given, too. Started again, it goes on.
"""
RATE, LOWEST_RATE = "model.learning_rate", "model.min_learning_rate"


class Settings(SettingsCLI):
    """Those of a short run by a long one's configuration: its last step is validated, whatever comes before it."""

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        trainer = self.config.fit.trainer
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        trainer.val_check_interval = min(trainer.val_check_interval, batches)


def read_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's own arguments, and those that are for `lm fit`."""
    parser.add_argument("-c", "--config", action="append", required=True, help="the configuration to begin with")
    parser.add_argument(
        "--output", type=output_path, help="folder of the results (default: beside the configuration's run)"
    )
    args, rest = parser.parse_known_args(argv)
    for name in ("--trainer.default_root_dir", "--ckpt_path", "--print_config"):
        if any(argument.partition("=")[0] == name for argument in rest):
            raise InputError(f"{name}: has no effect here; --output names the folder of the results")
    return args, [*(f"--config={path}" for path in args.config), *rest]


def read_files(paths: list[str], config: Namespace) -> list[Path]:
    """The files and folders that a run reads."""
    data = config.data
    return [Path(path) for path in (*paths, data.train_path, data.val_path, data.tokenizer)]


# --- the runs --------------------------------------------------------------------------------------------------------


class Sweep:
    """The runs of a sweep, by the name of their folders."""

    def __init__(self, parameter: str, values: list[str], arguments: list[str], output: Path | None):
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
        for _, config in self.runs.values():
            check_length(config.trainer, config.model)
        self.settings = self._common_settings(first)

    def _scale_lowest_rate(self) -> None:
        base = Settings(["fit", *self.arguments]).config.fit.model
        share = base.min_learning_rate / base.learning_rate if base.learning_rate else 0.0
        for _, config in self.runs.values():
            config.model.min_learning_rate = float(f"{share * config.model.learning_rate:.6g}")

    def _common_settings(self, config: Namespace) -> dict[str, Any]:
        """All that the runs of the sweep have in common, so that runs of different sweeps are not compared."""
        own = {self.parameter, "config", "trainer.default_root_dir", *([LOWEST_RATE] if self.parameter == RATE else [])}
        own |= {"model.max_steps", "data.context_length", "data.vocab_size"}  # said elsewhere, and linked
        flat = {name: in_json(value) for name, value in vars(config.clone().as_flat()).items() if name not in own}
        return json.loads(to_json(flat, default=str))

    def command(self, name: str) -> list[str]:
        text, config = self.runs[name]
        changes = {
            self.parameter: text,
            "trainer.default_root_dir": self.output / name,
            "trainer.val_check_interval": config.trainer.val_check_interval,
            "ckpt_path": "auto",
        }
        if self.parameter == RATE:
            changes[LOWEST_RATE] = config.model.min_learning_rate
        watch = "--trainer.callbacks+=lm.divergence.StopWhenRisen"
        flags = [f"--{key}={setting}" for key, setting in changes.items()]
        return [sys.executable, "-m", "lm", "fit", *self.arguments, watch, *flags]

    def run(self, name: str, words: str) -> None:
        """Trains one run to its end, or on from where it was; InputError where it failed in a way of its own."""
        folder, log = self.output / name, self.output / f"{name}.log"
        if (folder / MARK).exists():
            return
        with open(log, "ab") as file:
            process = subprocess.Popen(self.command(name), stdout=file, stderr=file, stdin=subprocess.DEVNULL)
            with ended_with_us(process):
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=0.5)
                    show_progress(words, log)
        if process.returncode and not (folder / MARK).exists():
            raise InputError(f"{folder}: {last_line(log)}; {log} has all it printed; started again, the sweep goes on")


@contextlib.contextmanager
def ended_with_us(process: subprocess.Popen) -> Iterator[None]:
    """Whoever ends the sweep ends its run, which saves itself first."""

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException:
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(log: Path) -> str:
    """The end of what a run has printed; of a progress bar, its newest state."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 2000))
        lines = [line.strip() for line in re.split(r"[\r\n]", file.read().decode(errors="replace"))]
    return next((line for line in reversed(lines) if line), "nothing printed")


def show_progress(words: str, log: Path) -> None:
    """On one line of a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r\x1b[K" + f"{words}  {last_line(log)}"[:width], end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def run_sweep(argv: list[str]) -> None:
    parser = ArgumentParser(
        prog="lm sweep", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--param", required=True, help="the setting, as `lm fit` calls it: model.learning_rate, ...")
    parser.add_argument("--values", nargs="+", required=True, help="its values")
    args, arguments = read_arguments(parser, argv)
    sweep = Sweep(args.param.removeprefix("--"), args.values, arguments, args.output)
    inputs = [path for _, config in sweep.runs.values() for path in read_files(args.config, config)]
    check_results(sweep.output, inputs, {TABLE: begins_with(COLUMNS), PLOT: is_plot})
    check_folder(sweep.output, inputs, ["sweep.json", *(f"{name}.log" for name in sweep.runs)])
    with run_lock(sweep.output):
        results = Results.read(sweep.output, sweep.parameter, sweep.settings)
        if sweep.parameter == RATE:
            rates = ", ".join(f"{config.model.min_learning_rate:.3g}" for _, config in sweep.runs.values())
            print(f"{LOWEST_RATE} moves in proportion: {rates}")
        for number, (name, (_, config)) in enumerate(sweep.runs.items(), start=1):
            words = f"{number} of {len(sweep.runs)}  {sweep.parameter} {config[sweep.parameter]}"
            if name in results.rows:
                print(f"{words}: was done before")
                continue
            sweep.run(name, words)
            results.add(name, config[sweep.parameter])
            end_progress()
            print(f"{words}: {results.in_words(name)}", flush=True)
    print(results.table(), *results.conclusion(), results.draw(), sep="\n")
