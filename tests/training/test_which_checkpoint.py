"""Proves which checkpoint a run goes on from, and which changes of data and settings it takes, refuses or announces."""

import shutil
from pathlib import Path

import pytest
import yaml
from helpers.events import read_events
from helpers.faults import fail_to_read
from helpers.runs import SETTINGS, same

from lm.experiments.report import best as lowest
from lm.experiments.report import read_run
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.manifest import read_manifest
from lm.runs.newest import find_newest, make_complete
from tokenization import TokenFile

# --- which checkpoint ------------------------------------------------------------------------------------------------


def test_auto_takes_the_newest_that_verifies_and_says_why(lm, fit_arguments, whole_run, tmp_path):
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
    a, b = load_checkpoint(run / "last.ckpt"), load_checkpoint(whole_run / "last.ckpt")
    assert same(a["state_dict"], b["state_dict"])
    for name in ("last", "step-5", "step-10"):
        (run / f"{name}.ckpt").write_bytes(b"nothing")
    (run / "best.ckpt").unlink(missing_ok=True)
    result = lm(*fit_arguments(run, *SETTINGS), *auto)
    assert (result.code, result.out) == (2, "")
    assert f"{run}: none of its 4 checkpoints verifies" in result.err


def test_a_checkpoint_that_cannot_be_read_is_passed_over(lm, fit_arguments, whole_run, monkeypatch, tmp_path):
    """As one that is damaged: a disk may fail at any file. Nothing is lost of what is printed."""
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    fail_to_read(run / "last.ckpt", monkeypatch)
    path, reasons = find_newest(run)
    assert path == run / "best.ckpt"
    assert reasons[0] == f"passed over: {run / 'last.ckpt'}: Input/output error"
    result = lm(*fit_arguments(run, *SETTINGS, "--trainer.max_steps=16", "--ckpt_path=auto"))
    assert (result.code, result.err) == (0, "")
    assert reasons[0] in result.out
    assert "ended at step 16 of 16" in result.out


def test_verify(lm, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    result = lm("verify", run)
    assert (result.code, result.err) == (0, "")
    assert f"{run / 'last.ckpt'}: intact, step 14, {(run / 'last.ckpt').stat().st_size:,} bytes" in result.out
    assert result.out.count("config.yaml is the one it was saved with") == 2
    (run / "config.yaml").write_text("changed")
    assert "not the one it was saved with" in lm("verify", run / "last.ckpt").out
    with open(run / "best.ckpt", "ab") as file:
        file.write(b"x")
    result = lm("verify", run)
    assert result.code == 2
    assert result.err.startswith(f"lm verify: {run / 'best.ckpt'}: is ")
    assert f"{run / 'last.ckpt'}: intact" in result.out  # the others are checked, too
    with open(run / "last.ckpt", "ab") as file:
        file.write(b"x")
    result = lm("verify", run, run / "last.ckpt")
    assert (result.code, result.out) == (2, "")
    assert [line.split()[2] for line in result.err.splitlines()] == [
        f"{run / name}:" for name in ("best.ckpt", "last.ckpt", "last.ckpt")
    ]


# --- changed inputs --------------------------------------------------------------------------------------------------


def test_other_data_is_refused_unless_one_wants_it(lm, whole_run, token_data, tmp_path):
    from tokenization import Tokenizer

    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
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


def test_every_changed_setting_is_announced(lm, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
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


def test_a_checkpoint_of_weights_alone_is_refused(lm, whole_run, tmp_path):
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
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


def test_a_folder_with_any_checkpoint_holds_a_run(lm, fit_arguments, copy):
    (copy / "last.ckpt").unlink()
    result = lm(*fit_arguments(copy, *SETTINGS))
    assert (result.code, result.out) == (2, "")
    assert "already holds a run; resume it with --ckpt_path auto, or name another folder" in result.err


def test_auto_goes_on_with_the_branch_that_was_begun_last(lm, fit_arguments, tmp_path):
    run, kept = tmp_path / "run", "--checkpoints.keep_every_n_steps=5"
    assert lm(*fit_arguments(run, *SETTINGS, kept)).code == 0
    short = '--trainer.max_time={"microseconds": 1}'
    assert lm(*fit_arguments(run, *SETTINGS, kept, "--ckpt_path", run / "step-5.ckpt", short)).code == 0
    assert read_manifest(run / "last.ckpt")["step"] == 6
    assert read_manifest(run / "step-10.ckpt")["step"] == 10
    result = lm(*fit_arguments(run, *SETTINGS, kept, "--ckpt_path=auto", short))
    assert f"resuming from {run / 'last.ckpt'}, step 6" in result.out
    assert [read_manifest(run / f"{name}.ckpt").get("branch", 0) for name in ("last", "step-10")] == [1, 0]


def test_fewer_steps_than_made_are_refused_even_if_a_validation_is_due(lm, fit_arguments, tmp_path):
    run = tmp_path / "run"
    assert lm(*fit_arguments(run, *SETTINGS)).code == 0
    checkpoint = load_checkpoint(run / "last.ckpt")
    checkpoint["callbacks"]["Checkpoints"]["validation_due"] = True
    save_checkpoint(checkpoint, run / "last.ckpt")
    result = lm(*fit_arguments(run, *SETTINGS, "--ckpt_path=last", "--trainer.max_steps=7"))
    assert result.code == 2
    assert "is at step 14, and trainer.max_steps is 7; raise --trainer.max_steps" in result.err


# --- the best loss ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hard_to_beat(copy):
    """A run whose best loss is one that the model does not reach again."""
    checkpoint = load_checkpoint(copy / "last.ckpt")
    checkpoint["callbacks"]["Checkpoints"]["best_loss"] = 1.5
    checkpoint["callbacks"]["Overfitting"]["best"] = {"validation": 1.5, "training": 9.0, "step": 12}
    save_checkpoint(checkpoint, copy / "last.ckpt")
    return copy


def test_a_best_loss_is_of_the_text_that_is_validated(lm, fit_arguments, hard_to_beat):
    run, more = hard_to_beat, ["--ckpt_path=last", "--trainer.max_steps=20"]
    result = lm(*fit_arguments(run, *SETTINGS, *more))
    assert "overfitting" in result.out
    assert "the best validation loss is 1.5000, at step 12" in result.out
    assert read_manifest(run / "best.ckpt")["step"] <= 14


def test_it_begins_anew_with_other_text(lm, fit_arguments, hard_to_beat):
    run, more = hard_to_beat, ["--ckpt_path=last", "--trainer.max_steps=20", "--trainer.limit_val_batches=1"]
    result = lm(*fit_arguments(run, *SETTINGS, *more))
    assert (result.code, result.err) == (0, "")
    assert "step 14: other text is validated now, so the best loss begins anew" in result.out
    losses = {step: loss for step, loss in read_events(run)[0]["val/loss"] if step > 14}
    best = min(losses, key=losses.__getitem__)
    manifest = read_manifest(run / "best.ckpt")
    assert (manifest["step"], manifest["best_loss"]) == (best, pytest.approx(losses[best]))
    assert f"the best validation loss is {losses[best]:.4f}, at step {best}" in result.out
    assert "overfitting" not in result.out
    assert lowest(read_run(run, "run")) == f"{losses[best]:.4f} at {best}"


def test_it_begins_anew_in_another_folder(lm, fit_arguments, hard_to_beat, tmp_path):
    run, more = tmp_path / "run", ["--ckpt_path", hard_to_beat / "last.ckpt", "--trainer.max_steps=20"]
    result = lm(*fit_arguments(run, *SETTINGS, *more))
    assert (result.code, result.err) == (0, "")
    manifest = read_manifest(run / "best.ckpt")
    assert manifest["step"] > 14
    assert f"the best validation loss is {manifest['best_loss']:.4f}, at step {manifest['step']}" in result.out
