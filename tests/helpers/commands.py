"""The command `lm` within the process of the tests."""

import contextlib
import functools
import io
from dataclasses import dataclass


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

    trace, known = activations._traced, {}

    def look_up(settings, batch_size, how):
        shape = repr((sorted(settings.items()), batch_size, how))
        if shape not in known:
            known[shape] = trace(settings, batch_size, how)
        return dict(known[shape])

    activations._traced = look_up


def run_lm(*arguments: object) -> Result:
    """Runs the command and returns its exit code and what it wrote."""
    from lm.__main__ import main

    if arguments[:1] == ("fit",):
        trace_once()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
    return Result(code, *(stream.buffer.getvalue().decode() for stream in streams))  # type: ignore[attr-defined]
