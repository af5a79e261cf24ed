"""`lm report`: writes an HTML page about a run, or about several compared."""

import sys
from pathlib import Path

from lm.commands import named_path, new_parser
from lm.experiments.figures import RACE_PLOT, SWEEP_PLOT, draw_losses
from lm.experiments.report import find_runs
from lm.experiments.report_page import is_report, page
from lm.runs.folder import refuse_names_of_runs
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path
from tokenization.files import writing
from tokenization.outputs import check_file
from tokenization.plots import check_plot

HELP = """Write a page that shows a run, or compares several: losses, curves, settings, samples. Any browser opens it.

  lm report checkpoints/demo
  lm report checkpoints/demo checkpoints/deeper --output comparison.html
  lm report checkpoints/sweep-demo-learning_rate      every run of a sweep or a race
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of `lm report`."""
    parser = new_parser("report", HELP)
    parser.add_argument("runs", nargs="+", type=named_path, metavar="RUN", help="a run's folder, or a folder of runs")
    parser.add_argument(
        "--output", type=output_path, default=Path("report.html"), help="the page (default: report.html)"
    )
    parser.add_argument(
        "--plot", type=output_path, metavar="PNG", help="also draw the losses of all runs into one picture"
    )
    return parser


def run(argv: list[str]) -> None:
    """Writes the page, and warns of damaged files."""
    args = make_parser().parse_args(argv)
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: is a folder, or in a folder that does not exist; name a file")
    runs = find_runs(args.runs)
    inputs = [path for run in runs for path in run.files]
    check_file(args.output, inputs, "a page of `lm report`", is_report)
    if args.plot:
        check_plot(args.plot, [*inputs, *(folder / name for folder in args.runs for name in (SWEEP_PLOT, RACE_PLOT))])
        if args.plot.absolute() == args.output.absolute():
            raise InputError(f"--plot {args.plot}: is also --output; name two files")
    refuse_names_of_runs([args.output, *filter(None, [args.plot])], args.runs)
    for line in (line for run in runs for line in run.curves.damage):
        print(f"lm report: {line}", file=sys.stderr)
    if args.plot:
        draw_losses([run.name for run in runs], [run.curves for run in runs], args.plot)
    with writing(args.output) as file:
        file.write(page(runs).encode(errors="replace"))
    print(f"{args.output}: {', '.join(run.name for run in runs)}")
