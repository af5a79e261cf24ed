"""Proves that today's code goes on with a run of November 2026, validates it, writes with it and exports it.

What is expected was recorded when the run was made; see fixtures/old_run/README.md.
"""

import shutil

import pytest
import torch
from helpers import FIXTURES
from helpers.events import read_events
from safetensors.torch import load_file

from lm.runs.checkpoint import load_checkpoint, save_checkpoint

VALIDATION_LOSS = {20: 4.72508, 24: 4.653077, 30: 4.613358}
TRAINING_LOSS = {21: 4.732973, 30: 4.601742}
TEXT = "Once upon a timentBou sisheTereu.re b d ln wee lB pre min\n"  # temperature 0.6, seed 2


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """A copy of the old run, with the current folder where its configuration expects it."""
    shutil.copytree(FIXTURES / "old_run", tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "run" / "tokenizer", tmp_path / "tok")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_it_verifies(lm, old_run):
    result = lm("verify", "run")
    assert (result.code, result.err) == (0, "")
    assert "intact, step 20" in result.out
    assert "config.yaml is the one it was saved with" in result.out


def test_it_is_resumed(lm, old_run):
    """To the end that it had then; nothing is said to have changed, and no callback begins anew."""
    before = load_checkpoint("run/last.ckpt")
    result = lm("fit", "-c", "run/config.yaml", "--ckpt_path", "auto")
    assert (result.code, result.err) == (0, "")
    assert "step 20" in result.out
    assert "from here on" not in result.out
    scalars, _ = read_events(old_run)
    assert dict(scalars["val/loss"]) == pytest.approx({step: VALIDATION_LOSS[step] for step in (24, 30)}, abs=1e-4)
    losses = dict(scalars["train/loss"])
    assert sorted(losses) == list(range(21, 31))
    assert {step: losses[step] for step in TRAINING_LOSS} == pytest.approx(TRAINING_LOSS, abs=1e-4)
    after = load_checkpoint("run/last.ckpt")
    assert after["global_step"] == 30
    for part in ("state_dict", "callbacks", "hyper_parameters", "TokenDataModule"):
        assert after[part].keys() >= before[part].keys(), part
    assert after["callbacks"]["StopWhenRisen"]["first"] == before["callbacks"]["StopWhenRisen"]["first"]
    assert after["callbacks"]["Checkpoints"]["best_loss"] == pytest.approx(VALIDATION_LOSS[30], abs=1e-4)


def test_it_is_validated(lm, old_run):
    result = lm("validate", "run")
    assert (result.code, result.err) == (0, "")
    line = next(line for line in result.out.splitlines() if "val/loss" in line)
    assert float(line.replace("│", " ").split()[-1]) == pytest.approx(VALIDATION_LOSS[20], abs=1e-4)


def test_it_generates(lm, old_run):
    settings = ("--max-new-tokens", 24, "--temperature", 0.6, "--seed", 2)
    result = lm("generate", "run", "--prompt", "Once upon a time", *settings)
    assert result.code == 0
    assert result.out == TEXT


def test_it_is_exported(lm, old_run):
    result = lm("export", "run", "--format", "safetensors", "--output", "old.safetensors")
    assert (result.code, result.err) == (0, "")
    weights = {f"model.{name}": value for name, value in load_file("old.safetensors").items()}
    expected = load_checkpoint("run/last.ckpt")["state_dict"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_it_is_exported_for_others(format, lm, old_run):
    result = lm("export", "run", "--format", format, "--output", "exported")
    assert (result.code, result.err) == (0, "")


def test_it_keeps_its_best(lm, old_run):
    """Its checkpoints do not say of which text their best loss is."""
    checkpoint = load_checkpoint("run/last.ckpt")
    checkpoint["callbacks"]["Checkpoints"]["best_loss"] = 1.5
    for name in ("best", "last"):
        save_checkpoint(checkpoint, old_run / f"{name}.ckpt")
    assert lm("fit", "-c", "run/config.yaml", "--ckpt_path", "auto").code == 0
    assert [load_checkpoint(f"run/{name}.ckpt")["global_step"] for name in ("best", "last")] == [20, 30]
