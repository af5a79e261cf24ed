"""Proves that a run may begin with short windows: the same tokens in the same order, cut by the number of the batch, so
that a resumed run makes the same cut."""

import signal
from types import SimpleNamespace

import pytest
import torch
from helpers.events import read_events
from helpers.faults import Moment, send
from helpers.runs import SETTINGS, same

from lm.data.datamodule import TokenDataModule
from lm.data.windows import check_short_windows
from lm.runs.checkpoint import load_checkpoint
from lm.training.module import LanguageModel

SHORT = ("--data.short_context=4", "--data.short_steps=5")


def batches(token_data, accumulate: int = 1, step: int = 0, **changes) -> list:
    paths = {"train_path": "train.bin", "val_path": "valid.bin", "tokenizer": "tok"}
    settings = {name: str(token_data / path) for name, path in paths.items()}
    settings |= {"context_length": 16, "vocab_size": 320, "batch_size": 3}
    data = TokenDataModule(**settings, **changes)
    trainer = {"accumulate_grad_batches": accumulate, "world_size": 1, "global_rank": 0, "max_steps": 6}
    trainer |= {"local_rank": 0, "global_step": step, "strategy": SimpleNamespace(root_device=torch.device("cpu"))}
    data.trainer = SimpleNamespace(**trainer)
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("windows", ["random", "documents"])
def test_the_first_steps_read_the_same_tokens_in_pieces(token_data, windows, accumulate):
    short = {"short_context": 4, "short_steps": 2}
    long = batches(token_data, accumulate, windows=windows)
    cut = batches(token_data, accumulate, windows=windows, **short)
    shapes = [tuple(inputs.shape) for inputs, _ in cut]
    assert shapes == [(12, 4)] * (2 * accumulate) + [(3, 16)] * (4 * accumulate)
    for whole, pieces in zip(long, cut, strict=True):
        for before, after in zip(whole, pieces, strict=True):
            assert before.flatten().tolist() == after.flatten().tolist()
    for step in (1, 2, 4):
        resumed = batches(token_data, accumulate, step, windows=windows, **short)[: (6 - step) * accumulate]
        for expected, found in zip(cut[step * accumulate :], resumed, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_resumed_run_is_the_uninterrupted_one(whole_run, lm, fit_arguments, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert lm(*fit_arguments(whole, *SETTINGS, *SHORT)).code == 0
    with pytest.MonkeyPatch.context() as patch:
        Moment(LanguageModel, "training_step", 4, send(signal.SIGTERM)).arm(patch)
        assert lm(*fit_arguments(run, *SETTINGS, *SHORT)).code == 143
    assert lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto").code == 0
    a, b = load_checkpoint(whole / "last.ckpt"), load_checkpoint(run / "last.ckpt")
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert same(a[key], b[key]), key
    curves, plain = read_events(whole)[0], read_events(whole_run)[0]
    assert read_events(run)[0]["val/loss"] == curves["val/loss"]
    assert curves["train/tokens_seen"] == plain["train/tokens_seen"]
    assert curves["train/loss"][0] != plain["train/loss"][0]  # of the first step


@pytest.mark.parametrize(
    ("length", "steps", "message"),
    [
        (None, -1, "short_steps is -1; it must be at least 0"),
        (8, 0, "short_context is 8 and short_steps 0; set both, or neither"),
        (None, 3, "short_context is None and short_steps 3; set both, or neither"),
        (0, 3, "short_context is 0; it must be a divisor of context_length 16, and less than that"),
        (5, 3, "short_context is 5; it must be a divisor"),
        (16, 3, "short_context is 16; it must be a divisor"),
    ],
)
def test_what_does_not_cut_windows_is_refused(length, steps, message):
    with pytest.raises(ValueError, match=message):
        check_short_windows(length, steps, 16)
    check_short_windows(4, 3, 16)
    check_short_windows(None, 0, 16)
