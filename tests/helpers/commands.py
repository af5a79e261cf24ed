"""The command `lm` within the process of the tests."""

import contextlib
import functools
import inspect
import io
from dataclasses import dataclass
from typing import Any


@dataclass
class Result:
    code: int
    out: str
    err: str


@functools.cache
def trace_once() -> None:
    """Lets a run look up what it expects to keep where a run of this shape has found it out before.

    Every `lm fit` traces its model for it, which takes a fifth of a short run's time.
    """
    from lm.accounting import activations
    from lm.model.transformer import MODEL_SETTINGS

    used = {*MODEL_SETTINGS, "z_loss"}
    trace, known = activations._traced, {}

    def look_up(settings, batch_size, how):
        shape = repr((sorted((name, settings[name]) for name in used & settings.keys()), batch_size, how))
        if shape not in known:
            known[shape] = trace(settings, batch_size, how)
        return dict(known[shape])

    activations._traced = look_up


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


def run_lm(*arguments: object) -> Result:
    """Runs the command and returns its exit code and what it wrote."""
    from lm.__main__ import TRAINING, main

    if arguments and arguments[0] in TRAINING:
        trace_once()
        build_parser_once()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
    return Result(code, *(stream.buffer.getvalue().decode() for stream in streams))  # type: ignore[attr-defined]
