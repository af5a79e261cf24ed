"""Runs `lm fit` in a child process, for experiments that compare several runs."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm.machine.signals import exit_if_signalled

COMMAND = ("-m", "lm", "fit")


def fit(arguments: list[str], log: Path, show: Callable[[str], None], **environment: str) -> int:
    """Runs `lm fit` to its end and returns its exit code; what it prints is appended to the log.

    show: called twice a second with the newest line that the run has printed. environment: variables to set for it.
    """
    command = [sys.executable, *COMMAND, *arguments]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=os.environ | environment
        )
        with terminated_with_us(process):
            while process.poll() is None:
                exit_if_signalled()  # where a library has swallowed the exception
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                show(last_line(log))
    return process.returncode


@contextlib.contextmanager
def terminated_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Terminates the process when the experiment is interrupted; it saves its run first."""

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException:
        if process.poll() is None:
            process.terminate()
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def last_line(log: Path) -> str:
    """Returns the last line that a run has printed, or the newest state of its progress bar."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 2000))
        lines = [line.strip() for line in re.split(r"[\r\n]", file.read().decode(errors="replace"))]
    return next((line for line in reversed(lines) if line), "nothing printed")
