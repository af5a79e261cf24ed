"""The commands of `lm`, one file each; this file has the arguments that they share.

Each file has a function `run`, which takes the arguments after the command's name, calls the library and prints the
result. Each also has HELP and `make_parser`, except `lm fit` and `lm validate`, which use Lightning's parser. This file
imports neither torch nor Lightning, so that --help comes at once.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lm.machine.devices import DEVICES, HELP
from tokenization import InputError
from tokenization.commands import ArgumentParser, output_path


def new_parser(command: str, description: str, **settings: Any) -> ArgumentParser:
    """Returns the parser of `lm COMMAND`, whose description keeps its line breaks."""
    layout = argparse.RawDescriptionHelpFormatter
    return ArgumentParser(prog=f"lm {command}", description=description, formatter_class=layout, **settings)


def add_run(parser: ArgumentParser) -> None:
    """Adds the model that a command is for."""
    words = "a run's folder, which stands for its best.ckpt, or a checkpoint"
    parser.add_argument("run", type=named_path, help=words)


def named_path(text: str) -> Path:
    """Converts the name of a run, a checkpoint or a model; an empty one comes from an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder or a checkpoint")
    return Path(text)


def add_device(parser: ArgumentParser) -> None:
    """Adds the device that the model runs on."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help=f"{HELP} (default: auto)")


def add_settings(parser: ArgumentParser) -> None:
    """Adds the configuration of an experiment's runs, and the folder of its results."""
    parser.add_argument(
        "-c", "--config", action="append", required=True, help="a configuration of `lm fit`; repeatable"
    )
    parser.add_argument(
        "--output", type=output_path, help="folder for the results (default: beside the configuration's run)"
    )


def read_with_settings(
    parser: ArgumentParser, argv: list[str], own: Mapping[str, str] = MappingProxyType({})
) -> tuple[argparse.Namespace, list[str]]:
    """Returns an experiment's own arguments, and those that it passes on to `lm fit`; InputError for useless ones.

    own: the settings that the experiment sets itself, each with the option to use instead, or the reason.
    """
    args, rest = parser.parse_known_args(argv)
    remedies = dict(own)
    for name in ("trainer.default_root_dir", "ckpt_path", "print_config"):
        remedies[name] = "--output names the folder of the results"
    for name, remedy in remedies.items():
        if any(argument.partition("=")[0] == f"--{name}" for argument in rest):
            raise InputError(f"--{name}: has no effect here; {remedy}")
    return args, [*(f"--config={path}" for path in args.config), *rest]


def show_progress(*words: str) -> None:
    """Replaces the last line of a terminal; writes nothing elsewhere."""
    if sys.stderr.isatty():
        line = "  ".join(words)[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
