"""Proves that a run with `model.ema_decay` trains as without, validates and keeps the average, and can be resumed."""

import json
import shutil
import signal

import pytest
import torch
from helpers.events import read_events
from helpers.faults import Moment, send
from helpers.runs import SETTINGS, same

from lm.runs.checkpoint import load_checkpoint, load_model, save_checkpoint, verify
from lm.training.module import LanguageModel
from tokenization import InputError

DECAY = 0.6
EMA = f"--model.ema_decay={DECAY}"


@pytest.fixture(scope="module")
def averaged(lm, fit_arguments, tmp_path_factory):
    """The run of `whole_run` with an average, and its weights after each step."""
    folder, seen = tmp_path_factory.mktemp("averaged") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        step = LanguageModel.optimizer_step

        def optimizer_step(self, *args, **kwargs):
            step(self, *args, **kwargs)
            seen.append({name: weight.detach().clone() for name, weight in self.named_parameters()})

        patch.setattr(LanguageModel, "optimizer_step", optimizer_step)
        result = lm(*fit_arguments(folder, *SETTINGS, EMA))
    assert (result.code, result.err) == (0, "")
    return folder, seen


def expected_average(seen, name):
    average = seen[0][name].double()
    for t, weights in enumerate(seen[1:], start=2):
        d = min(DECAY, (1 + t) / (10 + t))
        average = d * average + (1 - d) * weights[name].double()
    return average


def test_it_trains_as_without_and_keeps_the_average(averaged, whole_run):
    folder, seen = averaged
    checkpoint, plain = load_checkpoint(folder / "last.ckpt"), load_checkpoint(whole_run / "last.ckpt")
    assert same(checkpoint["average"]["trained"], dict(plain["state_dict"]))
    assert same(checkpoint["optimizer_states"], plain["optimizer_states"])
    for name in seen[0]:
        torch.testing.assert_close(checkpoint["state_dict"][name].double(), expected_average(seen, name), msg=name)
    model = load_model(folder / "last.ckpt")  # what generate, serve, test and export read
    assert same(dict(model.state_dict()), {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items()})
    (curves, texts), (plain_curves, plain_texts) = read_events(folder), read_events(whole_run)
    assert curves["train/loss"] == plain_curves["train/loss"]
    assert dict(curves["val/loss"]).keys() == dict(plain_curves["val/loss"]).keys()
    assert all(a != b for a, b in zip(curves["val/loss"], plain_curves["val/loss"], strict=True))
    assert texts != plain_texts  # the samples are the average's


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_validate_finds_the_loss_of_the_run(name, averaged, lm):
    folder, _ = averaged
    losses = dict(read_events(folder)[0]["val/loss"])
    step = load_checkpoint(folder / name)["global_step"]
    assert step in losses
    result = lm("validate", folder / name)
    assert (result.code, result.err) == (0, "")
    found = float(result.out.split("val/loss")[1].split()[1])
    assert found == pytest.approx(losses[step], rel=1e-6)


@pytest.mark.parametrize(
    ("moment", "more"),
    [(("training_step", 6), []), (("validation_step", 2), []), (("validation_step", 2), ["--model.optimizer=muon"])],
    ids=["in a step", "in a validation", "muon"],
)
def test_a_resumed_run_is_the_uninterrupted_one(moment, more, averaged, lm, fit_arguments, tmp_path):
    whole, run = averaged[0], tmp_path / "run"
    if more:
        whole = tmp_path / "whole"
        assert lm(*fit_arguments(whole, *SETTINGS, EMA, *more)).code == 0
    with pytest.MonkeyPatch.context() as patch:
        Moment(LanguageModel, *moment, send(signal.SIGTERM)).arm(patch)
        assert lm(*fit_arguments(run, *SETTINGS, EMA, *more)).code == 143
    assert lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto").code == 0
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(run / name)
        for key in ("state_dict", "average", "optimizer_states", "global_step"):
            assert same(a[key], b[key]), (name, key)
    assert read_events(run)[0]["val/loss"] == read_events(whole)[0]["val/loss"]


def test_an_average_begins_or_ends_where_a_run_resumes(averaged, whole_run, lm, tmp_path):
    """Either way training goes on with the weights themselves; a new average begins with its own first step."""
    ended = {}
    for name, run, decay in (("ends", averaged[0], 0.0), ("begins", whole_run, DECAY)):
        more = ("--trainer.max_steps=16", f"--trainer.default_root_dir={tmp_path / name}", f"--model.ema_decay={decay}")
        result = lm("fit", "-c", run / "config.yaml", "--ckpt_path", run / "last.ckpt", *more)
        assert (result.code, result.err) == (0, "")
        assert "ema_decay: " in result.out
        ended[name] = load_checkpoint(tmp_path / name / "last.ckpt")
    assert "average" not in ended["ends"]
    assert ended["begins"]["average"]["steps"] == 2
    assert same(ended["begins"]["average"]["trained"], dict(ended["ends"]["state_dict"]))


def test_weights_of_training_that_are_lost_are_noticed(averaged, tmp_path):
    checkpoint = load_checkpoint(averaged[0] / "last.ckpt")
    next(iter(checkpoint["average"]["trained"].values()))[0, 0] = torch.nan
    save_checkpoint(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="has diverged"):
        verify(tmp_path / "bad.ckpt")


def test_lm_account_counts_it(lm):
    sizes = ("--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2", "--model.vocab_size=64", "--json")
    plain, more = (
        json.loads(lm("account", "gpt2-small", *sizes, *ema).out) for ema in ((), ("--model.ema_decay=0.9",))
    )
    weights = plain["state_bytes"]["parameters"]
    assert more["state_bytes"] == plain["state_bytes"] | {"averaged weights": weights}
    assert more["peak_bytes"] == plain["peak_bytes"] + weights


def test_weights_that_are_cut_are_refused(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", EMA, "--trainer.strategy=fsdp", "--trainer.devices=1"))
    assert result.code == 2
    assert f"model.ema_decay {DECAY} needs whole weights, which trainer.strategy fsdp cuts" in result.err


def test_an_average_is_not_taken_for_the_weights_that_are_trained(averaged, lm, fit_arguments, tmp_path):
    """Where FSDP resumes, which has loaded the average by the time that anyone can tell."""
    shutil.copytree(averaged[0], tmp_path / "run")
    fsdp = ("--trainer.strategy=fsdp", "--trainer.devices=1", "--trainer.max_steps=20", "--ckpt_path=auto")
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, *fsdp))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert result.code == 2
    assert "holds averaged weights (model.ema_decay)" in result.err
    assert "resume it without fsdp" in result.err
