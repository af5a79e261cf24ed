"""Sweeps, the range test and the handout's toy: what they find, what they leave behind, and how a sweep goes on."""

import csv
import json
import math
import os
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import STEPS

from lm.experiments.results import Results, edge_of_stability, summarise
from lm.experiments.short_runs import check_end
from lm.experiments.sweep import Sweep
from lm.runs.events import Curve, Curves
from lm.training.divergence import RISE, LossWatch
from lm.training.module import LanguageModel
from lm.training.recovery import Checkpoints
from tokenization import InputError


@pytest.fixture(scope="module")
def arguments(fit_arguments, tmp_path_factory):
    """What `lm fit` would get, without its first word and its folder; 8 steps."""
    folder = tmp_path_factory.mktemp("user") / "run"
    given = [*map(str, fit_arguments(folder, "--trainer.max_steps=8", "--checkpoints.every_n_steps=2"))]
    home = yaml.safe_load((ROOT / "configs/debug.yaml").read_text())
    home["trainer"]["default_root_dir"] = str(folder)
    config = folder.with_name("config.yaml")
    config.write_text(yaml.safe_dump(home))
    return ["-c", str(config), *(word for word in given[3:] if "default_root_dir" not in word)]


@pytest.fixture(scope="module")
def sweep(lm, fork_server, arguments, tmp_path_factory):
    """A sweep whose first run was cut before step 6, one that diverges, and what it printed."""
    output = tmp_path_factory.mktemp("sweep") / "out"
    half = Sweep("model.learning_rate", ["0.01"], arguments, output).fit_arguments("learning_rate-0.01")
    start = LanguageModel.on_train_batch_start

    def fail(self, batch, batch_idx):
        if self.global_step == 5:
            raise RuntimeError
        start(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "on_train_batch_start", fail)
        patch.setattr(Checkpoints, "on_exception", lambda *_: None)
        with pytest.raises(RuntimeError):
            lm("fit", *half)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setattr(sys, "executable", fork_server.python)
        result = lm("sweep", *arguments, "--param=model.learning_rate", "--output", output, "--values", "1e-2", "1000")
    return output, result


def test_a_sweep_goes_on_and_a_diverging_run_is_a_result(sweep):
    output, result = sweep
    assert (result.code, result.err) == (0, "")
    assert "last.ckpt, step 4" in (output / "learning_rate-0.01.log").read_text()
    good, lost = json.loads((output / "sweep.json").read_text())["runs"]
    assert (good["value"], good["diverged"], good["steps"]) == (0.01, False, 8)
    assert good["best_validation_loss"] <= good["validation_loss"] < math.log(320)
    assert (lost["value"], lost["diverged"], lost["validation_loss"]) == (1000.0, True, None)
    assert lost["steps"] == 5  # a window of losses
    assert "2 of 2  model.learning_rate 1000.0: diverged, 5 steps" in result.out
    assert "edge of stability: between 0.01 and 1000.0" in result.out
    with open(output / "sweep.csv", newline="") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["0.01", "1000.0"]
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / ".lock").exists()


def test_the_lowest_rate_moves_in_proportion(sweep):
    for value in (0.01, 1000.0):
        model = yaml.safe_load((sweep[0] / f"learning_rate-{value}/config.yaml").read_text())["model"]
        assert (model["learning_rate"], model["min_learning_rate"]) == (value, pytest.approx(value / 10))


def test_finished_runs_are_kept(lm, arguments, sweep, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    result = lm("sweep", *arguments, "--param=model.learning_rate", "--output", sweep[0], "--values", "1000", "0.01")
    assert result.code == 0
    assert result.out.count("already done") == 2


def test_the_users_run_is_not_touched(arguments, sweep):
    assert [path.name for path in Path(arguments[1]).parent.iterdir()] == ["config.yaml"]


REFUSED = {
    "no such setting": (["--param=model.learning_rat", "--values=1"], "model.learning_rat"),
    "no number": (["--param=model.learning_rate", "--values=fast"], "model.learning_rate"),
    "twice": (["--param=model.learning_rate", "--values", "1e-2", "0.01"], "--values: 1e-2 and 0.01 would be one run"),
    "folder": (
        ["--param=data.seed", "--values=1", "--trainer.default_root_dir=x"],
        "--trainer.default_root_dir: has no",
    ),
    "checkpoint": (["--param=data.seed", "--values=1", "--ckpt_path", "x"], "--ckpt_path: has no effect here"),
    "nothing": (["--param=data.seed"], "--values"),
    "warmup": (["--param=data.seed", "--values=1", "--model.warmup_steps=9"], "model.warmup_steps 9 is more than"),
    "no model": (["--param=model.d_model", "--values", "16", "15"], "--values: 15: d_model 15 cannot be divided"),
    "no file": (["--param=data.train_path", "--values=none.bin"], "--values: none.bin: none.bin: no such token file"),
    "no share": (["--param=model.dropout", "--values", "0.1", "1.5"], "--values: 1.5: dropout is 1.5; it must be"),
    "no precision": (["--param=trainer.precision", "--values=64"], "--values: 64: trainer.precision is 64"),
    "no curves": (["--param=data.seed", "--values=1", "--trainer.logger=false"], "trainer.logger False would leave"),
    "a time": (["--param=data.seed", "--values=1", "--trainer.max_time=00:00:01:00"], "would end runs at different"),
    "other text": (["--param=data.val_path", "--values=a.bin"], "--param data.val_path: losses on different text"),
    "other windows": (
        ["--param=data.batch_size", "--values", "1", "2", "--trainer.limit_val_batches=2"],
        "--values: 2: validates on 64 tokens, and 1 on 32",
    ),
    "a folder as a value": (["--param=trainer.default_root_dir", "--values=a"], "each run has its own"),
    "another sweep": (["--param=data.seed", "--values=1"], "holds a sweep with"),
    "another length": (
        ["--param=model.learning_rate", "--values=1", "--trainer.max_steps=9"],
        "holds a sweep with trainer.max_steps 8, not 9",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sweep_that_cannot_be(case, lm, arguments, sweep):
    more, message = REFUSED[case]
    result = lm("sweep", *arguments, "--output", sweep[0], *more)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err


def test_the_edge():
    rows = [{"value": value, "diverged": lost} for value, lost in ((1, False), (3, False), (10, True), (30, False))]
    assert edge_of_stability(rows) == (3, 10)
    assert edge_of_stability(rows[:2]) == (3, None)
    assert edge_of_stability(rows[2:3]) == (None, 10)
    table = Results(Path(), "model.norm_position", {}, {})
    table.rows = {"a": {"value": "pre", "diverged": False, "validation_loss": 2.0, "folder": "a"}}
    assert list(table.conclusion()) == ["best: model.norm_position pre, validation loss 2.0000"]


def curves_of(train, validation):
    curves = Curves()
    for tag, found in (("train/loss", train), ("val/loss", validation)):
        if found:
            curves[tag] = Curve(list(range(1, len(found) + 1)), [0.0] * len(found), found)
    return curves


@pytest.mark.parametrize(
    ("train", "validation", "diverged"),
    [
        ([2.3, 2.4, 2.3], [2.4], False),  # a trained model that is trained on, or a rate of almost nothing
        ([5.0, 3.0], [6.0], False),  # another text
        ([5.0, 9.0, 9.0], [6.0], True),
        ([5.0, 3.0], [math.nan], True),
        ([5.0, 3.0], [], True),
    ],
)
def test_which_runs_have_diverged(train, validation, diverged, tmp_path):
    assert summarise(1.0, tmp_path, curves_of(train, validation))["diverged"] == diverged


def test_other_data_is_another_sweep(arguments, sweep, tmp_path):
    """Even under the same name."""
    settings = Sweep("data.seed", ["1"], arguments, tmp_path).settings
    digest = next(name for name in settings if name.startswith("the digest of "))
    record = {"parameter": "data.seed", "runs": [], "settings": settings | {digest: "another"}}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    Results.read(tmp_path, "data.seed", settings)  # nothing has begun
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/last.ckpt").touch()
    with pytest.raises(InputError, match="holds a sweep with the digest of"):
        Results.read(tmp_path, "data.seed", settings)
    del record["settings"][digest]  # as sweeps of before
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    Results.read(tmp_path, "data.seed", settings)
    lengths = Sweep("trainer.max_steps", ["8"], arguments, tmp_path).settings
    record = {"parameter": "trainer.max_steps", "runs": [], "settings": lengths | {"trainer.val_check_interval": 50}}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    Results.read(tmp_path, "trainer.max_steps", lengths)


def test_settings_are_kept_before_the_first_run_ends(arguments, tmp_path):
    """Otherwise one that was interrupted would go on with others."""
    first, other = (
        Sweep("data.seed", ["1"], [*arguments, f"--model.weight_decay={decay}"], tmp_path) for decay in (0, 1)
    )
    with first.opened([]):
        assert json.loads((tmp_path / "sweep.json").read_text())["runs"] == []
    with other.opened([]):  # no run has left anything
        pass
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/last.ckpt").touch()
    with pytest.raises(InputError, match=r"holds a sweep with model.weight_decay 1"), first.opened([]):
        pass


def test_a_run_that_a_callback_has_ended_is_no_result(whole_run):
    check_end(whole_run, STEPS)
    with pytest.raises(InputError, match=f"ended at step {STEPS} of 20, by one of trainer.callbacks"):
        check_end(whole_run, 20)


def test_lengths_may_be_swept_in_any_order(arguments, tmp_path):
    for parameter, orders in {
        "trainer.max_steps": (["6", "8"], ["8", "6"]),
        "trainer.accumulate_grad_batches": (["1", "2"], ["2", "1"]),
    }.items():
        one, other = (Sweep(parameter, values, arguments, tmp_path).settings for values in orders)
        assert one == other


@pytest.mark.parametrize(
    "wrong", [{"validation_loss": None}, {"steps": "8"}, {"train_loss": [1.0]}, {"diverged": 0}, {"folder": 1}]
)
def test_rows_that_cannot_be_are_refused(wrong, sweep, tmp_path):
    record = json.loads((sweep[0] / "sweep.json").read_text())
    record["runs"][0] |= wrong
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is not what `lm sweep` writes"):
        Results.read(tmp_path, "model.learning_rate", record["settings"])


def test_a_sweep_may_begin_with_the_configuration_of_its_run(sweep, tmp_path):
    config = sweep[0] / "learning_rate-0.01/config.yaml"
    again = Sweep("model.learning_rate", ["0.02"], ["-c", str(config)], tmp_path)
    assert not any("callbacks" in word for word in again.fit_arguments("learning_rate-0.02"))


def test_when_a_loss_is_lost():
    watch = LossWatch()
    assert not any(watch.diverged(loss) for loss in (4.0, 4 * RISE * 2, 4.0, 4.0, 4.0, 4.0))  # one bad batch
    assert [watch.diverged(7.0) for _ in range(4)] == [False, False, False, True]
    assert LossWatch().diverged(math.nan)


# --- the range test --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_any_length(arguments):
    """Those arguments that a range test does not set itself."""
    return [word for word in arguments if not word.startswith(("--trainer.max_steps", "--model.learning_rate"))]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_range_test(lm, of_any_length, tmp_path, monkeypatch, accumulated):
    monkeypatch.chdir(tmp_path)
    more = [f"--trainer.accumulate_grad_batches={accumulated}", "--trainer.val_check_interval=8"]
    result = lm("find-lr", *of_any_length, "--output=out", "--steps=40", "--lowest=1e-4", "--highest=1000", *more)
    assert (result.code, result.err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["find-lr.csv", "find-lr.png"]
    with open("out/find-lr.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([1e-4 * 1e7 ** (step / 39) for step in range(len(rows))])
    assert len(rows) < 40  # it diverged
    assert rows[0]["loss"] == pytest.approx(math.log(320), abs=0.3)
    lowest = min(rows, key=lambda row: row["smoothed"])["learning_rate"]
    assert f"suggestion: --model.learning_rate {float(f'{lowest / 3:.2g}'):g}" in result.out


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--lowest=1", "--highest=0.1"], "--lowest 1.0: it must be above 0 and below --highest, which is 0.1"),
        (["--lowest=nan"], "--lowest nan"),
        (["--steps=3"], "--steps 3: at least 20"),
        (["--data.train_path=nowhere.bin"], "nowhere.bin"),
        (["--trainer.max_steps=500"], "--trainer.max_steps: has no effect here; --steps is the length of the test"),
        (["--model.learning_rate", "5"], "--model.learning_rate: has no effect here; --lowest and --highest"),
        (["--trainer.fast_dev_run=true"], "--trainer.fast_dev_run: has no effect here; --steps is the length"),
        (["--trainer.max_time", "00:00:01:00"], "--trainer.max_time: has no effect here; --steps is the length"),
        (["--trainer.limit_val_batches=3"], "--trainer.limit_val_batches: has no effect here; the test validates"),
        (["--model.max_skipped_steps=1"], "--model.max_skipped_steps: has no effect here; the test ends at the first"),
    ],
)
def test_a_range_test_that_cannot_be(lm, of_any_length, tmp_path, wish, message):
    result = lm("find-lr", *of_any_length, "--output", tmp_path / "out", *wish)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert message in result.err
    assert not (tmp_path / "out").exists()


# --- the toy ---------------------------------------------------------------------------------------------------------


def test_the_toy_is_what_the_formula_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import sgd_learning_rate as toy

    for rate in (10.0, 90.0, 1000.0):
        losses = toy.losses(rate)
        factor = 1.0
        for t, loss in enumerate(losses):
            assert loss == pytest.approx(losses[0] * factor**2, rel=1e-3)
            factor *= 1 - rate / (50 * math.sqrt(t + 1))
    monkeypatch.setattr(sys, "argv", ["toy", "10", "--steps", "2"])
    toy.main()
