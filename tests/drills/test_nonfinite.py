"""The drill of numbers that are none, in a run: NaN, inf and -inf are put into weights, moments, activations, losses
and gradients. What is good stays, what is bad is named, and the exit code is not 0."""

import math
import random
import re

import pytest
from helpers.events import read_events
from helpers.nonfinite import INF, NAN, PLACES, SIX_STEPS, VALUES, assert_finite, put, slow, spoil_training

from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import load_checkpoint
from lm.runs.folder import BEST, LAST
from lm.training.module import LanguageModel

# --- weights and moments ---------------------------------------------------------------------------------------------


class Spoiler:
    """Puts the value into a tensor of the running model or optimizer, when its nth step is made."""

    def __init__(self, where: str, value: float, step: int, rng: random.Random):
        self.where, self.value, self.step, self.rng, self.name = where, value, step, rng, ""

    def arm(self, patch: pytest.MonkeyPatch) -> None:
        original, spoiler = LanguageModel.optimizer_step, self

        def optimizer_step(self, epoch, batch_idx, optimizer, *args, **kwargs):
            original(self, epoch, batch_idx, optimizer, *args, **kwargs)
            if self.global_step + 1 == spoiler.step:
                name, weight = spoiler.rng.choice(list(self.named_parameters()))
                put(
                    weight if spoiler.where == "weight" else optimizer.state[weight][spoiler.where],
                    spoiler.value,
                    spoiler.rng,
                )
                spoiler.name = name

        patch.setattr(LanguageModel, "optimizer_step", optimizer_step)


TRIALS = [("weight", NAN, 3), ("v", -INF, 6)]
MANY_TRIALS = [(where, value, step) for where in ("weight", "m", "v") for value in VALUES for step in range(1, 7)]


@pytest.mark.parametrize(
    ("where", "value", "step"),
    [*TRIALS, *(pytest.param(*trial, marks=pytest.mark.slow) for trial in MANY_TRIALS if trial not in TRIALS)],
)
def test_a_state_that_is_lost_is_never_saved(where, value, step, lm, fit_arguments, monkeypatch, tmp_path):
    run, spoiler = tmp_path / "run", Spoiler(where, value, step, random.Random(f"{where} {value} {step}"))
    spoiler.arm(monkeypatch)
    result = lm(*fit_arguments(run, *SIX_STEPS))
    assert result.code == 2
    line = result.err.splitlines()[-1]
    named = spoiler.name if where == "weight" else f"{spoiler.name} ({where})"
    assert re.match(rf"lm fit: .*{re.escape(named)}.* not finite at step {step}; .*lower model.learning_rate", line)
    steps = assert_finite(run)
    assert steps.get(LAST) == (step - 1 or None)
    assert all(saved < step for saved in steps.values())
    assert (f"is the last good checkpoint, of step {step - 1};" in line) == (step > 1)
    monkeypatch.undo()
    if step == 3:  # and the run goes on from there
        assert lm("fit", "-c", run / "config.yaml", "--ckpt_path", "auto").code == 0
        assert assert_finite(run)[LAST] == 6


# --- activations, losses and gradients of a step ---------------------------------------------------------------------


SHORT = [("activation", INF)]


@pytest.mark.parametrize(
    ("where", "value"),
    [*SHORT, *(pytest.param(w, v, marks=pytest.mark.slow) for w in PLACES for v in VALUES if (w, v) not in SHORT)],
)
def test_a_step_is_skipped_and_the_run_ends_well(where, value, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_training(monkeypatch, where, value, {2, 3})
    result = lm(*fit_arguments(tmp_path / "run", *SIX_STEPS))
    assert result.code == 0, result.err
    assert assert_finite(tmp_path / "run")[LAST] == 6
    skipped = dict(read_events(tmp_path / "run")[0]["train/skipped_steps"])
    assert [skipped[step] for step in range(1, 7)] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("where", ["gradient", *(pytest.param(where, marks=pytest.mark.slow) for where in PLACES[:2])])
def test_a_run_of_nothing_but_bad_steps_is_no_success(where, lm, fit_arguments, monkeypatch, tmp_path):
    """Although it is shorter than model.max_skipped_steps."""
    spoil_training(monkeypatch, where, NAN, set(range(1, 7)))
    result = lm(*fit_arguments(tmp_path / "run", *SIX_STEPS))
    assert result.code == 2
    assert "not finite in 6 steps in a row, up to step 6" in result.err
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize(("steps", "code", "last"), [({5, 6}, 2, 4), pytest.param({6}, 0, 6, marks=pytest.mark.slow)])
def test_a_run_that_ends_in_bad_steps_is_no_success(steps, code, last, lm, fit_arguments, monkeypatch, tmp_path):
    """Its loss may still be finite: huge weights make RMSNorm divide by infinity, and the model guesses."""
    spoil_training(monkeypatch, "gradient", INF, steps)
    result = lm(*fit_arguments(tmp_path / "run", *SIX_STEPS))
    assert (result.code, assert_finite(tmp_path / "run")[LAST]) == (code, last)
    assert ("the last 2 steps were skipped" in result.err) == (code == 2)


# --- validation ------------------------------------------------------------------------------------------------------


def spoil_validation(patch: pytest.MonkeyPatch, bad: dict[tuple[int, int], float]) -> None:
    """bad: (step, number of the batch) -> what is added to its loss."""
    forward = TransformerLM.forward
    validation_step = LanguageModel.validation_step

    def spoilt(self, batch, batch_idx):
        value = bad.get((self.global_step, batch_idx), 0.0)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(TransformerLM, "forward", lambda *args, **kwargs: forward(*args, **kwargs) + value)
            validation_step(self, batch, batch_idx)

    patch.setattr(LanguageModel, "validation_step", spoilt)


VALIDATIONS = [
    # what is bad in the validation of step 4, and what its loss then is
    ({(4, 1): NAN}, NAN, 1),
    ({(4, 0): INF, (4, 2): -INF}, NAN, 2),
    ({(4, 2): -INF}, -INF, 1),
    ({(4, 0): INF}, INF, 1),
]


@pytest.mark.parametrize(
    ("bad", "loss", "count"),
    [*VALIDATIONS[:2], *slow(VALIDATIONS[2:])],
)
def test_a_bad_batch_is_not_left_out_of_the_validation(bad, loss, count, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, bad)
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, *SIX_STEPS))
    assert result.code == 0
    assert result.err == f"lm fit: step 4: the validation loss is {loss}; it is not finite in {count} of 3 batches\n"
    drawn = dict(read_events(run)[0]["val/loss"])
    assert repr(drawn[4]) == repr(loss)
    assert math.isfinite(drawn[2] + drawn[6])
    assert assert_finite(run)[BEST] == min((2, 6), key=lambda step: drawn[step])
    assert load_checkpoint(run / LAST)["callbacks"]["Checkpoints"]["best_loss"] == min(drawn[2], drawn[6])


@pytest.mark.parametrize("value", [NAN, *(pytest.param(value, marks=pytest.mark.slow) for value in VALUES[1:])])
def test_a_run_that_ends_with_a_bad_validation_is_no_success(value, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, {(6, 1): value})
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, *SIX_STEPS))
    assert result.code == 2
    said, line = result.err.splitlines()
    assert said.startswith("lm fit: step 6: the validation loss is")
    assert line.startswith(
        f"lm fit: the run has ended at step 6 with a validation loss of {value}; {run / BEST} is the"
    )
    steps = assert_finite(run)
    assert steps[BEST] in (2, 4)
    assert steps[LAST] == 6


@pytest.mark.slow
def test_early_stopping_by_a_bad_validation_is_no_success(lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, {(2, 0): NAN})
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    result = lm(*fit_arguments(tmp_path / "run", *SIX_STEPS, *stop))
    assert result.code == 2
    assert "ended at step 2 with a validation loss of nan; there is no good checkpoint" in result.err
