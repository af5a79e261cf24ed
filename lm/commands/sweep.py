"""`lm sweep`: trains briefly with each of several values of one setting, and compares the runs."""

import sys
from functools import partial
from typing import TYPE_CHECKING

from lm.commands import add_settings, new_parser, read_with_settings, show_progress
from lm.commands.fit import training
from tokenization.commands import ArgumentParser

if TYPE_CHECKING:
    from lm.experiments.results import Results
    from lm.experiments.sweep import Sweep

HELP = """Train briefly with each of several values of one setting; compare the runs in a table and a plot.

  lm sweep -c configs/demo.yaml --param model.learning_rate --values 1e-3 3e-3 1e-2 3e-2 --trainer.max_steps 200
  lm sweep -c configs/demo.yaml --param data.batch_size --values 4 16 64 --trainer.limit_val_batches 1.0

Every setting of `lm fit` can be given, too. The same command resumes an interrupted sweep.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of the options that are not settings of `lm fit`."""
    parser = new_parser("sweep", HELP, allow_abbrev=False)
    parser.add_argument("--param", required=True, help="the setting to vary, as in `lm fit`: model.learning_rate, ...")
    parser.add_argument("--values", nargs="+", required=True, help="the values to try")
    add_settings(parser)
    return parser


def run(argv: list[str]) -> None:
    """Trains, and prints the table and the conclusion."""
    args, arguments = read_with_settings(make_parser(), argv)
    with training():
        from lm.experiments.sweep import Sweep

        sweep = Sweep(args.param.removeprefix("--"), args.values, arguments, args.output)
        with sweep.opened(args.config) as results:
            run_all(sweep, results)
        print(results.table(), *results.conclusion(), f"plot: {results.draw()}", sep="\n")


def run_all(sweep: "Sweep", results: "Results") -> None:
    """Trains every run that has no result yet, and prints a line for each."""
    if rates := sweep.lowest_rates():
        print(f"model.min_learning_rate moves in proportion: {', '.join(f'{rate:.3g}' for rate in rates)}")
    for number, (name, (_, config)) in enumerate(sweep.runs.items(), start=1):
        title = f"{number} of {len(sweep.runs)}  {sweep.parameter} {config[sweep.parameter]}"
        if name in results.rows:
            print(f"{title}: already done")
            continue
        sweep.run(name, partial(show_progress, title))
        damage = results.add(name, config[sweep.parameter])
        show_progress()
        for line in damage:
            print(f"lm sweep: {line}", file=sys.stderr)
        print(f"{title}: {results.in_words(name)}", flush=True)
