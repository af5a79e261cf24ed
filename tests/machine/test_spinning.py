"""Proves that threads which wait for each other spin briefly beside other programs, and only then."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lm import __main__
from lm.commands.fit import training
from lm.machine import contention, waiting
from lm.machine.torch_inside import openmp
from lm.machine.waiting import wait_briefly

# A product of two threads, after which one waits for the next: the processor time of each tells for how long it spins.
SPINNING = """
import time, torch
from lm.machine.waiting import wait_briefly
torch.set_num_threads(2)
x = torch.ones(256, 256)
def spent():
    start = time.process_time()
    for _ in range(10):
        x @ x
        time.sleep(0.02)
    return time.process_time() - start
spent()
print(spent())
for briefly in (True, True, False, False, True):
    wait_briefly(briefly)
    print(spent())
"""


@pytest.mark.skipif(openmp() is None, reason="torch has no GNU OpenMP here")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads on one core never spin for long")
def test_threads_spin_briefly_and_long_again():
    environment = {name: value for name, value in os.environ.items() if name not in waiting.SETTINGS}
    done = subprocess.run([sys.executable, "-c", SPINNING], env=environment, capture_output=True, text=True)
    assert not done.stderr
    first, brief, again, long, longer, briefer = map(float, done.stdout.split())
    assert max(brief, again, briefer) < 0.7 * min(first, long, longer)


LIBRARY = SimpleNamespace(omp_get_num_procs=lambda: 4)


class Recorded:
    """An idle team, without threads."""

    def __init__(self, library, size):
        assert library is LIBRARY
        self.size, self.dismissed = size, 0

    def dismiss(self):
        self.dismissed += 1


@pytest.fixture
def idle(monkeypatch):
    """Where all that an idle team needs is there."""
    for name in waiting.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "IdleTeam", Recorded)
    monkeypatch.setattr(waiting, "openmp", lambda: LIBRARY)
    monkeypatch.setattr(waiting, "_idle", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def test_a_team_is_begun_once_and_dismissed_once(idle):
    wait_briefly(False)
    assert waiting._idle is None
    wait_briefly(True)
    team = waiting._idle
    wait_briefly(True)
    assert waiting._idle is team
    assert not team.dismissed
    wait_briefly(False)
    wait_briefly(False)
    assert waiting._idle is None
    assert team.dismissed == 1


@pytest.mark.parametrize("name", waiting.SETTINGS)
def test_the_environment_takes_precedence(idle, monkeypatch, name):
    monkeypatch.setenv(name, "5")
    wait_briefly(True)
    assert waiting._idle is None


def test_one_thread_never_waits(idle, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    wait_briefly(True)
    assert waiting._idle is None


@pytest.mark.parametrize(("cores", "threads", "size"), [(2, 2, 2), (4, 2, 4), (2, 4, 2), (64, 32, 34), (400, 4, None)])
def test_all_threads_are_more_than_there_are_cores(idle, monkeypatch, cores, threads, size):
    monkeypatch.setattr(LIBRARY, "omp_get_num_procs", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    wait_briefly(True)
    assert getattr(waiting._idle, "size", None) == size
    assert size is None or threads + size - 1 > cores  # OpenMP counts all but the thread that begins the second team


def test_a_thread_that_cannot_begin_is_done_without(idle, monkeypatch):
    def begin(library, size):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(waiting, "IdleTeam", begin)
    wait_briefly(True)
    wait_briefly(False)
    assert waiting._idle is None


def test_another_openmp(idle, monkeypatch):
    monkeypatch.setattr(waiting, "openmp", lambda: None)
    wait_briefly(True)
    assert waiting._idle is None


@pytest.mark.parametrize("busy", [True, False])
def test_what_is_imported_begins_to_wait_as_others_demand(monkeypatch, busy):
    told = []
    others = SimpleNamespace(look=lambda: True, in_the_way=busy)
    monkeypatch.setattr(contention, "OtherPrograms", lambda threads: others)
    monkeypatch.setattr(waiting, "wait_briefly", told.append)
    for command in ("generate", "fit"):
        __main__.find_command(command)
    with training():
        assert told == [busy] * 3
    __main__.find_command("verify")
    monkeypatch.delitem(sys.modules, "torch")
    with contention.watching_others():
        pass
    others.look = lambda: False  # too short to tell
    __main__.find_command("generate")
    assert told == [busy] * 3
