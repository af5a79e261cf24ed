"""Short turns on the processor, asked for by a process of its own, so that this one keeps its usual ones."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenization import systems

OWN = Path("/proc/self/sched")
VERSION = [int(number) for number in re.findall(r"\d+", platform.release())[:2]]
NEEDS_TURNS = pytest.mark.skipif(
    not OWN.exists() or "se.slice" not in OWN.read_text("utf-8") or VERSION < [6, 12] or sys.platform != "linux",
    reason="Linux has chosen the length of turns itself until 6.12",
)
READ = """
import json, os, re, sys, threading
from pathlib import Path
def slices():
    return [int(re.search(r"se.slice *: *(\\d+)", (task / "sched").read_text())[1])
            for task in Path("/proc/self/task").iterdir()]
"""


def run(code: str):
    return json.loads(subprocess.run([sys.executable, "-c", READ + code], check=True, capture_output=True).stdout)


@NEEDS_TURNS
def test_a_turn_is_set_and_nothing_else():
    result = run(
        "from tokenization.systems import set_time_slice\n"
        "os.nice(5); set_time_slice(300_000); ours = slices()\n"
        "over = threading.Event(); threading.Thread(target=over.wait).start(); both = slices(); over.set()\n"
        "print(json.dumps([ours, both, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)]))"
    )
    assert result == [[300_000], [300_000] * 2, 5, 0]  # SCHED_OTHER


@NEEDS_TURNS
def test_another_scheduling_class_is_left_alone():
    before, after, policy = run(
        "from tokenization.systems import set_time_slice\n"
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); before = slices()\n"
        "set_time_slice(300_000); print(json.dumps([before, slices(), os.sched_getscheduler(0)]))"
    )
    assert before == after
    assert policy == 3  # SCHED_BATCH


@NEEDS_TURNS
def test_torchs_threads_have_short_turns():
    turns, others = run(
        "from lm.machine.contention import TURN, watching_others\n"
        "with watching_others(): import torch\n"
        "torch.set_num_threads(3); before = len(slices()); torch.ones(2**22).add(1)\n"
        "print(json.dumps([[turn == TURN for turn in slices()], len(slices()) - before]))"
    )
    assert all(turns)
    assert others >= 2


@pytest.mark.parametrize(("name", "value"), [("machine", lambda: "s390x"), ("system", "darwin"), ("bits", 2**31 - 1)])
def test_nothing_is_called_where_the_numbers_are_unknown(monkeypatch, name, value):
    owner, attribute = {"machine": (platform, "machine"), "system": (sys, "platform"), "bits": (sys, "maxsize")}[name]
    monkeypatch.setattr(owner, attribute, value)
    monkeypatch.setattr(systems.ctypes, "CDLL", lambda *_: pytest.fail("called"))
    systems.set_time_slice(100_000)


def test_a_system_that_refuses_is_left_as_it_is(monkeypatch):
    calls = []

    class Library:
        def syscall(self, number, *_):
            calls.append(number)
            return -1  # as for a container that forbids it

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(systems.ctypes, "CDLL", lambda *_: Library())
    systems.set_time_slice(100_000)
    assert calls == [315]
