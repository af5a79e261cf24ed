"""`lm` in processes of their own: as a user starts it, and forked from a server that has imported everything."""

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import ROOT
from helpers.fork_server import Forked

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A free port that no other program is likely to take before it is used.

    The system's own choice (port 0) would be one of those that it hands out to any connection, and Lightning's is.
    """
    random_ports = random.SystemRandom()  # tests seed the other one
    while True:
        port = random_ports.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port


def start(arguments: list[object], program: tuple[object, ...] = ("-m", "lm"), **settings) -> subprocess.Popen:
    """Starts `python -m lm`, or another program of Python's, on one thread; what it writes goes into pipes."""
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | ENVIRONMENT | {"MASTER_PORT": str(free_port())}
    return subprocess.Popen(command, env=environment, **pipes | settings)


def wait_until(condition, pause: float = 0.003, seconds: float = 120) -> bool:
    """Returns as soon as the condition holds, and fails when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    raise AssertionError("that has not come about")


PYTHON = f"""#!/bin/sh
case "$1 $2" in
    "-m lm" | "-m tokenization") module=$2; shift 2 ;;
    "{ROOT}/lm/__main__.py "*) module=lm; shift ;;
    *) exec "{sys.executable}" "$@" ;;
esac
exec "{sys.executable}" -I -S "$(dirname "$0")/fork_server.py" "$(dirname "$0")/socket" "$module" "$@"
"""


class ForkServer:
    """Runs commands in processes of their own, each forked when everything is imported.

    python is the path of an interpreter whose `-m lm` and `-m tokenization` are such forks.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # a short path: that of a socket has 100 characters at most
        folder = Path(self._folder.name)
        self._socket, self.python, program = str(folder / "socket"), str(folder / "python"), folder / "fork_server.py"
        program.symlink_to(Path(__file__).with_name("fork_server.py"))
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
        command = [sys.executable, str(program), "serve", self._socket, self.python]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, **pipes)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, arguments: list[object], log: Path) -> Forked:
        """Starts a command that writes into a log."""
        words = [str(argument) for argument in arguments]
        with open(os.devnull) as nothing, open(log, "a") as output:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            return Forked(self._socket, "lm", words, streams, os.environ | ENVIRONMENT)

    def run(self, arguments: list[object], log: Path) -> int:
        """Runs a command to its end and returns its exit code."""
        return self.start(arguments, log).wait()

    def end(self) -> None:
        self._process.communicate(timeout=120)
        self._folder.cleanup()
