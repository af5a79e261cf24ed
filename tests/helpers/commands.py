"""The command `lm` within the process of the tests."""

import contextlib
import functools
import inspect
import io
import types
from dataclasses import dataclass
from typing import Any


@dataclass
class Result:
    code: int
    out: str
    err: str


@functools.cache
def log_in_place() -> None:
    """Lets Lightning log a figure that is on the right device without moving what it keeps of it.

    It would copy a description of each figure of each step, which takes a seventh of a short run's time.
    """
    import torch
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

    move = _ResultMetric.to

    def move_if_elsewhere(self: Any, device: Any, *arguments: Any, **settings: Any) -> Any:
        elsewhere = any(value.device != device for value in vars(self).values() if isinstance(value, torch.Tensor))
        return move(self, device, *arguments, **settings) if elsewhere else self

    _ResultMetric.to = move_if_elsewhere  # type: ignore[method-assign]


@functools.cache
def build_parser_once() -> None:
    """Lets a command take over the parser that one before it has built, if their settings are the same.

    It is what most of a refused command's time goes into; so is finding settings in it, which is kept, too. A process
    of its own builds one, as a user's does.
    """
    from jsonargparse import _core, _subcommands

    from lm.model.transformer import TransformerLM
    from lm.training.module import LanguageModel
    from lm.training.parser import SettingsCLI

    build, known = SettingsCLI.setup_parser, {}
    find, built, found = _subcommands.find_action_and_subcommand, set(), {}

    def take_over(self: Any, *arguments: Any) -> None:
        signatures = [str(inspect.signature(model)) for model in (LanguageModel, TransformerLM)]
        key = repr((self.asked, self.trainer_defaults, signatures))
        if key not in known:
            build(self, *arguments)
            known[key] = self.parser, self._subcommand_parsers, self._subcommand_method_arguments
            built.update([self.parser, *self._subcommand_parsers.values()])
        self.parser, self._subcommand_parsers, self._subcommand_method_arguments = known[key]

    def find_once(parser: Any, dest: str, exclude: Any = None) -> Any:
        if parser not in built:
            return find(parser, dest, exclude)
        if (parser, dest, exclude) not in found:
            found[parser, dest, exclude] = find(parser, dest, exclude)
        return found[parser, dest, exclude]

    SettingsCLI.setup_parser = take_over  # type: ignore[method-assign]
    _core.find_action_and_subcommand = _subcommands.find_action_and_subcommand = find_once  # type: ignore[assignment]


@functools.cache
def search_packages_once() -> None:
    """Lets Lightning search the installed packages for callbacks, and a class for its arguments, only once."""
    from lightning.fabric.utilities import registry
    from lightning.pytorch.utilities import argparse

    registry.entry_points = functools.cache(registry.entry_points)
    signatures = types.SimpleNamespace(signature=functools.cache(inspect.signature))
    argparse.inspect = signatures  # type: ignore[assignment]


@functools.cache
def take_plain_names_as_they_are() -> None:
    """Spares jsonargparse from splitting names without a dot, which it does some thousand times for a command."""
    from jsonargparse._namespace import Namespace, add_clash_mark

    parse = Namespace._parse_key

    def parse_key(self: Any, key: Any) -> Any:
        return (add_clash_mark(key), self, "") if type(key) is str and key.isidentifier() else parse(self, key)

    Namespace._parse_key = parse_key  # type: ignore[method-assign]


def prepare_for_many_runs() -> None:
    """Leaves out of this process's later runs what another of its runs has done already."""
    log_in_place()
    build_parser_once()
    search_packages_once()
    take_plain_names_as_they_are()


def run_lm(*arguments: object) -> Result:
    """Runs the command and returns its exit code and what it wrote."""
    from lm.__main__ import TRAINING, main

    if arguments and arguments[0] in TRAINING:
        prepare_for_many_runs()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
    return Result(code, *(stream.buffer.getvalue().decode() for stream in streams))  # type: ignore[attr-defined]
