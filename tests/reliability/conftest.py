"""Shared by the harness: a server that forks `lm` commands, the unbroken run, and the figures printed at the end.

Each test of the harness comes in two sizes: a short one in the suite, a long one behind the marker torture.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FIGURES = pytest.StashKey[list[str]]()
SETTINGS = [
    "--trainer.max_steps=40",
    "--trainer.val_check_interval=10",
    "--checkpoints.every_n_steps=2",
    "--checkpoints.keep_every_n_steps=15",
    "--samples.max_new_tokens=5",
]

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
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, arguments: list[object], log: Path) -> int:
        """-> its process id."""
        self._tell(json.dumps([[str(argument) for argument in arguments], str(log)]))
        return int(self._answer())

    def wait(self) -> int:
        """-> the exit code; -9 after a kill -9."""
        self._tell("")
        return int(self._answer())

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, arguments: list[object], log: Path) -> int:
        self.start(arguments, log)
        return self.wait()


@pytest.fixture(scope="session")
def server():
    server = LmServer()
    yield server
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait(timeout=120)


@pytest.fixture(scope="session")
def unbroken(server, fit_arguments, tmp_path_factory) -> tuple[Path, float]:
    """A run of 40 steps that nothing happens to, and the seconds that its training takes."""
    folder = tmp_path_factory.mktemp("unbroken")
    server.start(fit_arguments(folder / "run", *SETTINGS), folder / "log")
    wait_until((folder / "run" / ".lock").exists)
    before = time.monotonic()
    assert server.wait() == 0, (folder / "log").read_text()
    return folder / "run", time.monotonic() - before


def has_ended(pid: int) -> bool:
    """A child of the server, which has not been waited for yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_until(condition, pause: float = 0.003, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    raise AssertionError("that has not come about")


@pytest.fixture
def rng(request) -> random.Random:
    """Other moments every time; the seed is printed where a test fails."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


@pytest.fixture
def figure(request):
    """figure(text): to be printed at the end, and to stand in docs/reliability.md."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config) -> None:
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("reliability")
        for text in figures:
            terminalreporter.write_line(text)
