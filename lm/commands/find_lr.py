"""`lm find-lr`: runs the learning-rate range test and suggests a learning rate."""

import math
from typing import TYPE_CHECKING

from lm.commands import add_settings, new_parser, read_with_settings
from lm.commands.fit import training
from lm.experiments.figures import smooth
from tokenization import InputError
from tokenization.commands import ArgumentParser

if TYPE_CHECKING:
    from lm.experiments.range_test import RangeTest

HELP = """Suggest a learning rate by a range test: one short training run whose rate grows exponentially, step by step.

  lm find-lr -c configs/demo.yaml
  lm find-lr -c configs/demo.yaml --steps 200 --highest 1 --data.batch_size 16

Every setting of `lm fit` can be given, too.
"""
OWN = {  # settings that the test sets itself
    "trainer.max_steps": "--steps is the length of the test",
    "trainer.max_time": "--steps is the length of the test",
    "trainer.fast_dev_run": "--steps is the length of the test",
    "trainer.limit_val_batches": "the test validates nothing",
    "model.max_skipped_steps": "the test ends at the first bad step",
    "model.learning_rate": "--lowest and --highest are the rates of the test",
    "model.min_learning_rate": "--lowest and --highest are the rates of the test",
}


def make_parser() -> ArgumentParser:
    """Returns the parser of the options that are not settings of `lm fit`."""
    parser = new_parser("find-lr", HELP, allow_abbrev=False)
    parser.add_argument("--lowest", type=float, default=1e-5, help="the first learning rate (default: 1e-5)")
    parser.add_argument("--highest", type=float, default=10.0, help="the last learning rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: 100)")
    add_settings(parser)
    return parser


def run(argv: list[str]) -> None:
    """Runs the test, and prints its suggestion."""
    args, arguments = read_with_settings(make_parser(), argv, OWN)
    if not 0 < args.lowest < args.highest < math.inf:
        raise InputError(f"--lowest {args.lowest}: it must be above 0 and below --highest, which is {args.highest}")
    if args.steps < 20:
        raise InputError(f"--steps {args.steps}: at least 20 are needed")
    with training():
        from lm.experiments.range_test import PLOT, TABLE, RangeTest, run_range_test

        test = RangeTest(args.lowest, args.highest, args.steps)
        output = run_range_test(test, arguments, args.config, args.output)
        print_suggestion(test)
        print(f"written: {output}: {TABLE}, {PLOT}")


def print_suggestion(test: "RangeTest") -> None:
    """Prints where the smoothed loss is lowest, and a third of that learning rate."""
    from lm.experiments.range_test import HALF_WINDOW, suggest

    lowest, suggestion = suggest(test.rates, test.losses)
    loss = min(filter(math.isfinite, smooth(test.losses, HALF_WINDOW)))
    if test.diverged:
        print(f"diverged at step {len(test.rates):,}, learning rate {test.rates[-1]:.2g}")
    else:
        print(f"did not diverge up to {test.rates[-1]:.2g}")
    print(f"the smoothed loss is lowest, {loss:.3f}, at {lowest:.2g}")
    print(f"suggestion: --model.learning_rate {suggestion:g} (a third of that)")
