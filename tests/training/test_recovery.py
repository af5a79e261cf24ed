"""Proves that a run survives: after a signal, a failure or numbers that are none it goes on as if nothing had been,
with neither a gap nor a point twice in its curves; and that two runs never share a folder."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers.events import read_events
from helpers.faults import Moment, send, spoil_gradient, spoil_loss, watch_weights
from helpers.processes import start, wait_until
from helpers.runs import SETTINGS, STEPS, TIMED, same

from lm.optim.adamw import AdamW
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.events import read_curves
from lm.runs.folder import LOCK, delete_leftovers
from lm.runs.lock import run_lock
from lm.runs.manifest import read_manifest
from lm.runs.newest import find_newest, make_complete
from lm.training import nonfinite, saving
from lm.training.module import LanguageModel
from lm.training.samples import TextSamples
from lm.training.throughput import Throughput
from tokenization import InputError, TokenFile


@pytest.fixture(scope="module")
def whole(lm, fit_arguments, tmp_path_factory) -> dict[str, Path]:
    """Unbroken runs of 14 steps: validated at 4, 8, 12 and 14, and the same with steps of two batches."""
    folder = tmp_path_factory.mktemp("whole")
    for name, settings in VARIANTS.items():
        assert lm(*fit_arguments(folder / name, *SETTINGS, *settings)).code == 0
    return {name: folder / name for name in VARIANTS}


VARIANTS: dict[str, list[str]] = {
    "one": [],
    "two": ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"],
}


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
    if variant == "two" and name == "training_step":
        count = 2 * count - 1  # in the middle of a step of two batches
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        Moment(LanguageModel, name, count, send(signum)).arm(patch)
        result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, *VARIANTS[variant]))
    assert result.code == 128 + signum
    assert read_manifest(tmp_path / "run" / "last.ckpt")["step"] == step
    assert f"resumes from step {step}" in result.out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    again = lm("fit", "-c", tmp_path / "run" / "config.yaml", "--ckpt_path", "auto")
    assert (again.code, again.err) == (0, "")
    assert_joined(tmp_path / "run", whole[variant])


ENDLESS = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000", "--checkpoints.every_n_steps=20"]


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


def test_a_clock_that_is_behind_loses_no_curve(lm, fit_arguments, whole, monkeypatch, tmp_path):
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
    assert_joined(run, whole["one"])
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
    "while the weights change": (("lm.optim.adamw", "adamw_update", 7 * 20 + 3), 6),
    "in a sample": ((TextSamples, "on_validation_end", 2, "after"), 6),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_saves_what_is_whole(case, lm, fit_arguments, whole, monkeypatch, tmp_path):
    (owner, name, count, *after), step = FAILURES[case]
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    with monkeypatch.context() as patch:
        Moment(owner, name, count, fail, bool(after)).arm(patch)
        with pytest.raises(Broken):
            lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert read_manifest(tmp_path / "run" / "last.ckpt")["step"] == step
    assert lm("fit", "-c", tmp_path / "run" / "config.yaml", "--ckpt_path", "auto").code == 0
    assert_joined(tmp_path / "run", whole["one"])


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


def test_a_full_disk_does_not_end_a_run(lm, fit_arguments, whole, monkeypatch, tmp_path):
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
    assert_joined(tmp_path / "run", whole["one"])


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_a_bad_step_is_skipped_and_counted(spoil, lm, fit_arguments, monkeypatch, tmp_path):
    spoil(monkeypatch, {6, 7})
    seen = watch_weights(monkeypatch)
    assert lm(*fit_arguments(tmp_path / "run", *SETTINGS)).code == 0
    assert all(map(torch.equal, seen[5], seen[7]))
    assert not all(map(torch.equal, seen[7], seen[8]))
    assert all(tensor.isfinite().all() for tensor in seen[13])
    skipped = dict(read_events(tmp_path / "run")[0]["train/skipped_steps"])
    assert [skipped[step] for step in range(1, STEPS + 1)] == [0] * 5 + [1] + [2] * 8
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["skipped_steps"] == {"total": 2, "in_a_row": 0}


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_many_bad_steps_in_a_row_end_the_run(spoil, lm, fit_arguments, token_data, monkeypatch, tmp_path):
    spoil(monkeypatch, {2, 8, 9, 10})
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, *SETTINGS, "--model.max_skipped_steps=3", "--trainer.accumulate_grad_batches=2"))
    assert result.code == 2
    *validations, line = result.err.splitlines()
    words = "the validation loss is nan; it is not finite in 5 of 5 batches"
    assert validations == ([f"lm fit: step {step}: {words}" for step in (2, 8)] if spoil is spoil_loss else [])
    assert line.startswith(
        "lm fit: loss or gradient was not finite in 3 steps in a row, up to step 10 (batches 18 to 19,"
    )
    assert f"{run / 'last.ckpt'} is the last good checkpoint, of step 6" in line
    assert read_manifest(run / "last.ckpt")["step"] == 6
    saved = torch.load(run / "nonfinite-step-10.pt", weights_only=True)
    assert (saved["step"], saved["batches"]) == (10, [18, 19])
    windows = nonfinite_windows(token_data)
    assert torch.equal(saved["inputs"], torch.cat([windows[18][0], windows[19][0]]))
    assert torch.equal(saved["targets"], torch.cat([windows[18][1], windows[19][1]]))


def nonfinite_windows(token_data: Path):
    from lm.training.windows import RandomWindows

    return RandomWindows(TokenFile.open(token_data / "train.bin").tokens, 16, 8, seed=0, num_batches=20)


def test_a_run_that_diverges_stops_and_says_so(lm, fit_arguments, tmp_path):
    steps = ["--trainer.max_steps=40", "--model.learning_rate=1e20", "--model.max_gradient_norm=.inf"]
    result = lm(*fit_arguments(tmp_path / "run", *steps, "--checkpoints.every_n_steps=1"))
    assert result.code == 2
    assert "10 steps in a row, up to step 11" in result.err
    assert (
        f"{tmp_path / 'run' / 'last.ckpt'} is the last good checkpoint, of step 1; lower model.learning" in result.err
    )


def test_a_finite_loss_is_spread_without_a_change():
    weight = torch.tensor([0.1, -3.7, 1e-30], requires_grad=True)
    plain = (weight**2).sum()
    (expected,) = torch.autograd.grad(plain, weight, retain_graph=True)
    spread = nonfinite.spread_nonfinite(plain)
    (gradient,) = torch.autograd.grad(spread, weight, retain_graph=True)
    assert torch.equal(spread, plain)
    assert torch.equal(gradient, expected)
    for bad in (torch.nan, torch.inf, -torch.inf):
        (gradient,) = torch.autograd.grad(nonfinite.spread_nonfinite(plain + bad), weight, retain_graph=True)
        assert gradient.isnan().all()


def adamw_steps(take: torch.Tensor | None, device: str = "cpu") -> list[torch.Tensor]:
    """Three steps, with `take` for the second of them -> the weight after each."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], device=device))
    optimizer, seen = AdamW([weight], lr=0.1), []
    for step in range(3):
        bad = torch.nan if step == 1 and take is not None else 0.2
        weight.grad = torch.tensor([0.3, bad, -1.0], device=device)
        optimizer.take = take if step == 1 else None
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


def test_the_device_itself_can_skip_a_step():
    """What a GPU does, where nobody waits to learn whether the step was good."""
    first, second, third = adamw_steps(torch.tensor(False))
    assert torch.equal(first, second)
    assert third.isfinite().all()
    assert not torch.equal(second, third)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    other = torch.nn.Parameter(weight.detach().clone())
    plain, taking = AdamW([weight], lr=0.1), AdamW([other], lr=0.1)
    taking.take = torch.tensor(True)
    for _ in range(3):
        weight.grad, other.grad = torch.tensor([0.3, -1.0]), torch.tensor([0.3, -1.0])
        plain.step(), taking.step()
    torch.testing.assert_close(weight, other)


def test_nobody_reads_the_device():
    """A meta tensor has no value: whoever asked for one would raise."""
    skipped = nonfinite.SkippedSteps()
    take = skipped.count(torch.empty((), device="meta"))
    assert (take.device.type, skipped.total.device.type, skipped.in_a_row.device.type) == ("meta",) * 3
    assert adamw_steps(take, "meta")[2].device.type == "meta"
    nonfinite.spread_nonfinite(torch.empty((), device="meta", requires_grad=True)).backward()


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


def test_what_a_killed_run_left_is_swept(lm, fit_arguments, whole, tmp_path):
    run = Path(shutil.copytree(whole["one"], tmp_path / "run"))
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


# --- which checkpoint ------------------------------------------------------------------------------------------------


def test_auto_takes_the_newest_that_verifies_and_says_why(lm, fit_arguments, whole, tmp_path):
    run = tmp_path / "run"
    auto = ("--ckpt_path", "auto", "--checkpoints.keep_every_n_steps=5", "--trainer.default_root_dir", run)
    result = lm(*fit_arguments(run, *SETTINGS), *auto)
    assert result.code == 0
    assert f"--ckpt_path auto: {run}: holds no checkpoint; a new run begins" in result.out
    steps = {path.name: read_manifest(path)["step"] for path in run.glob("*.ckpt")}
    assert steps.pop("best.ckpt") in (4, 8, 12, 14)
    assert steps == {"last.ckpt": 14, "step-5.ckpt": 5, "step-10.ckpt": 10}
    result = lm(*fit_arguments(run, *SETTINGS), *auto)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith(f"{run / 'last.ckpt'}: step 14, the newest of 4 that verifies\nnothing is left to do\n")
    (run / "best.ckpt").unlink()
    damaged = bytearray((run / "last.ckpt").read_bytes())
    damaged[2000] ^= 1
    (run / "last.ckpt").write_bytes(damaged)
    (run / "other.ckpt").write_bytes(b"nothing")
    path, reasons = find_newest(run)
    assert path == run / "step-10.ckpt"
    assert "other.ckpt: is not a checkpoint" in reasons[0]
    assert "last.ckpt: is damaged" in reasons[1]
    assert reasons[2].endswith("step-10.ckpt: step 10, the newest of 4 that verifies")
    result = lm(*fit_arguments(run, *SETTINGS), *auto)
    assert (result.code, result.err) == (0, "")
    assert f"resuming from {run / 'step-10.ckpt'}, step 10" in result.out
    a, b = load_checkpoint(run / "last.ckpt"), load_checkpoint(whole["one"] / "last.ckpt")
    assert same(a["state_dict"], b["state_dict"])
    for name in ("last", "step-5", "step-10"):
        (run / f"{name}.ckpt").write_bytes(b"nothing")
    (run / "best.ckpt").unlink(missing_ok=True)
    result = lm(*fit_arguments(run, *SETTINGS), *auto)
    assert (result.code, result.out) == (2, "")
    assert f"{run}: none of its 4 checkpoints verifies" in result.err


def test_verify(lm, whole, tmp_path):
    run = Path(shutil.copytree(whole["one"], tmp_path / "run"))
    result = lm("verify", run)
    assert (result.code, result.err) == (0, "")
    assert f"{run / 'last.ckpt'}: whole, step 14, {(run / 'last.ckpt').stat().st_size:,} bytes" in result.out
    assert result.out.count("config.yaml is the one it was saved with") == 2
    (run / "config.yaml").write_text("changed")
    assert "not the one it was saved with" in lm("verify", run / "last.ckpt").out
    with open(run / "best.ckpt", "ab") as file:
        file.write(b"x")
    result = lm("verify", run)
    assert result.code == 2
    assert result.err.startswith(f"lm verify: {run / 'best.ckpt'}: is ")


# --- changed inputs --------------------------------------------------------------------------------------------------


def test_other_data_is_refused_unless_one_wants_it(lm, whole, token_data, tmp_path):
    from tokenization import Tokenizer

    run = Path(shutil.copytree(whole["one"], tmp_path / "run"))
    (tmp_path / "more.txt").write_text((token_data / "train.txt").read_text()[:-100])
    Tokenizer.load(token_data / "tok").encode_files([tmp_path / "more.txt"], tmp_path / "more.bin", num_processes=1)
    old, new = (
        TokenFile.open(path).description.data_sha256[:12] for path in (token_data / "train.bin", tmp_path / "more.bin")
    )
    going_on = ["fit", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.default_root_dir", run]
    for name in ("train", "val"):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        result = lm(*going_on, "--trainer.max_steps=20", f"--data.{name}_path={tmp_path / 'more.bin'}")
        assert (result.code, result.out) == (2, "")
        assert (
            f"{tmp_path / 'more.bin'}: is not the data that the checkpoint was trained with (digest {new}, not"
            in result.err
        )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    allowed = ("--allow_changed_data=true", "--data.batch_size=4", "--data.seed=3")
    result = lm(*going_on, "--trainer.max_steps=20", f"--data.train_path={tmp_path / 'more.bin'}", *allowed)
    assert (result.code, result.err) == (0, "")
    assert f"  from here on  {tmp_path / 'more.bin'}: digest {old} -> {new}" in result.out
    assert "  from here on  data.batch_size: 8 -> 4" in result.out
    assert "  from here on  data.seed: 0 -> 3" in result.out
    assert yaml.safe_load((run / "config.yaml").read_text())["allow_changed_data"] is False  # it counts once


def test_every_changed_setting_is_announced(lm, whole, tmp_path):
    run = Path(shutil.copytree(whole["one"], tmp_path / "run"))
    going_on = ["fit", "-c", run / "config.yaml", "--ckpt_path=last", "--trainer.default_root_dir", run]
    changes = ["--trainer.max_steps=16", "--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=2"]
    changes += ["--seed_everything=5", "--samples.prompt=Tom", "--checkpoints.keep_every_n_steps=7"]
    result = lm(*going_on, *changes, "--norms.every_n_steps=0", "--data.num_workers=0", "--model.eps=1e-7")
    assert (result.code, result.err) == (0, "")
    announced = [line for line in result.out.splitlines() if "from here on" in line]
    assert sorted(announced) == [
        "  from here on  checkpoints.keep_every_n_steps: None -> 7",
        "  from here on  eps: 1e-08 -> 1e-07",
        "  from here on  max_steps: 14 -> 16",
        "  from here on  norms.every_n_steps: 10 -> 0",
        "  from here on  samples.prompt: Once upon a time -> Tom",
        "  from here on  seed_everything: 0 -> 5",
        "  from here on  trainer.limit_val_batches: 5 -> 2",
        "  from here on  trainer.precision: 32-true -> bf16-mixed",
    ]
    checkpoint = load_checkpoint(run / "last.ckpt")
    assert checkpoint["config"]["trainer.precision"] == "bf16-mixed"
    del checkpoint["config"]  # as older versions saved
    save_checkpoint(checkpoint, run / "last.ckpt")
    result = lm(*going_on, "--trainer.max_steps=18", "--trainer.precision=32-true")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("from here on") == 1


def test_a_checkpoint_of_weights_alone_is_refused(lm, whole, tmp_path):
    run = Path(shutil.copytree(whole["one"], tmp_path / "run"))
    checkpoint = load_checkpoint(run / "last.ckpt")
    save_checkpoint(
        {key: checkpoint[key] for key in ("state_dict", "hyper_parameters", "global_step")}, run / "last.ckpt"
    )
    going_on = ["fit", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt", "--trainer.default_root_dir", run]
    result = lm(*going_on)
    assert (result.code, result.out) == (2, "")
    assert "holds only weights, and no state to resume from" in result.err


def test_what_an_attempt_without_a_checkpoint_has_drawn_is_void(lm, fit_arguments, tmp_path):
    arguments = fit_arguments(tmp_path / "run", "--trainer.max_steps=4")
    for _ in range(2):
        assert lm(*arguments).code == 0
        scalars, texts = read_events(tmp_path / "run")
        assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4]
        assert len(texts["sample/text_summary"]) == 1
        for path in (tmp_path / "run").glob("*.ckpt"):  # as if it had been killed before
            path.unlink()


def test_a_kept_step_is_complete_after_a_kill_behind_best(tmp_path):
    """best.ckpt is saved first: a run that goes on from it keeps the step, too."""
    (tmp_path / "best.ckpt").write_bytes(b"state")
    make_complete(tmp_path / "best.ckpt", "step-30.ckpt")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("best.ckpt", "last.ckpt", "step-30.ckpt"), b"state"
    )
    (tmp_path / "step-30.ckpt").unlink()  # as a user does to save space
    for name in ("last.ckpt", "best.ckpt"):
        make_complete(tmp_path / name, "step-30.ckpt")
        assert not (tmp_path / "step-30.ckpt").exists()
