"""Several processes: of two runs for one folder one wins, whatever the moment; and of two that train together, one
that is killed brings the other to its end, from which they go on exactly."""

import json
import os
import signal
import time
from pathlib import Path

import helpers
import pytest
import torch
from helpers.events import read_events
from helpers.processes import ForkServer, start, wait_until
from helpers.runs import TIMED, same

from lm.runs.checkpoint import load_checkpoint
from lm.runs.manifest import read_manifest


@pytest.mark.parametrize("races", [40, pytest.param(1000, marks=pytest.mark.torture)])
@pytest.mark.parametrize("locks", ["with", "without"])
def test_of_two_runs_one_has_the_folder(races, locks, rng, figure, tmp_path):
    program = (Path(helpers.__file__).with_name("races.py"), tmp_path, races, locks, rng.randrange(1 << 32))
    out, errors = start([], program).communicate()
    assert errors == ""
    assert json.loads(out.splitlines()[-1]) == [["refused", "won"]] * races
    assert [(tmp_path / str(number) / "winners").read_text() for number in range(races)] == ["x"] * races
    figure(
        f"{races} races of two processes for one folder, half of them over a stale lock, {locks} the kernel's locks:"
        " one winner each"
    )


@pytest.mark.parametrize("races", [pytest.param(10, marks=pytest.mark.torture)])
def test_of_two_commands_one_trains(races, fit_arguments, figure, tmp_path):
    for number in range(races):
        run = tmp_path / str(number)
        processes = [start(fit_arguments(run, "--trainer.max_steps=400")) for _ in range(2)]
        errors = [process.communicate()[1] for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 2], errors
        (line,) = [line for error in errors for line in error.splitlines()]
        assert "another run is writing to it" in line or "already holds a run" in line
        assert read_manifest(run / "last.ckpt")["step"] == 400
    figure(f"{races} races of two `lm fit`: one trained each time, the other said why not")


# --- two that train together -----------------------------------------------------------------------------------------

TOGETHER = (
    "--trainer.devices=2",
    "--trainer.strategy=ddp",
    "--trainer.max_steps=40",
    "--trainer.val_check_interval=20",
    "--trainer.limit_val_batches=2",
    "--data.batch_size=2",
    "--checkpoints.every_n_steps=5",
    "--samples.max_new_tokens=3",
)


def second_process(first: int) -> int:
    """The process that the first has started with the same command: a fork, whose client has its number as a name."""
    for client in Path(f"/proc/{first}/task/{first}/children").read_text().split():
        if b"\0fit\0" in Path(f"/proc/{client}/cmdline").read_bytes():
            return int(Path(f"/proc/{client}/comm").read_text())
    raise AssertionError("no second process")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def train_together(fork_server: ForkServer, arguments: list[object], run: Path) -> None:
    log = run.with_suffix(".log")
    assert fork_server.run(arguments, log) == 0, log.read_text()


@pytest.fixture(scope="module")
def whole(fork_server, fit_arguments, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("together") / "run"
    train_together(fork_server, fit_arguments(run, *TOGETHER), run)
    return run


def resume_together(fork_server: ForkServer, fit_arguments, run: Path, whole: Path) -> None:
    """Goes on with a run, whose last checkpoint is then the unbroken run's."""
    train_together(fork_server, fit_arguments(run, *TOGETHER, "--ckpt_path=auto"), run)
    a, b = load_checkpoint(whole / "last.ckpt"), load_checkpoint(run / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "global_step", "callbacks"):
        assert same(a[key], b[key]), key
    assert all(torch.isfinite(weight).all() for weight in b["state_dict"].values())


@pytest.mark.parametrize("victim", ["second", pytest.param("first", marks=pytest.mark.torture)])
def test_of_two_one_is_killed_and_they_go_on(victim, whole, fork_server, fit_arguments, figure, tmp_path):
    run = tmp_path / "run"
    process = fork_server.start(fit_arguments(run, *TOGETHER), tmp_path / "log")
    wait_until(lambda: (run / "last.ckpt").exists())
    other = second_process(process.pid)
    killed, survivor = (other, process.pid) if victim == "second" else (process.pid, other)
    os.kill(killed, signal.SIGKILL)
    before = time.monotonic()
    wait_until(lambda: not is_running(survivor))
    seconds = time.monotonic() - before
    assert process.wait() != 0
    assert seconds < 60
    step = read_manifest(run / "last.ckpt")["step"]
    assert step < 40
    resume_together(fork_server, fit_arguments, run, whole)
    (scalars, texts), (expected, expected_texts) = read_events(run), read_events(whole)
    for tag in TIMED:
        scalars.pop(tag), expected.pop(tag)
    assert (scalars, texts) == (expected, expected_texts)
    figure(f"two processes train, the {victim} is killed: the other ends after {seconds:.1f} s; resumed from step"
           f" {step}, weights and curves equal the unbroken run's")  # fmt: skip


@pytest.mark.torture
def test_a_signal_stops_both_at_one_step(whole, fork_server, fit_arguments, figure, tmp_path):
    run = tmp_path / "run"
    process = start(fit_arguments(run, *TOGETHER))
    wait_until(lambda: (run / "last.ckpt").exists())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    step = read_manifest(run / "last.ckpt")["step"]
    resume_together(fork_server, fit_arguments, run, whole)
    figure(f"two processes, SIGTERM to the first: exit code 143, resumed from step {step}, equal to the unbroken run")
