"""Shared by the harness: the unbroken run, and the figures printed at the end.

Each test of the harness comes in two sizes: a short one in the suite, a long one behind the marker torture.
"""

import random
import time
from pathlib import Path

import pytest
from helpers.processes import wait_until
from helpers.runs import LONGER

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def unbroken(fork_server, fit_arguments, tmp_path_factory) -> tuple[Path, float]:
    """A run of 40 steps that nothing happens to, and the seconds that its training takes."""
    folder = tmp_path_factory.mktemp("unbroken")
    process = fork_server.start(fit_arguments(folder / "run", *LONGER), folder / "log")
    wait_until((folder / "run" / ".lock").exists)
    before = time.monotonic()
    assert process.wait() == 0, (folder / "log").read_text()
    return folder / "run", time.monotonic() - before


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
