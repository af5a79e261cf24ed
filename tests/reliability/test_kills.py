"""Kills: a run that is killed again and again, at moments nobody has chosen, ends as the unbroken one; a save that is
killed, or fails, at any of its steps leaves a whole checkpoint; and a watcher never sees a moment without one."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.events import read_events
from helpers.processes import start, wait_until
from helpers.runs import LONGER, assert_same_run, same

from lm.runs.checkpoint import OLDER, load_checkpoint, save_checkpoint, verify
from lm.runs.folder import delete_leftovers
from lm.runs.newest import find_newest
from tokenization import InputError, files


def assert_whole(run: Path, unbroken: Path) -> None:
    """The run has everything that 40 steps leave, and equals the unbroken one."""
    assert {path.name for path in run.glob("*.ckpt")} == {"best.ckpt", "last.ckpt", "step-15.ckpt", "step-30.ckpt"}
    assert_same_run(run, unbroken)
    assert len(read_events(run)[0]["train/loss"]) == 40


def holds_lock(run: Path, pid: int) -> bool:
    try:
        return str(pid) in (run / ".lock").read_text()
    except FileNotFoundError:
        return False


def is_saving(run: Path) -> bool:
    """A save is under way, or was when the run was killed."""
    return any(run.glob(".*.ckpt.*.tmp"))


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.torture)])
def test_kill_9_at_random_moments(kills, fork_server, unbroken, fit_arguments, rng, figure, tmp_path):
    whole, seconds = unbroken
    done = finished = in_saves = 0
    while True:
        run, log = tmp_path / f"run{finished}", tmp_path / "log"
        process = fork_server.start(fit_arguments(run, *LONGER, "--ckpt_path=auto"), log)
        wait_until(lambda: process.has_ended() or holds_lock(run, process.pid))  # noqa: B023
        time.sleep(rng.uniform(0, seconds))
        if rng.random() < 0.5:  # a save is short: every other kill waits for the next one to begin
            wait_until(lambda: process.has_ended() or is_saving(run), pause=0)  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), log.read_text()
        done += code != 0
        in_saves += code != 0 and is_saving(run)
        if done >= kills:
            code = fork_server.run(fit_arguments(run, *LONGER, "--ckpt_path=auto"), log)
        if code == 0:
            assert_whole(run, whole)
            finished += 1
        if done >= kills:
            break
    figure(f"kill -9 at random moments of `lm fit`: {done} kills ({in_saves} within a save), {finished} runs finished,"
           f" {finished} equal to the unbroken one in weights and curves")  # fmt: skip


def test_kill_9_of_a_command_as_a_user_starts_it(unbroken, fit_arguments, fork_server, figure, tmp_path):
    """`python -m lm fit`, and not a fork of it."""
    whole, _ = unbroken
    arguments = fit_arguments(tmp_path / "run", *LONGER, "--ckpt_path=auto")
    process = start(arguments, stdout=subprocess.DEVNULL, stderr=None)
    wait_until((tmp_path / "run" / "last.ckpt").exists)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert fork_server.run(arguments, tmp_path / "log") == 0
    assert_whole(tmp_path / "run", whole)


# --- one save, step by step ------------------------------------------------------------------------------------------


def small_checkpoint(step: int) -> dict:
    settings = {"vocab_size": 8, "context_length": 4, "d_model": 4, "num_layers": 1, "num_heads": 1, "d_ff": 4}
    weights = {f"model.{name}": torch.full((40, 40), float(step)) for name in "abc"}
    return {"state_dict": weights, "hyper_parameters": OLDER | settings, "global_step": step}


class Faulty:
    """A file, or a function, whose calls are counted; the one that is chosen fails."""

    def __init__(self, chosen: int, fault):
        self.calls, self.chosen, self.fault = 0, chosen, fault

    def call(self, function, *arguments):
        self.calls += 1
        if self.calls == self.chosen:
            self.fault(function, *arguments)
        return function(*arguments)

    def open(self, path, mode):
        file, counter = open(path, mode), self  # noqa: SIM115
        if "x" not in mode:
            return file

        class File:
            def close(self):
                file.close()

            def write(self, data):
                return counter.call(file.write, data)

            def flush(self):
                return counter.call(file.flush)

            def fileno(self):
                return file.fileno()

        return File()


def error(number: int):
    def fault(function, *arguments):
        if function.__name__ == "write":
            function(bytes(arguments[0])[: len(arguments[0]) // 2])  # half of it has arrived
        raise OSError(number, os.strerror(number))

    return fault


def kill_before(function, *arguments):
    os._exit(9)


def kill_within(function, *arguments):
    if function.__name__ == "write":
        function(bytes(arguments[0])[: len(arguments[0]) // 2])
        function.__self__.flush()
    else:
        function(*arguments)
    os._exit(9)


def save_with_fault(path: Path, chosen: int, fault) -> None:
    """Saves step 2, with a fault at the chosen operation; their number goes to path.calls."""
    faulty, fsync, replace = Faulty(chosen, fault), os.fsync, os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "open", faulty.open, raising=False)
        patch.setattr(os, "fsync", lambda descriptor: faulty.call(fsync, descriptor))
        patch.setattr(os, "replace", lambda *names: faulty.call(replace, *names))
        save_checkpoint(small_checkpoint(2), path)
    (path.parent / "calls").write_text(str(faulty.calls))


def assert_it_ends_the_process(path: Path, chosen: int, fault) -> None:
    pid = os.fork()
    if not pid:
        try:
            save_with_fault(path, chosen, fault)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def assert_it_comes_out(path: Path, chosen: int, fault) -> None:
    with pytest.raises(OSError, match=r"No space left|Input/output error|Read-only"):
        save_with_fault(path, chosen, fault)


FAULTS = {
    "killed before": (kill_before, assert_it_ends_the_process),
    "killed within": (kill_within, assert_it_ends_the_process),
    "no space left": (error(errno.ENOSPC), assert_it_comes_out),
    "input/output error": (error(errno.EIO), assert_it_comes_out),
    "read-only": (error(errno.EROFS), assert_it_comes_out),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_every_operation_of_a_save(kind, figure, tmp_path):
    fault, assert_its_end = FAULTS[kind]
    path = tmp_path / "last.ckpt"
    save_with_fault(path, -1, None)
    operations = int((tmp_path / "calls").read_text())
    assert operations > 10
    seen = set()
    for chosen in range(1, operations + 1):
        save_checkpoint(small_checkpoint(1), path)
        assert_its_end(path, chosen, fault)
        newest, _ = find_newest(tmp_path)
        assert newest == path
        content = load_checkpoint(path)
        assert same(content, small_checkpoint(content["global_step"]))
        seen.add(content["global_step"])
        left = delete_leftovers(tmp_path)
        assert len(left) <= 1 if assert_its_end is assert_it_ends_the_process else not left
        assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "calls"}
    assert 1 in seen  # 2 where the fault came after the rename
    figure(f"a save, {kind} at each of its {operations} writes, flushes and renames: {operations} whole checkpoints")


# --- a watcher -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.torture)])
def test_a_watcher_always_sees_a_whole_checkpoint(seconds, figure, tmp_path):
    save_checkpoint(small_checkpoint(1), tmp_path / "last.ckpt")
    pid = os.fork()
    if not pid:
        try:
            for step in range(2, 1_000_000):
                save_checkpoint(small_checkpoint(step), tmp_path / ("best.ckpt" if step % 3 == 0 else "last.ckpt"))
        finally:
            os._exit(1)
    looks, steps, end = 0, set(), time.monotonic() + seconds
    try:
        while time.monotonic() < end or looks < 100:
            names = [path.name for path in tmp_path.glob("*.ckpt")]
            assert "last.ckpt" in names
            for name in names:
                steps.add(verify(tmp_path / name)["step"])
            looks += 1
    except InputError as failure:
        raise AssertionError("a moment without a whole checkpoint") from failure
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(steps) > 20
    figure(f"a watcher during {max(steps):,} saves: {looks:,} looks, a whole checkpoint every time")
