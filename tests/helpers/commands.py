"""The command `lm` within the process of the tests."""

import contextlib
import io
from dataclasses import dataclass


@dataclass
class Result:
    code: int
    out: str
    err: str


def run_lm(*arguments: object) -> Result:
    """Runs the command and returns its exit code and what it wrote."""
    from lm.__main__ import main

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
    return Result(code, *(stream.buffer.getvalue().decode() for stream in streams))  # type: ignore[attr-defined]
