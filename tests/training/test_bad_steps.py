"""Proves that a step with a loss or gradient that is not finite is skipped and counted, that many in a row end a run,
and that nobody reads the device for it."""

from pathlib import Path

import pytest
import torch
from helpers.events import read_events
from helpers.faults import spoil_gradient, spoil_loss, watch_weights
from helpers.runs import SETTINGS, STEPS

from lm.optim.adamw import AdamW
from lm.runs.checkpoint import load_checkpoint
from lm.runs.manifest import read_manifest
from lm.training import nonfinite
from tokenization import TokenFile

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


def test_what_is_saved_of_a_bad_step_is_what_it_was_trained_on(lm, fit_arguments, token_data, monkeypatch, tmp_path):
    """In short windows, as long as these last."""
    spoil_loss(monkeypatch, {2, 3, 4})
    short = ("--data.short_context=4", "--data.short_steps=6", "--model.max_skipped_steps=3")
    assert lm(*fit_arguments(tmp_path / "run", *SETTINGS, *short)).code == 2
    saved = torch.load(tmp_path / "run" / "nonfinite-step-4.pt", weights_only=True)
    inputs, targets = nonfinite_windows(token_data)[3]
    assert torch.equal(saved["inputs"], inputs.reshape(-1, 4))
    assert torch.equal(saved["targets"], targets.reshape(-1, 4))


def nonfinite_windows(token_data: Path):
    from lm.data.windows import RandomWindows

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
