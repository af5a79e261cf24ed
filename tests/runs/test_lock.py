"""Proves who has a run's folder when the kernel cannot say: between hosts the lock's heartbeat decides, and whoever
creates the file where there are no locks at all."""

import errno
import json
import os
import socket
import time

import pytest

from lm.runs import lock
from lm.runs.folder import LOCK
from lm.runs.lock import run_lock
from tokenization import InputError, systems


@pytest.fixture(params=["the kernel's locks", "none on this file system", "none in this system"])
def locks(request, monkeypatch):
    """With locks, and without."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "none on this file system":
        monkeypatch.setattr(systems.fcntl, "lockf", refuse)
    if request.param == "none in this system":
        monkeypatch.setattr(systems, "fcntl", None)


def leave(folder, seconds: float, **owner: object) -> None:
    """A lock that was touched so long ago."""
    (folder / LOCK).write_text(json.dumps(owner))
    os.utime(folder / LOCK, (time.time() - seconds, time.time() - seconds))


def ended_process() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.usefixtures("locks")
def test_a_lost_hosts_lock_is_taken_over(capsys, tmp_path):
    leave(tmp_path, lock.SILENT_SECONDS + 5, host="elsewhere", pid=7)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert capsys.readouterr().out == f"{tmp_path / LOCK}: was left by process 7 of host elsewhere; it is taken over\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize("owner", [{"host": "elsewhere", "pid": 7}, {"host": "elsewhere", "pid": "?"}, {}])
def test_a_living_hosts_lock_is_respected(owner, monkeypatch, tmp_path):
    leave(tmp_path, lock.SILENT_SECONDS - 5, **owner)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this host's clock is wrong
    with pytest.raises(InputError, match=r"is locked by process . of host|another run is writing to it"):
        run_lock(tmp_path).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.usefixtures("locks")
def test_the_lock_of_an_ended_process_of_this_host_counts_for_nothing(capsys, tmp_path):
    pid = ended_process()
    leave(tmp_path, 0, host=socket.gethostname(), pid=pid)
    with run_lock(tmp_path):
        pass
    assert f"was left by process {pid}, which has ended; it is taken over" in capsys.readouterr().out


def test_the_owner_touches_its_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        end = time.monotonic() + 30
        while (tmp_path / LOCK).stat().st_mtime < 1e9:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"])
def test_a_job_that_was_started_again_waits_for_its_own_lock(variable, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(variable, "123")
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.5)
    leave(tmp_path, 0, host="elsewhere", pid=7, job="other")
    with pytest.raises(InputError, match="is locked by process 7 of host elsewhere"):
        run_lock(tmp_path).__enter__()
    leave(tmp_path, 0, host="elsewhere", pid=7, job="123")
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["job"] == "123"
    waiting, taken = capsys.readouterr().out.splitlines()
    assert waiting.endswith("is locked by process 7 of host elsewhere, of this job; waiting for a sign of life")
    assert taken.endswith("was left by process 7 of host elsewhere; it is taken over")


def test_a_lock_that_another_process_has_just_taken_stays(tmp_path):
    """Two find the same lost lock; one of them is slower."""
    leave(tmp_path, 1000, host="elsewhere", pid=7)
    slow = os.open(tmp_path / LOCK, os.O_RDWR)
    os.unlink(tmp_path / LOCK)
    leave(tmp_path, 0, host="here", pid=8)
    lock._remove(tmp_path / LOCK, slow)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 8
    assert len(list(tmp_path.iterdir())) == 1
