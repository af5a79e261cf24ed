"""Proves that the forecast is the Gaussian posterior of its law, that its band holds as often as it says, that what
earlier runs know narrows it, most of all those of like settings, and that a run prints it from a tenth on."""

import dataclasses
import math
import re
import shutil

import numpy as np
import pytest
from helpers.events import read_events
from helpers.runs import SETTINGS

from lm.monitoring import posterior
from lm.monitoring.forecast import earlier_runs, read_losses
from lm.monitoring.loss_law import UNSEEN, Course, Losses, Numbers, deviations, fit
from lm.monitoring.posterior import Forecast, alike, distance, forecast_loss, prior_of
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.training.module import LanguageModel
from tokenization import InputError

STEPS = 200


def course(steps: int = STEPS) -> Course:
    every = np.arange(1, steps + 1)
    return Course(np.minimum(every / 10, (steps - every) / (steps - 10)), every * 5000.0, every * 0.002, warmup=10)


def law(numbers, of: Course, step: int, validated: bool) -> float:
    """The equations of the module, written out for one step."""
    e, a, b, g, h = numbers
    weighted = of.rates[:step] @ np.diff(of.tokens[:step], prepend=0.0) / 1e6
    loss = e + a * weighted**-0.3 + b * of.rates[step - 1]
    return loss + g + h * of.passes[step - 1] if validated else loss


def run(rng, share: float, numbers=None, noise: float = 0.02, batches: str = "", difficulty=None) -> Losses:
    """A run that follows the law exactly but for the noise of its batches; its first part, and all validations."""
    if numbers is None:
        numbers = rng.multivariate_normal(UNSEEN.mean, posterior.SCATTER)
    of, difficulty = course(), np.zeros(STEPS + 1) if difficulty is None else difficulty
    training = {t: law(numbers, of, t, False) + noise * rng.standard_normal() + difficulty[t] for t in range(4, 201, 4)}
    validation = {t: law(numbers, of, t, True) for t in (40, 80, 120, 160, 200)}
    whole = Losses(of, training, validation, batches)
    return whole if share == 1 else first_part(whole, share)


def first_part(whole: Losses, share: float) -> Losses:
    end = share * whole.course.steps
    cut = ({t: loss for t, loss in curve.items() if t <= end} for curve in (whole.training, whole.validation))
    return dataclasses.replace(whole, **dict(zip(("training", "validation"), cut, strict=True)))


def test_the_posterior_is_the_one_that_normal_equations_give():
    """By a least-squares problem in which the prior is five more observations."""
    rng = np.random.default_rng(0)
    seen, prior = run(rng, 0.5), UNSEEN
    steps = [t for t in seen.training if t > 10]
    losses = [seen.training[t] for t in steps]
    second = [losses[i - 1] - 2 * losses[i] + losses[i + 1] for i in range(1, len(losses) - 1)]
    noise = 3 * max(0.02, math.sqrt(sum(x * x for x in second) / len(second) / 6))
    unit = np.eye(5)
    rows = [[law(unit[i], seen.course, t, False) / noise for i in range(5)] for t in steps]
    rows += [[law(unit[i], seen.course, t, True) / 0.01 for i in range(5)] for t in seen.validation]
    deviation = np.sqrt(np.diag(prior.covariance))
    values = [x / noise for x in losses] + [x / 0.01 for x in seen.validation.values()]
    stacked = np.vstack([rows, np.diag(1 / deviation)])
    expected = np.linalg.lstsq(stacked, np.array([*values, *(prior.mean / deviation)]), rcond=None)[0]
    found = fit(seen, prior)
    np.testing.assert_allclose(found.mean, expected, rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(stacked.T @ stacked), rtol=1e-6)


@pytest.mark.parametrize(("share", "wider"), [(0.25, 1.5), (0.6, 1.1)])
def test_the_band_holds_as_often_as_it_says(share, wider):
    """For runs of one kind, as the prior takes them to be: of 150 between 70 % and 95 %."""
    rng = np.random.default_rng(1)
    earlier, held, widths = [run(rng, 1) for _ in range(12)], 0, []
    for _ in range(150):
        whole = run(rng, 1)
        found = forecast_loss(first_part(whole, share), earlier)
        held += found.low <= whole.validation[STEPS] <= found.high
        widths.append(found.high - found.low)
        assert found.low < found.loss < found.high
    assert 105 <= held <= 143
    alone = forecast_loss(first_part(whole, share))
    assert alone.high - alone.low > wider * np.median(widths)


def test_runs_that_read_the_same_batches_are_compared_batch_by_batch():
    rng = np.random.default_rng(2)
    difficulty = 0.3 * rng.standard_normal(STEPS + 1)
    earlier = [run(rng, 1, batches="seed 0", difficulty=difficulty) for _ in range(8)]
    errors = {"seed 0": [], "seed 1": [], "": []}
    for _ in range(12):
        whole = run(rng, 1, difficulty=difficulty)
        for batches, found in errors.items():
            seen = dataclasses.replace(first_part(whole, 0.15), batches=batches)
            found.append(abs(forecast_loss(seen, earlier).loss - whole.validation[STEPS]))
    assert np.mean(errors["seed 0"]) < 0.7 * np.mean(errors["seed 1"])
    assert errors["seed 1"] == errors[""]
    fitted = [fit(other, UNSEEN) for other in earlier]
    usual = deviations(list(zip(earlier, fitted, strict=True)))
    steps = sorted(usual)
    assert steps == list(range(12, STEPS + 1, 4))
    assert np.corrcoef([usual[t] for t in steps], difficulty[steps])[0, 1] > 0.99


def test_what_earlier_runs_make_one_expect():
    """By conditioning one Gaussian: of all runs' numbers, with a mean that could be anything."""
    rng = np.random.default_rng(4)
    settings = [{"rate": 1.0, "kind": "a"}, {"rate": 1.0, "kind": "a"}, {"rate": 4.0, "kind": "a"}, {"kind": "b"}]
    runs = [dataclasses.replace(run(rng, 1), settings=these) for these in settings]
    between = np.array([[0, 0, 2, 1], [0, 0, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0]])
    same = 0.7 * np.exp(-between / 3) + 0.3 * np.eye(4)
    np.testing.assert_allclose(alike(runs), same, atol=1e-12)
    means = rng.standard_normal((3, 5))
    found = prior_of([Numbers(mean, UNSEEN.covariance) for mean in means], same)
    anything = same + 1e5
    weights = anything[3, :3] @ np.linalg.inv(anything[:3, :3])
    np.testing.assert_allclose(found.mean, weights @ means, atol=1e-4)
    root = np.linalg.cholesky(np.linalg.inv(same[:3, :3])).T
    middle = np.linalg.lstsq(root @ np.ones((3, 1)), root @ means, rcond=None)[0]  # by generalized least squares
    scatter = (posterior.SCATTER + (root @ (means - middle)).T @ (root @ (means - middle))) / 3
    left = anything[3, 3] - weights @ anything[:3, 3]
    np.testing.assert_allclose(found.covariance, scatter * left, rtol=1e-3)
    assert prior_of([], np.ones((1, 1))) is UNSEEN


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"rate": 0.1, "a": "x", "b": [1]}, {"rate": 0.8, "a": "y", "b": [1]}, 4.0),
        ({"rate": 0, "size": None, "old": 5}, {"rate": 0.8, "size": 64, "new": 6}, 2.0),
        ({"rate": math.nan, "size": 10**400}, {"rate": 1, "size": 2 * 10**400}, 2.0),
        ({"rate": math.inf}, {"rate": 1.0}, math.inf),
    ],
)
def test_how_far_apart_settings_are(one, other, expected):
    assert distance(one, other) == distance(other, one) == pytest.approx(expected)


def test_runs_that_lack_settings_still_have_a_covariance():
    """Distances that skip what one lacks break the triangle's law: 8 from the first to the last, 0 on the way."""
    rng = np.random.default_rng(5)
    runs = [dataclasses.replace(run(rng, 1), settings=these) for these in ({"rate": 1}, {}, {"rate": 256}, {"x": 1})]
    assert np.linalg.eigvalsh(alike(runs)).min() > 0.29
    assert forecast_loss(runs[0].until(0.5), runs[1:]) is not None


def test_the_band_is_as_wide_as_it_had_to_be_for_earlier_runs():
    rng = np.random.default_rng(6)
    earlier = [run(rng, 1) for _ in range(10)]
    seen = run(rng, 0.5)
    surprised = []
    for number, other in enumerate(earlier):
        late = {t: loss + (-1) ** number * 0.4 * (t > 160) for t, loss in other.validation.items()}
        surprised.append(dataclasses.replace(other, validation=late))
    narrow, wide = forecast_loss(seen, earlier), forecast_loss(seen, surprised)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_settings_tell_runs_apart():
    """Two kinds end 0.5 apart for the same beginning: the like ones decide, and narrow the band."""
    rng = np.random.default_rng(7)
    kinds = {"a": np.array([1.3, 0.9, 0.7, 0.0, 0.0]), "b": np.array([1.8, 0.9, 0.2, 0.0, 0.0])}

    def made(kind, share=1.0):
        shift = np.array([0, 0, 0.02 * rng.standard_normal(), 0, 0])
        return dataclasses.replace(run(rng, share, kinds[kind] + shift, noise=0.15), settings={"kind": kind, "x": kind})

    earlier = [made(kind) for kind in "abababab"]
    plain = [dataclasses.replace(other, settings={}) for other in earlier]
    seen, whole = made("b", 0.12), law(kinds["b"], course(), STEPS, True)
    with_settings, without = forecast_loss(seen, earlier), forecast_loss(seen, plain)
    assert with_settings.low < whole < with_settings.high
    assert with_settings.high - with_settings.low < 0.8 * (without.high - without.low)


def test_too_little_or_bad_is_no_forecast():
    rng = np.random.default_rng(3)
    seen = first_part(run(rng, 1), 0.1)
    assert len(seen.training) == 5
    assert forecast_loss(seen) is None  # of which two are behind the warmup
    bad = run(rng, 0.5)
    bad.training[60] = math.nan
    bad.validation[80] = math.inf
    assert math.isfinite(forecast_loss(bad).loss)
    assert str(Forecast(2.314, 2.267, 2.356)) == "final loss about 2.31 (2.27 to 2.36)"


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bar", ["true", "false"])
def test_a_run_prints_it_from_a_tenth_on(bar, lm, fit_arguments, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "earlier")
    more = ("--trainer.max_steps=30", "--trainer.val_check_interval=2", "--model.warmup_steps=1")
    more += ("--samples.max_new_tokens=1",)
    result = lm(*fit_arguments(tmp_path / "run", *more, f"--trainer.enable_progress_bar={bar}"))
    assert (result.code, "Traceback" in result.err) == (0, False)
    lines = result.out.splitlines()
    steps = [i for i, line in enumerate(lines) if re.match(r"step \d+: validation loss", line)]
    forecast_at = [int(lines[i].split()[1][:-1]) for i in steps if "; final loss about " in lines[i]]
    assert forecast_at == list(range(4, 30, 2))  # at step 2 too few losses are known, and at 30 all of them
    at = next(i for i in steps if lines[i].startswith("step 20:"))
    seen = read_losses(tmp_path / "run")
    assert set(dict(read_events(tmp_path / "run")[0]["val/loss"])) == set(seen.validation)
    earlier = list(earlier_runs(tmp_path / "run", seen))
    assert lines[at].endswith(f"; {forecast_loss(first_part(seen, 20 / 30), earlier)}")


def test_a_course_is_the_schedule_of_the_run(whole_run):
    found = read_losses(whole_run)
    lr = dict(read_events(whole_run)[0]["lr"])
    peak = LanguageModel.__init__.__kwdefaults__["learning_rate"]
    ratios = {step: lr[step] / found.course.rates[step - 1] for step in lr if lr[step]}
    assert len({round(ratio / peak, 6) for ratio in ratios.values()}) == 1
    assert found.course.tokens.tolist() == [128.0 * step for step in range(1, 15)]
    assert found.finished
    assert not dataclasses.replace(found, validation=found.validation | {14: math.nan}).finished


def test_which_runs_are_earlier_ones(whole_run, tmp_path):
    def made(place: str, change=("", "")):
        shutil.copytree(whole_run, tmp_path / place)
        config = tmp_path / place / "config.yaml"
        before = config.read_text()
        config.write_text(before.replace(*change))
        assert change == ("", "") or config.read_text() != before
        return tmp_path / place

    own = made("race/a/seed-0")
    made("race/a/seed-1")
    made("race/a/averaged", ("ema_decay: 0.0", "ema_decay: 0.9"))
    made("race/a/longer", ("max_steps: 14", "max_steps: 40"))
    made("race/a/other", ("limit_val_batches: ", "limit_val_batches: 7 #"))
    made("race/a/wider", ("batch_size: ", "batch_size: 1"))  # with which limit_val_batches is more text
    checkpoint = load_checkpoint(made("race/a/text") / "last.ckpt")
    checkpoint["TokenDataModule"]["val_sha256"] = "0" * 64  # another file under the same name
    save_checkpoint(checkpoint, tmp_path / "race/a/text/last.ckpt")
    made("race/b/seed-0")
    (tmp_path / "race/a/empty").mkdir()
    (tmp_path / "race/a/empty/config.yaml").write_text("- no settings")
    run = read_losses(own)
    assert len(list(earlier_runs(own, run))) == 1
    (tmp_path / "race/ledger.jsonl").touch()
    assert len(list(earlier_runs(own, run))) == 2
    made("later/c/seed-0")
    assert len(list(earlier_runs(own, run))) == 2
    (tmp_path / "later/ledger.jsonl").touch()
    assert len(list(earlier_runs(own, run))) == 3
    beside = made("beside")  # a run beside races reads them, and they it
    assert (len(list(earlier_runs(beside, run))), len(list(earlier_runs(own, run)))) == (4, 4)
    with pytest.raises(InputError, match="do not allow a forecast"):
        read_losses(tmp_path / "race/a/averaged")


def test_an_average_has_no_forecast(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, "--model.ema_decay=0.9"))
    assert result.code == 0
    assert "final loss" not in result.out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("max_steps: 14", "max_steps: 1000000000000"),
        ("max_steps: 14", "max_steps: -1"),
        ("max_steps: 14", "max_steps: 10"),  # fewer than its curves have
        ("max_steps: 14", "max_steps: 14.0"),
        ("max_steps: 14", "max_steps: many"),
        (r"  learning_rate: .*", "  learning_rate: 0.0"),
        ("model:\n", "model: none\nrest:\n"),
        ("data:\n", "data: 3\nrest:\n"),
    ],
)
def test_a_folder_that_tells_nothing_is_no_earlier_run(before, after, whole_run, tmp_path):
    """It may be a stranger's; the run beside it goes on."""
    shutil.copytree(whole_run, tmp_path / "run")
    shutil.copytree(whole_run, tmp_path / "other")
    config = tmp_path / "other/config.yaml"
    text = config.read_text()
    config.write_text(re.sub(before, after, text, count=1))
    assert config.read_text() != (tmp_path / "run/config.yaml").read_text()
    assert list(earlier_runs(tmp_path / "run", read_losses(tmp_path / "run"))) == []


def test_losses_that_are_no_curve_are_no_forecast():
    seen = run(np.random.default_rng(4), 0.5)
    still = dataclasses.replace(seen.course, rates=np.zeros(STEPS))
    with np.errstate(divide="ignore", invalid="ignore"):
        assert forecast_loss(dataclasses.replace(seen, course=still)) is None
