"""Proves that a resumed run is the uninterrupted one bit for bit, and what may change at a resume and what may not."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.events import read_events
from helpers.runs import SETTINGS, STEPS, TIMED, assert_same_run, go_on, same

from lm.optim.schedule import cosine_warmup
from lm.runs.checkpoint import load_checkpoint
from lm.training.module import LanguageModel
from lm.training.recovery import Checkpoints


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def cut_run(lm, fit_arguments):
    """cut_run(step, folder, *settings): a run that dies when `step` steps are done."""

    def run(step: int, folder: Path, *settings: object) -> None:
        start = LanguageModel.on_train_batch_start

        def fail(self, batch, batch_idx):
            if self.global_step == step:
                raise PowerCut
            start(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "on_train_batch_start", fail)
            patch.setattr(Checkpoints, "on_exception", lambda *_: None)  # nothing can be saved any more
            with pytest.raises(PowerCut):
                lm(*fit_arguments(folder, *settings))

    return run


# --- resuming --------------------------------------------------------------------------------------------------------

CASES = {
    # step of the cut, checkpoint to go on from, its step, settings
    "saved between validations": (11, "last.ckpt", 9, []),
    "saved at a validation": (13, "last.ckpt", 12, []),
    "best": (7, "best.ckpt", 4, []),
    "saved by both": (8, "last.ckpt", 6, ["--trainer.val_check_interval=3"]),
    "before any validation": (4, "last.ckpt", 3, ["--trainer.val_check_interval=14"]),
    "accumulated": (7, "last.ckpt", 6, ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]),
    "accumulated, best": (5, "best.ckpt", 4, ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]),
    "worker": (8, "last.ckpt", 6, ["--data.num_workers=1", "--trainer.val_check_interval=5"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, lm, fit_arguments, cut_run, whole_run, tmp_path):
    cut_step, name, saved_step, settings = CASES[case]
    whole, cut = whole_run, tmp_path / "cut"
    if settings:
        whole = tmp_path / "whole"
        assert lm(*fit_arguments(whole, *SETTINGS, *settings)).code == 0
    cut_run(cut_step, cut, *SETTINGS, *settings)
    assert load_checkpoint(cut / name)["global_step"] == saved_step
    if name == "best.ckpt":  # the folder of somebody who kept only this
        (cut / "last.ckpt").unlink()
    before = set(cut.glob("events*"))
    result = lm("fit", "-c", cut / "config.yaml", "--ckpt_path", cut / name)
    assert (result.code, result.err) == (0, "")
    assert f"resuming from {cut / name}, step {saved_step}" in result.out
    (tmp_path / "again").mkdir()
    for events in set(cut.glob("events*")) - before:
        shutil.copy(events, tmp_path / "again")
    again = read_events(tmp_path / "again")[0]
    assert min(step for points in again.values() for step, _ in points) == saved_step + 1  # nothing is done twice
    (after, texts), (expected, expected_texts) = read_events(cut), read_events(whole)
    assert all(expected.pop(tag) and after.pop(tag) for tag in TIMED)
    assert after == expected  # neither a gap nor a point twice, in what TensorBoard joins
    assert texts == expected_texts
    tokens = 128 * (2 if "accumulated" in case else 1)
    assert expected["train/tokens_seen"] == [(step, tokens * step) for step in range(1, STEPS + 1)]
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(cut / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not same(a[key], b[key])] == []


@pytest.mark.parametrize("steps", [8, 10], ids=["ended at a validation", "ended between validations"])
def test_a_finished_run_trained_further_is_the_longer_run(steps, lm, fit_arguments, tmp_path):
    constant = ["--model.min_learning_rate=0.01", "--model.warmup_steps=0"]  # or the cosine would end elsewhere
    assert lm(*fit_arguments(tmp_path / "whole", *SETTINGS, *constant)).code == 0
    assert lm(*fit_arguments(tmp_path / "part", *SETTINGS, *constant, f"--trainer.max_steps={steps}")).code == 0
    arguments = ("-c", tmp_path / "part/config.yaml", "--ckpt_path", tmp_path / "part/last.ckpt")
    assert lm("fit", *arguments, f"--trainer.max_steps={STEPS}").code == 0
    (expected, _), (curves, _) = read_events(tmp_path / "whole"), read_events(tmp_path / "part")
    for tag, points in expected.items():
        if tag not in TIMED:
            assert points == [
                point
                for point in curves[tag]
                if steps != 10 or not tag.startswith(("val/", "activation_rms/", "baselines/")) or point[0] != 10
            ], tag
    a, b = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "part"))
    for key in ("state_dict", "optimizer_states", "global_step", "hyper_parameters"):
        assert same(a[key], b[key]), key


def test_the_same_command_writes_the_same_run(lm, fit_arguments, whole_run, tmp_path):
    torch.manual_seed(123)
    again = tmp_path / "again"
    result = lm(*fit_arguments(again, *SETTINGS))
    assert result.code == 0
    parameters = 2 * 320 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 64) + 5 * 16
    assert f"{again}: {parameters:,} parameters, 14 steps of 128 tokens, 32-true on cpu" in result.out
    assert_same_run(whole_run, again)


# --- a resumed run with other settings -------------------------------------------------------------------------------


def test_changed_settings_take_effect_and_are_recorded(lm, copy):
    settings = {"learning_rate": 0.5, "min_learning_rate": 0.3, "weight_decay": 0.7, "betas": [0.5, 0.6], "eps": 1e-3}
    flags = [f"--model.{name}={value}" for name, value in settings.items()]
    result = lm(*go_on(copy, "--trainer.max_steps=20", *flags))
    assert (result.code, result.err) == (0, "")
    assert "  from here on  learning_rate: 0.01 -> 0.5" in result.out
    assert "  from here on  max_steps: 14 -> 20" in result.out
    assert len(result.out.split("from here on")) == 1 + 1 + len(settings)  # those, and nothing else
    recorded = yaml.safe_load((copy / "config.yaml").read_text())
    checkpoint = load_checkpoint(copy / "last.ckpt")
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    for name, value in settings.items():
        assert recorded["model"][name] == value
        if name in group:
            assert group[name] == (tuple(value) if name == "betas" else value)
    scalars, _ = read_events(copy)
    rates = dict(scalars["lr"])
    assert [rates[step] for step in range(1, 15)] == pytest.approx(
        [cosine_warmup(s, 1e-2, 1e-3, 5, 14) for s in range(1, 15)]
    )
    assert [rates[step] for step in range(15, 21)] == pytest.approx(
        [cosine_warmup(s, 0.5, 0.3, 5, 20) for s in range(15, 21)]
    )
    assert checkpoint["global_step"] == 20


def test_the_best_stays_the_best_across_a_resume(lm, copy):
    before, best = (copy / "best.ckpt").read_bytes(), load_checkpoint(copy / "best.ckpt")["global_step"]
    assert lm(*go_on(copy, "--trainer.max_steps=20", "--model.learning_rate=10")).code == 0
    assert min(dict(read_events(copy)[0]["val/loss"]).items(), key=lambda point: point[1])[0] == best
    assert (copy / "best.ckpt").read_bytes() == before


REFUSED = {
    "d_model": (["--model.d_model=32"], "last.ckpt: was trained with model.d_model 16, not 32; leave it at 16, or"),
    "layers": (["--model.num_layers=1"], "was trained with model.num_layers 2, not 1"),
    "context": (["--model.context_length=8"], "was trained with model.context_length 16, not 8"),
    "vocabulary": (["--model.vocab_size=400"], "was trained with model.vocab_size 320, not 400"),
    "ablation": (["--model.norm_position=post"], "was trained with model.norm_position pre, not post"),
    "theta": (["--model.rope_theta=5000"], "was trained with model.rope_theta 10000.0, not 5000.0"),
    "finished": (["--trainer.max_steps=14"], "last.ckpt: is at step 14, and trainer.max_steps is 14; raise"),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "was trained with trainer.accumulate_grad_batches 1"),
    "tokenizer": (
        ["--data.tokenizer=other/tok", "--data.train_path=other/train.bin", "--data.val_path=other/valid.bin"],
        "other/tok: is not the tokenizer that the checkpoint was trained with",
    ),
    "other tokenizer's file": (
        ["--data.val_path=other/valid.bin"],
        "other/valid.bin: was encoded by another tokenizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_change_is_refused_and_changes_no_file(case, lm, copy, token_data, small, monkeypatch):
    monkeypatch.chdir(copy)
    small.save("other/tok")
    for name in ("train", "valid"):
        small.encode_files([token_data / f"{name}.txt"], f"other/{name}.bin", num_processes=1)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    settings, message = REFUSED[case]
    result = lm(*go_on(copy, "--trainer.max_steps=20", *settings))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_second_run_in_the_same_folder_is_refused(lm, fit_arguments, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = lm(*fit_arguments(copy, *SETTINGS))
    assert result.code == 2
    assert f"{copy}: already holds a run; resume it with --ckpt_path {copy / 'last.ckpt'}, or" in result.err
    other = shutil.copytree(copy, tmp_path / "other")
    result = lm(*go_on(copy, f"--trainer.default_root_dir={other}", "--trainer.max_steps=20"))
    assert (result.code, result.out) == (2, "")
    assert f"{other}: already holds a run" in result.err
    assert (other / "last.ckpt").read_bytes() == (copy / "last.ckpt").read_bytes()
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_in_another_folder_is_whole_there(lm, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    settings = ["--trainer.max_steps=20", "--model.learning_rate=10", f"--trainer.default_root_dir={new}"]
    assert lm(*go_on(copy), *settings).code == 0
    assert {path.name for path in new.iterdir()} >= {"best.ckpt", "last.ckpt", "config.yaml", "tokenizer"}
    validations = dict(read_events(new)[0]["val/loss"])
    assert load_checkpoint(new / "best.ckpt")["global_step"] == min(validations, key=lambda step: validations[step])
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_trial_run_leaves_a_run_as_it_was(lm, fit_arguments, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for folder in (copy, tmp_path / "new"):
        assert lm(*fit_arguments(folder, "--trainer.fast_dev_run=true")).code == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
