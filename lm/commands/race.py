"""`lm race`: compares configurations or settings under one budget, with several seeds each."""

import math
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lm.commands import new_parser, show_progress
from lm.commands.fit import training
from lm.durations import format_duration
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path

if TYPE_CHECKING:
    from lm.experiments.race import Gate, Race, Run

HELP = """Compare configurations or settings under one budget: several seeds each, a table with p-values, a plot.

  lm race configs/tinystories-fast.yaml configs/experiments/adamw.yaml --seeds 3 --steps 600
  lm race configs/demo.yaml --variant "cosine: --model.schedule cosine" --cpu-seconds 120
  lm race configs/demo.yaml --variant "qk: --model.qk_norm true" --steps 600 --samples.max_new_tokens 0

The first configuration is the base. A variant is the base with other settings; any other setting of `lm fit` applies
to all. The same command resumes an interrupted race, and can add seeds and contestants. The ledger, race.csv
and race.png stay in --output. How to read the table: docs/experiments.md.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of the options that are not settings of `lm fit`."""
    parser = new_parser("race", HELP, allow_abbrev=False, usage="lm race CONFIG ... [OPTION ...] [--SETTING VALUE ...]")
    parser.add_argument("-c", "--config", action="append", default=[], help="another configuration to compare")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME: --SETTING VALUE ...'",
        help="one more contestant: the first configuration with other settings",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="runs of each, with seeds 0 to N-1 (default: 3)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, metavar="N", help="optimizer steps of each run, where its schedule ends")
    budget.add_argument(
        "--cpu-seconds",
        type=float,
        metavar="N",
        help="processor seconds of each run, compilation included; a probe of some steps turns them into steps"
        " (default: each configuration's own trainer.max_steps)",
    )
    parser.add_argument(
        "--output",
        type=output_path,
        help="folder for the race (default: checkpoints/race-NAME, for the first configuration's NAME)",
    )
    parser.add_argument(
        "--even-if-busy", action="store_true", help="compare seconds even if other programs use cores, and say so"
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON; progress goes to stderr")
    return parser


def run(argv: list[str]) -> None:
    """Races, and prints the table and what to know of it."""
    args, rest = make_parser().parse_known_args(argv)
    configs, shared = split(rest)
    configs = [*args.config, *configs]
    check(args, configs)
    with training():
        from lm.experiments.contestants import Budget, name_of, read_contestants
        from lm.experiments.race import Gate, Race

        budget = Budget(args.steps, args.cpu_seconds)
        contestants = read_contestants(configs, args.variant, shared, budget)
        output = args.output or Path("checkpoints", f"race-{name_of(Path(configs[0]))}")
        race = Race(contestants, args.seeds, budget, output)
        with race.opened(configs) as damage:
            warn(damage)
            run_all(race, Gate(race, args.even_if_busy), sys.stderr if args.json else sys.stdout)
            standings = race.standings()
            standings.save()
            plot = standings.draw()
        print(standings.to_json() if args.json else "\n".join([standings.table(), *standings.notes(), f"plot: {plot}"]))


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Separates configurations from the settings of `lm fit`, each of which has one value."""
    configs, settings, value = [], [], False
    for word in words:
        if not value and not word.startswith("-"):
            configs.append(word)
        else:
            settings.append(word)
        value = not value and word.startswith("-") and "=" not in word
    return configs, settings


def check(args: Namespace, configs: list[str]) -> None:
    """Raises InputError for arguments that make no race."""
    if not configs:
        raise InputError("name a configuration: lm race configs/demo.yaml --variant 'NAME: --SETTING VALUE'")
    if len(configs) + len(args.variant) < 2:
        raise InputError("a race needs two contestants; name another configuration, or a --variant")
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds}: at least 1 is needed; 3 or more tell a gain from chance")
    if args.steps is not None and args.steps < 1:
        raise InputError(f"--steps {args.steps}: at least 1 is needed")
    if args.cpu_seconds is not None and not 0 < args.cpu_seconds < math.inf:
        raise InputError(f"--cpu-seconds {args.cpu_seconds:g}: it must be a number above 0")


def run_all(race: "Race", gate: "Gate", out: object) -> None:
    """Trains every run that has not ended, with a line when each begins and ends."""
    say = partial(print, file=out, flush=True)
    if not race.left:
        say(f"all {len(race.runs)} runs have ended; their results are kept")
        return
    if race.budget.cpu_seconds is not None:
        gate.look()
    race.settle(show_progress)
    show_progress()
    for contestant in race.contestants.values():
        say(f"{contestant.name}: {contestant.steps:,} steps")
    if kept := len(race.entries):
        say(f"{kept} of {len(race.runs)} runs have ended already and are kept")
    seconds: dict[str, list[float]] = {}
    for each in race.left:
        before, warning = gate.look()
        warn([warning] if warning else [])
        title = f"{len(race.entries) + 1} of {len(race.runs)}  {each}"
        say(f"{title}: begins")
        start = time.monotonic()
        damage = race.run(each, before, partial(show_progress, title))
        show_progress()
        warn(damage)
        seconds.setdefault(each.contestant.name, []).append(time.monotonic() - start)
        say(f"{title}: {outcome(race, each)}{left(race, seconds)}")


def outcome(race: "Race", run: "Run") -> str:
    """Returns how a run has ended, in words."""
    entry = race.entries[run.key]
    loss = "diverged" if entry.loss is None else f"validation loss {entry.loss:.4f}"
    spent = "" if entry.cpu_seconds is None else f", {entry.cpu_seconds:,.1f} processor seconds"
    return f"{loss} after {entry.steps:,} steps{spent}"


def left(race: "Race", seconds: dict[str, list[float]]) -> str:
    """Returns the time that the race has left, in words."""
    estimate = race.seconds_left(seconds)
    return f"; {format_duration(estimate)} to go" if race.left and estimate is not None else ""


def warn(lines: list[str]) -> None:
    for line in lines:
        print(f"lm race: {line}", file=sys.stderr)
