"""Proves that a run of two hosts, started as torchrun or SLURM would, is one run or none."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.launchers import SLURM, TORCHRUN
from helpers.processes import free_port, wait_until
from helpers.runs import same

from lm.runs.checkpoint import load_checkpoint
from lm.runs.folder import LOCK
from lm.runs.manifest import read_manifest

# --- two hosts -------------------------------------------------------------------------------------------------------

STEPS = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", "--checkpoints.every_n_steps=2",
         "--trainer.limit_val_batches=2", "--data.batch_size=2", "--samples.max_new_tokens=0")  # fmt: skip
ENDLESS = (*STEPS, "--trainer.max_steps=200000", "--trainer.val_check_interval=100000")


@pytest.fixture
def two_hosts(fork_server, environment, monkeypatch, tmp_path):
    """start(arguments of each host): what torchrun starts on hosts a and b, each in a folder of that name."""

    def start(*arguments: list[object], launcher: str = "torchrun", **variables: str | None):
        if launcher == "torchrun":
            environment(TORCHRUN | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"})
        else:
            environment(SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"})
        environment({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"})
        environment(variables)
        processes = []
        for rank, (host, command) in enumerate(zip("ab", arguments, strict=True)):
            (tmp_path / host).mkdir(exist_ok=True)
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path / host)
                ranks = ("RANK", "GROUP_RANK") if launcher == "torchrun" else ("SLURM_PROCID", "SLURM_NODEID")
                for name, value in {**dict.fromkeys(ranks, str(rank)), "HOST_NAME": host}.items():
                    patch.setenv(name, value)
                processes.append(fork_server.start(command, tmp_path / f"{host}.log"))
        return processes

    def said(host: str) -> str:
        return (tmp_path / f"{host}.log").read_text()

    start.said = said
    return start


@pytest.fixture(scope="module")
def one_process(lm, fit_arguments, tmp_path_factory) -> Path:
    """The run that two processes shall equal."""
    run = tmp_path_factory.mktemp("one") / "run"
    more = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6")
    assert lm(*fit_arguments(run, *STEPS, *more)).code == 0
    return run


def test_without_a_shared_disk(two_hosts, one_process, lm, fit_arguments, tmp_path):
    """A new run may begin, as the first process alone writes; to go on, each host must see the checkpoint."""
    processes = two_hosts(*[fit_arguments(Path("run"), *STEPS, "--ckpt_path=auto")] * 2)
    assert [process.wait() for process in processes] == [0, 0], two_hosts.said("a") + two_hosts.said("b")
    assert "run: holds no checkpoint" in two_hosts.said("a")
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "b/run").exists()
    expected, weights = (load_checkpoint(run / "last.ckpt")["state_dict"] for run in (one_process, tmp_path / "a/run"))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    before = (tmp_path / "a/run/last.ckpt").read_bytes()
    for log in tmp_path.glob("*.log"):
        log.unlink()
    start = time.monotonic()
    more = (*STEPS, "--trainer.max_steps=12", "--ckpt_path=auto")
    processes = two_hosts(*[fit_arguments(Path("run"), *more)] * 2)
    assert [process.wait() for process in processes] == [2, 2]
    assert time.monotonic() - start < 60
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith("lm fit: the checkpoint to begin with is run/last.ckpt, step 6, digest ")
    assert line.endswith(" on a, and none on b; all hosts need the run's folder, so put it on a disk that they share")
    assert two_hosts.said("b") == ""
    assert (tmp_path / "a/run/last.ckpt").read_bytes() == before


def test_the_first_process_alone_reads_the_weights_to_begin_with(two_hosts, one_process, lm, fit_arguments, tmp_path):
    """Host b does not have them. With FSDP, as DDP would make all weights those of the first process anyway."""
    more = (*STEPS, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    one = (*more, "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4", f"--init_from={one_process}")
    assert lm(*fit_arguments(tmp_path / "one", *one)).code == 0
    shutil.copytree(one_process, tmp_path / "a/source")
    command = fit_arguments(Path("run"), *more, "--trainer.strategy=fsdp", "--init_from=source")
    processes = two_hosts(command, command)
    assert [process.wait() for process in processes] == [0, 0], two_hosts.said("a") + two_hosts.said("b")
    assert "starting with the weights of source/best.ckpt\n" in two_hosts.said("a")
    expected, weights = (
        load_checkpoint(run / "last.ckpt")["state_dict"] for run in (tmp_path / "one", tmp_path / "a/run")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_slurms_warning_to_one_task_ends_both(two_hosts, fit_arguments, tmp_path):
    """In srun's environment: there Lightning would save and requeue the job by itself."""
    run = tmp_path / "run"
    first, second = two_hosts(*[fit_arguments(run, *ENDLESS)] * 2, launcher="SLURM", SLURM_JOB_ID="41")
    wait_until((run / "last.ckpt").exists)
    assert (run / LOCK).read_text().endswith('"job": "41"}')
    os.kill(second.pid, signal.SIGUSR1)
    assert [first.wait(60), second.wait(60)] == [143, 0]
    assert not list(run.glob("hpc_ckpt_*"))
    assert read_manifest(run / "last.ckpt")["step"] > 0


REFUSALS = {  # settings of host b, what a says
    "another setting": (("--trainer.max_steps=7",), "trainer.max_steps is 6 on a, and 7 on b; all processes need"),
    "no data": (("--data.val_path=nowhere.bin",), "b: nowhere.bin: no such token file"),
    "other weights": (("--init_from=x",), "init_from is not set on a, and set on b; all processes need"),
    "a mistyped setting": (("--trainer.max_step=7",), "b: "),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_one_host_refuses_ends_both(case, two_hosts, fit_arguments, tmp_path):
    settings, message = REFUSALS[case]
    arguments = fit_arguments(tmp_path / "run", *STEPS)
    processes = two_hosts(arguments, [*arguments, *settings])
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith(f"lm fit: {message}")
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "run").exists()


def test_hosts_that_would_not_validate_the_same(two_hosts, one_process):
    command = ["validate", one_process, "--trainer.accelerator=cpu"]
    processes = two_hosts(command, [*command, "--trainer.limit_val_batches=1"])
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line == (
        "lm validate: trainer.limit_val_batches is 2 on a, and 1 on b; all processes need the same settings"
    )
    assert two_hosts.said("b") == ""


@pytest.mark.slow
def test_two_hosts_validate_as_one(two_hosts, one_process):
    command = ["validate", one_process, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    processes = two_hosts(command, command)
    assert [process.wait() for process in processes] == [0, 0]
    best = load_checkpoint(one_process / "best.ckpt")["callbacks"]["Checkpoints"]["best_loss"]
    assert float(re.search(r"val/loss\D+([\d.]+)", two_hosts.said("a"))[1]) == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_before_they_train_ends_both(two_hosts, fit_arguments, tmp_path):
    """At twelve moments from the first line on, whichever of them hears it."""
    for number in range(12):
        run = tmp_path / str(number)
        processes = two_hosts(*[fit_arguments(run, *ENDLESS)] * 2)
        wait_until((run / LOCK).exists)
        time.sleep(number * 0.05)
        start = time.monotonic()
        os.kill(processes[number % 2].pid, signal.SIGTERM)
        codes = [process.wait(60) for process in processes]
        said = two_hosts.said("a") + two_hosts.said("b")
        assert set(codes) <= {143, 2} or codes == [143, 0], (codes, said)  # 0: the signal came after all had begun
        assert time.monotonic() - start < 30
        assert "Traceback" not in said
        assert not (run / LOCK).exists()


def test_a_lock_that_the_first_process_respects_ends_both(two_hosts, fit_arguments, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).write_text('{"host": "elsewhere", "pid": 7}')
    processes = two_hosts(*[fit_arguments(run, *STEPS)] * 2)
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = two_hosts.said("a").splitlines()
    assert line.startswith(f"lm fit: {run}: is locked by process 7 of host elsewhere")
    assert two_hosts.said("b") == ""


def test_names_that_other_hosts_cannot_resolve(two_hosts, fit_arguments, tmp_path):
    processes = two_hosts(*[fit_arguments(tmp_path / "run", *STEPS)] * 2, GLOO_SOCKET_IFNAME=None)
    assert [process.wait() for process in processes] == [2, 2]
    (line,) = [line for line in two_hosts.said("a").splitlines() if line.startswith("lm fit: ")]
    assert "stands for 127.0.0.1, at which other hosts cannot reach it; set GLOO_SOCKET_IFNAME" in line
    assert two_hosts.said("b") == ""
    assert not (tmp_path / "run").exists()


def test_of_two_that_share_the_weights_one_is_killed(two_hosts, fit_arguments, tmp_path):
    """The other cannot gather them any more, and waits for nothing; a signal to one ends both, and saves."""
    run = tmp_path / "run"
    arguments = fit_arguments(run, *ENDLESS, "--trainer.strategy=fsdp", "--checkpoints.every_n_steps=20")
    first, second = two_hosts(arguments, arguments)
    wait_until((run / "last.ckpt").exists)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert first.wait(60) not in (0, -9)
    (line,) = [line for line in two_hosts.said("a").splitlines() if line.startswith("stopped after step")]
    assert f"--ckpt_path {run / 'last.ckpt'}` resumes from step" in line
    step = read_manifest(run / "last.ckpt")["step"]
    before = load_checkpoint(run / "last.ckpt")
    first, second = two_hosts(*[[*arguments, f"--ckpt_path={run / 'last.ckpt'}"]] * 2)
    wait_until(lambda: (run / LOCK).exists() and read_manifest(run / "last.ckpt")["step"] > step)
    os.kill(second.pid, signal.SIGTERM)
    assert [first.wait(60), second.wait(60)] == [143, 0]
    after = load_checkpoint(run / "last.ckpt")
    assert after["global_step"] > step == before["global_step"]
    assert not same(after["state_dict"], before["state_dict"])
