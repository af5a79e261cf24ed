"""Prepares the arguments of `lm fit` and `lm validate` for Lightning's parser, and shortens the parser's errors."""

import os
import re
import sys
import textwrap
from pathlib import Path

from lm.machine.signals import is_first_process
from lm.runs.checkpoint import find_checkpoint
from lm.runs.folder import CONFIG, TOKENIZER
from lm.runs.manifest import read_manifest
from lm.training.config_files import check_config, is_set, read
from tokenization import InputError
from tokenization.errors import did_you_mean

IGNORED = ("PL_TRAINER_", "PL_FIT_", "PL_VALIDATE_", "PL_CONFIG")  # environment variables that Lightning documents


def arrange(argv: list[str]) -> list[str]:
    """Moves configurations to the front, so that settings override them, and expands a run's folder to its settings.

    Checks each configuration; InputError names the file.
    """
    command, *words = argv
    if command == "validate" and words and not words[0].startswith("-"):
        words[:1] = run_settings(Path(words[0]))
    configs, settings, left = [], [], iter(words)
    for word in left:
        name, equals, path = word.partition("=")
        if name not in ("-c", "--config"):
            settings.append(word)
            if Path(path or word).suffix in (".yaml", ".yml", ".json") and Path(path or word).is_file():
                read(Path(path or word))  # a group's settings, as in --model FILE
            continue
        path = path if equals else next(left, "")
        if not path or path.startswith("-"):
            raise InputError(f"{name} names no file; give a configuration: {name} configs/demo.yaml")
        if Path(path).is_file():
            check_config(Path(path))
        configs.append(f"--config={path}")
    return [command, *configs, *settings]


def run_settings(run: Path) -> list[str]:
    """Returns the settings that validate a run, given its folder or one of its checkpoints."""
    checkpoint = find_checkpoint(run)
    read_manifest(checkpoint)
    folder = checkpoint.parent
    own = {"config": folder / CONFIG, "trainer.default_root_dir": folder, "ckpt_path": checkpoint}
    own |= {"data.tokenizer": folder / TOKENIZER} if (folder / TOKENIZER).is_dir() else {}
    return [f"--{name}={value}" for name, value in own.items()]


def explain(message: str, argv: list[str], names: list[str]) -> str:
    """Returns the parser's error on one line, with the name that was probably meant.

    names: those of all settings.
    """
    configs = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    if missing := [path for path in configs if not Path(path).exists()]:
        return f"{missing[0]}: no such file; -c names a configuration, such as configs/demo.yaml"
    if not configs and message.endswith("Got value: None"):
        return f"give a configuration: `lm {argv[0]} -c configs/demo.yaml`"
    message = textwrap.shorten(message, 400)  # it may quote a whole file
    if unknown := re.search(r"unrecognized arguments: --([\w.]+)", message):
        message += did_you_mean(unknown[1], names)
    if unknown := re.search(r"does not accept option '([\w.]+)'", message):
        name = unknown[1]
        wrong = [path for path in configs if Path(path).is_file() and is_set(read(Path(path)), name)]
        message = f"{', '.join(wrong or configs)}: there is no setting {name}{did_you_mean(name, names)}"
    return f"{message}; `lm fit --print_config` shows every setting"


def one_line(message: str) -> str:
    """Extracts a class's own error from jsonargparse's report of every type that it tried."""
    reason = re.search(r"Problem with given class_path '[\w.]*\.(\w+)':\s*(.*)", message)
    return f"{reason[1]}: {reason[2]}" if reason else textwrap.shorten(message, 400)


def warn_of_variables() -> None:
    """Warns of environment variables that Lightning documents and a run ignores."""
    names = ", ".join(name for name in sorted(os.environ) if name.startswith(IGNORED))
    if names and is_first_process():
        print(f"lm: {names} in the environment has no effect; -c and the command line set everything", file=sys.stderr)
