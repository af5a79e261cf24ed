"""Proves that a run with `model.dropout` resumes bit for bit, is validated without it, and numbers its masks like its
batches, on any number of devices."""

import json
import signal
from types import SimpleNamespace

import pytest
from helpers.events import read_events
from helpers.faults import Moment, send
from helpers.runs import SETTINGS, same

from lm.data.loaders import InOrder
from lm.model.dropout import Dropout
from lm.runs.checkpoint import load_checkpoint
from lm.training.module import LanguageModel

DROPOUT = "--model.dropout=0.2"


def test_a_resumed_run_is_the_uninterrupted_one(whole_run, lm, fit_arguments, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = lm(*fit_arguments(whole, *SETTINGS, DROPOUT))
    assert (result.code, "final loss" in result.out) == (0, False)  # the law of the forecast is not for it
    with pytest.MonkeyPatch.context() as patch:
        Moment(LanguageModel, "training_step", 6, send(signal.SIGTERM)).arm(patch)
        assert lm(*fit_arguments(run, *SETTINGS, DROPOUT)).code == 143
    assert lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto").code == 0
    a, b = load_checkpoint(whole / "last.ckpt"), load_checkpoint(run / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert same(a[key], b[key]), key
    curves, plain = read_events(whole)[0], read_events(whole_run)[0]
    assert read_events(run)[0]["val/loss"] == curves["val/loss"]
    assert all(a != b for a, b in zip(curves["train/loss"], plain["train/loss"], strict=True))
    losses, step = dict(curves["val/loss"]), a["global_step"]
    found = lm("validate", whole / "last.ckpt")
    assert float(found.out.split("val/loss")[1].split()[1]) == pytest.approx(losses[step], rel=1e-6)


def test_masks_are_numbered_like_batches(lm, fit_arguments, tmp_path, monkeypatch):
    drawn, draw = [], Dropout.draw

    def recording(self, seed, batch, *rest):
        drawn.append((seed, batch))
        draw(self, seed, batch, *rest)

    monkeypatch.setattr(Dropout, "draw", recording)
    more = ("--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6")
    result = lm(*fit_arguments(tmp_path / "run", DROPOUT, "--data.seed=5", *more))
    assert (result.code, result.err) == (0, "")
    assert drawn == [(5, number) for number in range(6)]


def test_devices_take_turns_at_the_masks_as_at_the_batches():
    for world in (1, 2, 3):
        for rank in range(world):
            trainer = SimpleNamespace(accumulate_grad_batches=6 // world, world_size=world)
            batches = list(InOrder(range(24), num_replicas=world, rank=rank, shuffle=False))
            for index, number in enumerate(batches):
                step = index // trainer.accumulate_grad_batches
                task = SimpleNamespace(trainer=trainer, global_step=step, global_rank=rank)
                assert LanguageModel._batch_number(task, index) == number


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"dropout is {share}; it must be at least 0 and at most 0.99998"):
        LanguageModel(vocab_size=8, context_length=4, d_model=8, num_layers=1, num_heads=1, dropout=share)


def test_lm_account_counts_the_masks(lm):
    sizes = ("--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2", "--model.vocab_size=64", "--json")
    plain, more = (
        json.loads(lm("account", "gpt2-small", *sizes, *given).out)["peak_bytes"] for given in ((), (DROPOUT,))
    )
    assert more > plain
