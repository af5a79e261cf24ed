"""Proves that two runs never share a folder, and that what a killed run left there is swept or put back."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from helpers.faults import Moment
from helpers.processes import wait_until
from helpers.runs import ENDLESS, SETTINGS

from lm.runs.folder import LOCK, delete_leftovers
from lm.runs.lock import run_lock
from lm.runs.manifest import read_manifest
from lm.training.module import LanguageModel
from tokenization import InputError
from tokenization.files import HOST

# --- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_run_in_a_folder_is_refused(lm, fork_server, fit_arguments, tmp_path):
    run = tmp_path / "run"
    process = fork_server.start(fit_arguments(run, *ENDLESS), tmp_path / "log")
    wait_until((run / "last.ckpt").exists)
    for arguments in (fit_arguments(run, *SETTINGS, f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=200000"),):
        result = lm(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            f"lm fit: {run}: another run is writing to it, process {process.pid} of host {socket.gethostname()}; wait"
            " for it to end, or name another folder with --trainer.default_root_dir\n"
        )
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads((run / LOCK).read_text())["pid"] == process.pid
    result = lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto", "--trainer.fast_dev_run", "true")
    assert result.code == 0  # a trial run takes no lock
    step = read_manifest(run / "last.ckpt")["step"]
    short = [f"--trainer.max_steps={step + 2}", "--trainer.val_check_interval=1"]
    result = lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto", *short)
    assert (result.code, result.err) == (0, "")
    assert f"was left by process {process.pid}, which has ended; it is taken over" in result.out
    assert not (run / LOCK).exists()


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "pid": 7}')
    with pytest.raises(InputError, match=r"is locked by process 7 of host elsewhere; if that run is over, delete .*"):
        run_lock(tmp_path).__enter__()
    (tmp_path / LOCK).unlink()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not (tmp_path / LOCK).exists()


def test_what_a_killed_run_left_is_swept(lm, fit_arguments, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    half = run / ".last.ckpt.123.tmp"
    half.write_bytes(b"half a checkpoint")
    kept = run / ".notes.tmp"
    kept.write_text("not ours")
    result = lm("fit", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.max_steps=16",
                "--trainer.default_root_dir", run)  # fmt: skip
    assert result.code == 0
    assert f"{half}: left half-written by a killed run; deleted" in result.out
    assert (half.exists(), kept.exists()) == (False, True)
    assert delete_leftovers(run) == []


def test_what_another_command_is_writing_stays(tmp_path):
    """As `lm consolidate` does, beside a run that is resumed meanwhile."""
    pids = os.getppid(), 999_999_999
    ours, dead = (tmp_path / f".last-consolidated.ckpt.{HOST}.{pid}.0123abcd.tmp" for pid in pids)
    for path in (ours, dead):
        path.write_bytes(b"half")
    assert delete_leftovers(tmp_path) == [dead]
    assert list(tmp_path.iterdir()) == [ours]


@pytest.mark.parametrize(
    "harm",
    [
        shutil.rmtree,
        lambda folder: (folder / "merges.txt").unlink(),
        lambda folder: (folder / "vocab.json").write_text("{}"),
    ],
    ids=["folder deleted", "file deleted", "file changed"],
)
def test_a_tokenizer_that_is_lost_during_a_run_is_put_back_and_said(lm, fit_arguments, monkeypatch, tmp_path, harm):
    run = tmp_path / "run"
    Moment(LanguageModel, "training_step", 6, lambda: harm(run / "tokenizer")).arm(monkeypatch)
    result = lm(*fit_arguments(run, *SETTINGS))
    assert result.code == 2
    assert f"{run / 'tokenizer'}: was deleted or changed during the run; restored\n" in result.out
    (line,) = result.err.splitlines()
    assert line.startswith(f"lm fit: {run / 'tokenizer'}: was deleted or changed during the run and has been restored")
    monkeypatch.undo()
    assert read_manifest(run / "last.ckpt")["step"] == 14
    assert lm("verify", run).code == 0
    assert lm("generate", run, "--max-new-tokens=1").code == 0


def test_a_lock_or_configuration_that_is_a_link_costs_nothing(lm, fit_arguments, tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    for name in (".lock", "config.yaml"):
        precious.write_text("precious")
        (run / name).symlink_to(precious)
        result = lm(*fit_arguments(run, "--trainer.max_steps=2"))
        assert precious.read_text() == "precious"
        assert result.code == (2 if name == ".lock" else 0)
        if name == ".lock":
            assert result.err == f"lm fit: {run / '.lock'}: is a symbolic link, which no run creates; delete it\n"
            (run / name).unlink()
    assert not (run / "config.yaml").is_symlink()
