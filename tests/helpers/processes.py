"""`lm` in processes of their own: as a user starts it, and forked from a server that has imported everything."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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


CLIENT = f'"{sys.executable}" -I -S "$(dirname "$0")/fork_server.py" "$(dirname "$0")/socket"'
COMMANDS = f"""#!/bin/sh
case "$1 $2" in
    "-m lm" | "-m tokenization") module=$2; shift 2 ;;
    "{ROOT}/lm/__main__.py "*) module=lm; shift ;;
    *) exec "{sys.executable}" "$@" ;;
esac
exec {CLIENT} "$module" "$@"
"""
WORKERS = f"""#!/bin/sh
trap "" INT
exec {CLIENT} worker "$@"
"""  # Ctrl-C is for the worker, which ends its client


@contextlib.contextmanager
def fork_server_process(python: str = COMMANDS, *arguments: str, **environment: str) -> Iterator[Path]:
    """Runs a fork server meanwhile, and yields its folder; whoever wants something of it waits until it is ready.

    The folder holds its socket, and as `python` a script that stands for the interpreter of its forks.
    arguments: pytest's, for a server of workers.
    """
    with tempfile.TemporaryDirectory() as name:  # a short path: that of a socket has 100 characters at most
        folder = Path(name)
        program, script = folder / "fork_server.py", folder / "python"
        program.symlink_to(Path(__file__).with_name("fork_server.py"))
        script.write_text(python)
        script.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen()
            number = listener.fileno()
            kind = ("commands", str(script)) if python == COMMANDS else ("workers", *arguments)
            command = [sys.executable, str(program), "serve", str(number), *kind]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}  # where a file stood, forks would seek in it
            own = ENVIRONMENT if python == COMMANDS else {}  # a worker has the environment of pytest
            settings = pipes | {"env": os.environ | own | environment, "pass_fds": [number]}
            process = subprocess.Popen(command, **settings)
        with process:
            yield folder
            process.communicate(timeout=120)


class ForkServer:
    """Runs commands in processes of their own, each forked when everything is imported.

    python is the path of an interpreter whose `-m lm` and `-m tokenization` are such forks.
    """

    def __init__(self, folder: Path) -> None:
        """folder: that of a fork_server_process, perhaps of another process's."""
        self._socket, self.python = str(folder / "socket"), str(folder / "python")

    def start(self, arguments: list[object], log: Path, module: str = "lm", **environment: str) -> Forked:
        """Starts `python -m MODULE` with arguments; it writes into a log."""
        words = [str(argument) for argument in arguments]
        with open(os.devnull) as nothing, open(log, "a") as output:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            return Forked(self._socket, module, words, streams, os.environ | ENVIRONMENT | environment)

    def run(self, arguments: list[object], log: Path) -> int:
        """Runs a command to its end and returns its exit code."""
        return self.start(arguments, log).wait()


def kill_until(line: str, done: Path, rng: random.Random) -> int:
    """Starts a line of `tokenization` again and again, with `kill -9` at random moments, until a file is there.

    Returns how often it was killed. What ended by itself must have printed no error.
    """
    command, kills = [sys.executable, "-m", "tokenization", *line.split()], 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    while not done.exists():
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.communicate(timeout=rng.uniform(0.2, 1.5 + kills / 5))[1] == b""
        kills += process.poll() is None
        process.kill()
        process.communicate()
    return kills
