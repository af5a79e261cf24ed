"""Proves that the commands of docs/machines.md train: two agents of torchrun's find each other, and when a worker is
killed they start all workers again, which resume the run exactly; and in the environments of Kubeflow and SkyPilot,
four processes train as one that accumulates four batches does."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.processes import ENVIRONMENT, free_port, wait_until
from helpers.runs import same

from lm.runs.checkpoint import load_checkpoint
from lm.runs.manifest import read_manifest

STEPS = ("--trainer.max_steps=120", "--trainer.val_check_interval=60", "--checkpoints.every_n_steps=5",
         "--trainer.limit_val_batches=2", "--data.batch_size=2", "--samples.max_new_tokens=0")  # fmt: skip


def documented(arguments: list[object], port: int) -> list[str]:
    """The command of docs/machines.md for two agents of one process each on this machine."""
    text = (ROOT / "docs/machines.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("torchrun --nnodes 2")]
    settings = {"--nproc-per-node 8": "--nproc-per-node 1", "host-a:29500": f"127.0.0.1:{port}"}
    for there, here in settings.items():
        assert there in line
        line = line.replace(there, here)
    launcher, _, command = line.partition(" -m lm fit -c configs/demo.yaml ")
    program = [sys.executable, "-m", "torch.distributed.run", *shlex.split(launcher)[1:]]
    return [*program, "-m", "lm", *map(str, arguments), *shlex.split(command)]


@contextlib.contextmanager
def agents(arguments: list[object], log: Path):
    command = documented(arguments, free_port())
    with contextlib.ExitStack() as running:
        file = running.enter_context(open(log, "a"))
        started = [
            subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)
            for _ in range(2)
        ]
        try:
            yield started
        finally:
            for agent in started:
                if agent.poll() is None:
                    os.killpg(agent.pid, signal.SIGKILL)
                    agent.wait()


def worker(agent: int) -> int:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    (pid,) = [pid for pid in children if b"\0fit\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(pid)


@pytest.mark.slow
def test_torchrun_starts_a_killed_worker_again(fit_arguments, tmp_path):
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    with agents(fit_arguments(whole, *STEPS), log) as started:
        assert [agent.wait(300) for agent in started] == [0, 0], log.read_text()
    log.unlink()
    with agents(fit_arguments(run, *STEPS), log) as started:
        wait_until(lambda: (run / "last.ckpt").exists() and read_manifest(run / "last.ckpt")["step"] >= 10)
        os.kill(worker(started[1].pid), signal.SIGKILL)
        assert [agent.wait(300) for agent in started] == [0, 0], log.read_text()
    assert "resuming from" in log.read_text()
    expected, resumed = load_checkpoint(whole / "last.ckpt"), load_checkpoint(run / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "global_step", "callbacks"):
        assert same(expected[key], resumed[key]), key


ENVIRONMENTS = {  # what is set where the command runs, on one node with four processes
    "torchrun -m lm": {
        "PET_NNODES": "1", "PET_NPROC_PER_NODE": "4", "PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "127.0.0.1:PORT",
    },
    "torchrun --nnodes $SKYPILOT": {
        "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "4", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
        "SKYPILOT_TASK_ID": "demo",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ENVIRONMENTS)
def test_four_processes_are_one_that_accumulates(beginning, fit_arguments, lm, tmp_path):
    text = (ROOT / "docs/machines.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith(beginning)]
    launcher, _, settings = line.partition(" -m lm fit ")
    port, run = str(free_port()), tmp_path / "run"
    steps = (*STEPS, "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.devices=auto")
    program = launcher.replace("torchrun", f"{sys.executable} -m torch.distributed.run").replace("29500", port)
    arguments, more = shlex.join(map(str, fit_arguments(run, *steps))), settings[settings.index("--ckpt_path") :]
    variables = {name: value.replace("PORT", port) for name, value in ENVIRONMENTS[beginning].items()}
    environment = os.environ | ENVIRONMENT | variables
    command = ["sh", "-c", f"{program} -m lm {arguments} {more}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = (*steps, "--trainer.devices=1", "--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=8")
    assert lm(*fit_arguments(tmp_path / "one", *one)).code == 0
    expected, weights = (load_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("one", "run"))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)
