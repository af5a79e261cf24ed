"""`lm` in processes of their own: as a user starts it, and forked from a server that has imported everything."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from helpers import ROOT

ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(arguments: list[object], program: tuple[object, ...] = ("-m", "lm"), **settings) -> subprocess.Popen:
    """Starts `python -m lm`, or another program of Python's, on one thread; what it writes goes into pipes."""
    command = [sys.executable, *map(str, program), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | ENVIRONMENT, **pipes | settings)


def wait_until(condition, pause: float = 0.003, seconds: float = 120) -> bool:
    """Returns as soon as the condition holds, and fails when it does not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    raise AssertionError("that has not come about")


SERVER = """
import json, os, sys
import lm.cli, lm.generation, tokenization.kernels
from lm.__main__ import main

def child(arguments, log):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.setpgid(0, 0)
    code = 1
    try:
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)

print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    arguments, log = json.loads(line)
    pid = os.fork()
    if not pid:
        child(arguments, log)
    print(pid, flush=True)
    sys.stdin.readline()  # until then its process id stays its own
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class LmServer:
    """Runs one `lm` command at a time in a process of its own, forked when everything is imported."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, arguments: list[object], log: Path) -> int:
        """Starts a command and returns its process id."""
        self._tell(json.dumps([[str(argument) for argument in arguments], str(log)]))
        return int(self._answer())

    def wait(self) -> int:
        """Returns the command's exit code; -9 after a kill -9."""
        self._tell("")
        return int(self._answer())

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, arguments: list[object], log: Path) -> int:
        self.start(arguments, log)
        return self.wait()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=120)


def has_ended(pid: int) -> bool:
    """Tells whether a child of the server has ended that has not been waited for yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
