"""Proves that a run survives signals and failures: it goes on as if nothing had been, with neither a gap nor a point
twice in its curves."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.events import read_events
from helpers.faults import Moment, send
from helpers.processes import start, wait_until
from helpers.runs import ENDLESS, SETTINGS, STEPS, TIMED, same
from tensorboard.compat.tensorflow_stub.io.gfile import GFile

from lm.monitoring.samples import TextSamples
from lm.monitoring.throughput import Throughput
from lm.runs.checkpoint import load_checkpoint
from lm.runs.events import read_curves
from lm.runs.folder import LOCK
from lm.runs.manifest import read_manifest
from lm.training import saving
from lm.training.module import LanguageModel

TWO = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]


@pytest.fixture(scope="module")
def whole(whole_run, lm, fit_arguments, tmp_path_factory) -> dict[str, tuple[Path, list[str]]]:
    """Unbroken runs of 14 steps, validated at 4, 8, 12 and 14, with their settings; "two" has steps of two batches."""
    folder = tmp_path_factory.mktemp("whole") / "two"
    assert lm(*fit_arguments(folder, *SETTINGS, *TWO)).code == 0
    return {"one": (whole_run, []), "two": (folder, TWO)}


def assert_joined(cut: Path, whole: Path) -> None:
    """The same weights, optimizer, steps, curves and samples as the unbroken run's, bit for bit.

    Lightning's loops also count the batches of half a validation that was done again, to no effect.
    """
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(cut / name)
        assert a.keys() == b.keys()
        loops, other_loops = (checkpoint.pop("loops")["fit_loop"] for checkpoint in (a, b))
        batches = [counts["epoch_loop.batch_progress"]["total"]["ready"] for counts in (loops, other_loops)]
        assert batches[0] == batches[1]
        del a["epoch"], b["epoch"]
        assert [key for key in a if not same(a[key], b[key])] == [], name
    (scalars, texts), (expected, expected_texts) = read_events(cut), read_events(whole)
    for curves in (scalars, expected):
        for tag in TIMED:
            curves.pop(tag)
    assert scalars == expected
    assert texts == expected_texts
    assert sorted(path.name for path in cut.iterdir() if not path.name.startswith("events")) == [
        "best.ckpt",
        "config.yaml",
        "last.ckpt",
        "tokenizer",
    ]


class Broken(Exception):
    pass


def fail():
    raise Broken


# --- signals ---------------------------------------------------------------------------------------------------------

# where the signal comes, and the step of the checkpoint that it leaves
MOMENTS = {
    "in the first step": (("training_step", 1), 1),
    "in a step": (("training_step", 6), 6),
    "in a step with a validation": (("training_step", 8), 8),
    "in a validation": (("validation_step", 2), 4),
    "in the last step": (("training_step", STEPS), STEPS),
    "in the last validation": (("validation_step", 17), STEPS),
}


@pytest.mark.parametrize(("variant", "signum"), [("one", signal.SIGTERM), ("two", signal.SIGINT)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_and_the_run_goes_on(moment, variant, signum, lm, fit_arguments, whole, monkeypatch, tmp_path):
    (name, count), step = MOMENTS[moment]
    unbroken, settings = whole[variant]
    if variant == "two" and name == "training_step":
        count = 2 * count - 1  # in the middle of a step of two batches
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        Moment(LanguageModel, name, count, send(signum)).arm(patch)
        result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, *settings))
    assert result.code == 128 + signum
    assert read_manifest(tmp_path / "run" / "last.ckpt")["step"] == step
    assert f"resumes from step {step}" in result.out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    again = lm("fit", "-c", tmp_path / "run" / "config.yaml", "--ckpt_path", "auto")
    assert (again.code, again.err) == (0, "")
    assert_joined(tmp_path / "run", unbroken)


@pytest.mark.parametrize(("signum", "code", "forked"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)])
def test_the_exit_code_of_a_real_process(signum, code, forked, fork_server, fit_arguments, tmp_path):
    """As a user starts it, and as the fork server does, which has imported everything before."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = fit_arguments(run, *ENDLESS, "--data.num_workers=1")
    process = fork_server.start(arguments, log) if forked else start(arguments, start_new_session=True)
    wait_until((run / "last.ckpt").exists)
    os.killpg(process.pid, signum)  # as a terminal does: to the workers, too
    if forked:
        assert process.wait(30) == code, log.read_text()
        out = errors = log.read_text()
    else:
        out, errors = process.communicate(timeout=30)
        assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert f"resumes from step {read_manifest(run / 'last.ckpt')['step']}" in out
    assert not (run / LOCK).exists()


def test_a_second_interrupt_leaves_at_once(fork_server, fit_arguments, tmp_path):
    """A save that takes for ever, as on a disk that hangs."""
    run, log = tmp_path / "run", tmp_path / "log"
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from lightning.pytorch.callbacks import Callback\n"
        "from lm.training import saving\n"
        "class Slow(Callback):\n"
        "    def setup(self, *_, **__):\n"
        "        saving.Saver.save = lambda *_: (print('saving', flush=True), time.sleep(100))\n"
    )
    arguments = fit_arguments(run, *ENDLESS, "--checkpoints.every_n_steps=100000", "--trainer.callbacks+=slow.Slow")
    process = fork_server.start(arguments, log, PYTHONPATH=str(tmp_path))
    wait_until(lambda: (run / "config.yaml").exists())
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    wait_until(lambda: "saving\n" in log.read_text())
    before = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(5) == 130
    assert time.monotonic() - before < 2


def test_a_clock_that_is_behind_loses_no_curve(lm, fit_arguments, whole_run, monkeypatch, tmp_path):
    """As another computer's may be; TensorBoard and `lm report` join the files in the order of their names' stamps."""
    run = tmp_path / "run"
    for count in (6, 4):
        with monkeypatch.context() as patch:
            Moment(LanguageModel, "training_step", count, send(signal.SIGTERM)).arm(patch)
            assert lm(*fit_arguments(run, *SETTINGS, "--ckpt_path=auto")).code == 143
        newest = max(run.glob("events*"))
        parts = newest.name.split(".")
        parts[3] = str(int(parts[3]) + 86_400)  # as if it had been written tomorrow
        newest.rename(run / ".".join(parts))
    assert lm(*fit_arguments(run, *SETTINGS, "--ckpt_path=auto")).code == 0
    assert_joined(run, whole_run)
    curve = read_curves(run)["train/loss"]
    assert curve.steps == [*range(1, STEPS + 1)]
    assert curve.seconds == sorted(curve.seconds)
    assert curve.seconds[-1] < 600  # a day is not counted


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES = {
    # where it fails, and the step of the checkpoint that is left; None is that of the last regular one
    "in the forward pass": ((LanguageModel, "training_step", 8), 7),
    "in the backward pass": ((LanguageModel, "backward", 8), 7),
    "in a validation": ((LanguageModel, "validation_step", 7), 8),
    "in a callback after a step": ((Throughput, "on_train_batch_end", 8, "after"), 8),
    "while the weights change": (("lm.optim.adamw_kernel", "update", 8, "after"), 6),
    "in a sample": ((TextSamples, "on_validation_end", 2, "after"), 6),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_saves_what_is_whole(case, lm, fit_arguments, whole_run, monkeypatch, tmp_path):
    (owner, name, count, *after), step = FAILURES[case]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    with monkeypatch.context() as patch:
        Moment(owner, name, count, fail, bool(after)).arm(patch)
        with pytest.raises(Broken):
            lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert read_manifest(tmp_path / "run" / "last.ckpt")["step"] == step
    assert lm("fit", "-c", tmp_path / "run" / "config.yaml", "--ckpt_path", "auto").code == 0
    assert_joined(tmp_path / "run", whole_run)


def test_bad_weights_never_replace_good_ones(lm, fit_arguments, monkeypatch, tmp_path):
    step = LanguageModel.training_step

    def spoil(self, batch, batch_idx):
        if self.global_step == 7:
            next(self.parameters()).data[0, 0] = torch.nan
            fail()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", spoil)
    with pytest.raises(Broken):
        lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert read_manifest(tmp_path / "run" / "last.ckpt")["step"] == 6


def test_a_full_disk_does_not_end_a_run(lm, fit_arguments, whole_run, monkeypatch, tmp_path):
    save, calls = saving.Saver.save, []

    def full(self, trainer, name):
        calls.append((name, trainer.global_step))
        if trainer.global_step in (3, 4):
            raise OSError(28, "No space left on device")
        save(self, trainer, name)

    monkeypatch.setattr(saving.Saver, "save", full)
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert (result.code, result.err) == (0, "")
    assert "step 3: not saved ([Errno 28] No space left on device); earlier checkpoints are kept" in result.out
    assert calls[:2] == [("last.ckpt", 3), ("best.ckpt", 4)]
    monkeypatch.undo()
    assert_joined(tmp_path / "run", whole_run)


def test_curves_that_find_no_room_are_left_out(lm, fit_arguments, whole_run, monkeypatch, tmp_path):
    """Of what a full disk has taken half, nothing stays, and what is drawn later can be read."""
    write, full = GFile.write, []

    def write_half(self, content):
        if full:
            write(self, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write(self, content)

    def training_step(self, batch, batch_idx, step=LanguageModel.training_step):
        full[:] = [True] if 5 <= self.global_step < 7 else []  # steps 6 and 7
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GFile, "write", write_half)
    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert (result.code, result.err) == (0, "")
    line = "some figures are not drawn ([Errno 28] No space left on device); the run goes on without them"
    assert result.out.count(line) == 1
    (found, texts), (expected, expected_texts) = read_events(tmp_path / "run"), read_events(whole_run)
    assert found["train/loss"] == [(step, loss) for step, loss in expected["train/loss"] if step not in (6, 7)]
    assert (found["val/loss"], texts) == (expected["val/loss"], expected_texts)
    for name in ("last.ckpt", "best.ckpt"):
        assert read_manifest(tmp_path / "run" / name)["step"] == read_manifest(whole_run / name)["step"]


def test_a_run_that_owes_its_last_validation_alone_has_no_steps_to_go(lm, fit_arguments, monkeypatch, tmp_path):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        Moment(LanguageModel, "training_step", STEPS, send(signal.SIGTERM)).arm(patch)
        assert lm(*fit_arguments(run, *SETTINGS)).code == 143
    result = lm(*fit_arguments(run, *SETTINGS, "--ckpt_path=auto"))
    assert (result.code, result.err) == (0, "")
    assert f" {STEPS} steps of " in result.out
    assert "\n0 steps to go" in result.out
    assert f"step {STEPS}: validation loss" in result.out
    assert "final loss about" not in result.out
