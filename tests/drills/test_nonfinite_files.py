"""The drill of numbers that are none, in what a run leaves: checkpoints, sweeps, range tests and reports. What is good
is still read, what is bad is named, and JSON stays JSON."""

import csv
import math
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.nonfinite import (
    INF,
    NAN,
    PLACES,
    SIX_STEPS,
    VALUES,
    assert_finite,
    put,
    read_strict_json,
    slow,
    spoil_training,
)
from torch.utils.tensorboard import SummaryWriter

from lm import evaluation
from lm.experiments.results import Results
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.folder import BEST, LAST
from lm.runs.newest import find_newest

# --- checkpoints that hold such numbers, as older versions wrote them ------------------------------------------------


@pytest.fixture(scope="module")
def good(lm, fit_arguments, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("good") / "run"
    assert lm(*fit_arguments(run, *SIX_STEPS)).code == 0
    return run


def spoil_checkpoint(path: Path, part: str, value: float, rng: random.Random) -> str:
    """-> the name of what is spoilt."""
    state = load_checkpoint(path)
    if part == "weight":
        name = rng.choice(list(state["state_dict"]))
        put(state["state_dict"][name], value, rng)
        name = f"state_dict.{name}"
    else:
        number = rng.choice(list(state["optimizer_states"][0]["state"]))
        put(state["optimizer_states"][0]["state"][number][part], value, rng)
        name = f"optimizer_states.0.state.{number}.{part}"
    save_checkpoint(state, path)
    return name


PARTS = [("weight", NAN)]
MANY_PARTS = [(part, value) for part in ("weight", "m", "v") for value in VALUES if (part, value) not in PARTS]


@pytest.mark.parametrize(("part", "value"), [*PARTS, *slow(MANY_PARTS)])
def test_a_lost_checkpoint_is_passed_over_and_named(part, value, lm, good, tmp_path):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    name = spoil_checkpoint(run / LAST, part, value, random.Random(f"{part} {value}"))
    message = f"{run / LAST}: is from a run that has diverged: {name} is not finite"
    result = lm("verify", run / LAST)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    path, reasons = find_newest(run)
    assert message in reasons[0]
    assert path is not None
    assert path.name != LAST
    going_on = ["fit", "-c", run / "config.yaml", "--trainer.default_root_dir", run, "--trainer.max_steps=8"]
    result = lm(*going_on, "--ckpt_path", run / LAST)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    result = lm(*going_on, "--ckpt_path", "auto")
    assert result.code == 0
    assert f"passed over: {message}" in result.out
    assert assert_finite(run)[LAST] == 8


REFUSING = {
    "generate": ["generate", "{run}", "--prompt", "Tom", "--max-new-tokens", "2"],
    "serve": ["serve", "{run}", "--port", "0"],
    "export": ["export", "{run}", "--format", "safetensors", "--output", "{run}.safetensors"],
    "validate": ["validate", "-c", "{run}/config.yaml", "--ckpt_path", "{run}/last.ckpt"],
    "fit": [
        "fit",
        "-c",
        "{run}/config.yaml",
        "--init_from",
        "{run}/last.ckpt",
        "--trainer.default_root_dir",
        "{run}-2",
    ],
}


@pytest.mark.parametrize("command", REFUSING)
def test_lost_weights_go_nowhere(command, lm, good, tmp_path):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    name = spoil_checkpoint(run / LAST, "weight", random.Random(command).choice(VALUES), random.Random(command))
    (run / BEST).unlink()
    result = lm(*(word.format(run=run) for word in REFUSING[command]))
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert f"{run / LAST}: is from a run that has diverged: {name} is not finite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_moments_hold_does_not_matter_to_a_reader(lm, good, tmp_path):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    spoil_checkpoint(run / BEST, "v", INF, random.Random(0))
    assert lm("generate", run, "--prompt", "Tom", "--max-new-tokens", "2").code == 0


def test_a_test_of_lost_weights_is_json_and_no_success(lm, good, token_data, tmp_path):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    state = load_checkpoint(run / BEST)
    state["state_dict"]["model.ln_final.weight"][:] = NAN
    save_checkpoint(state, run / BEST)
    for more in ([], ["--per-document"]):
        result = lm("test", run, token_data / "valid.bin", "--json", *more)
        assert result.code == 2
        assert "the loss is nan, which is not a result" in result.err
        for record in map(read_strict_json, result.out.splitlines()):
            assert (record["loss"], record["perplexity"], record["bits_per_byte"]) == (None, None, None)
            assert record["tokens"] > 0
    assert "nan nats a token" in lm("test", run, token_data / "valid.bin").out


def test_one_bad_document_is_no_success(lm, good, token_data, monkeypatch):
    window_metrics = evaluation.window_metrics

    def spoilt(model, windows):
        found = window_metrics(model, windows)
        for of, window in zip(found, windows, strict=True):
            of["loss"] = of["loss"] + INF if window.document == 3 else of["loss"]
        return found

    monkeypatch.setattr(evaluation, "window_metrics", spoilt)
    result = lm("test", good, token_data / "valid.bin", "--json", "--per-document")
    assert result.code == 2
    *documents, total = map(read_strict_json, result.out.splitlines())
    assert [record["document"] for record in documents if record["loss"] is None] == [4]
    assert total["loss"] is None


# --- sweeps, range tests and reports ---------------------------------------------------------------------------------


def write_run(folder: Path, train: list[float], validation: list[float]) -> None:
    """An event file with these losses; as many training losses to each validation."""
    writer = SummaryWriter(str(folder), filename_suffix=".drill")
    for step, loss in enumerate(train, start=1):
        for tag in ("train/loss", "train/gradient_norm", "train/tokens_per_second"):
            writer.add_scalar(tag, loss, step)
    for number, loss in enumerate(validation, start=1):
        writer.add_scalar("val/loss", loss, number * len(train) // len(validation))
    writer.close()


SWEEPS = {
    # training and validation losses -> does the run count as diverged
    "good": ([6.0, 5.0, 4.0], [5.0, 4.0], False),
    "a lost validation at the end": ([6.0, 5.0, 4.0], [1.0, NAN], True),
    "one below everything": ([6.0, 5.0, 4.0], [5.0, -INF], True),
    "one above": ([6.0, 5.0, 4.0], [5.0, INF], True),
    "a lost one on the way": ([6.0, 5.0, 4.5], [NAN, 4.5], False),
    "a skipped first step": ([NAN, 5.5, 4.6], [5.0, 4.6], False),
    "both infinities": ([6.0, INF, -INF, 4.7], [5.0, 4.7], False),
    "nothing finite": ([NAN, NAN], [NAN], True),
    "no validation": ([6.0, 5.0], [], True),
}


def test_a_lost_run_never_wins_a_sweep(tmp_path, capsys):
    results = Results.read(tmp_path, "model.max_gradient_norm", {"model.eps": 1e-8})
    for number, (name, (train, validation, _)) in enumerate(SWEEPS.items()):
        write_run(tmp_path / name, train, validation)
        with warnings.catch_warnings(action="error"):
            results.add(name, INF if number == 0 else number)
    assert {name: row["diverged"] for name, row in results.rows.items()} == {
        name: diverged for name, (_, _, diverged) in SWEEPS.items()
    }
    best, *_ = results.conclusion()
    assert "inf, validation loss 4.0000" in best
    content = read_strict_json((tmp_path / "sweep.json").read_text())
    assert [row["value"] for row in content["runs"]] == ["inf", *range(1, len(SWEEPS))]
    with open(tmp_path / "sweep.csv", newline="") as file:
        cells = [cell for row in csv.DictReader(file) for name, cell in row.items() if name != "value"]
    assert not {"nan", "inf", "-inf"} & set(cells)
    again = Results.read(tmp_path, "model.max_gradient_norm", results.settings)
    assert again.rows == results.rows
    assert results.draw().read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "names", [["both infinities", "one below everything"], pytest.param([*SWEEPS], marks=pytest.mark.slow)]
)
def test_a_report_of_anything(names, lm, tmp_path):
    for name in names:
        write_run(tmp_path / name, *SWEEPS[name][:2])
    result = lm("report", tmp_path, "--output", tmp_path / "page.html", "--plot", tmp_path / "losses.png")
    assert (result.code, result.err) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert "4.7000 at 4" in page
    assert "-inf at" not in page


RANGE_TESTS = [("gradient", 1), ("loss", 8)]
MANY_RANGE_TESTS = [(where, step) for where in PLACES for step in (1, 8) if (where, step) not in RANGE_TESTS]


@pytest.mark.parametrize(("where", "step"), [*RANGE_TESTS, *slow(MANY_RANGE_TESTS)])
def test_a_range_test_suggests_what_it_has_seen(where, step, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_training(monkeypatch, where, NAN, set(range(step, 100)))
    arguments = fit_arguments(tmp_path / "run")[1:]
    arguments = [word for word in arguments if "default_root_dir" not in str(word)]
    result = lm("find-lr", *arguments, "--steps=20", "--lowest=1e-4", "--highest=1e-2", "--output", tmp_path / "out")
    if step == 1:
        assert result.code == 2
        assert not (tmp_path / "out").exists()
        assert "no step had a finite loss and gradient" in result.err
        return
    assert (result.code, result.err) == (0, "")
    assert f"diverged at step {step}" in result.out
    with open(tmp_path / "out/find-lr.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["loss"]) for row in rows] == [True] * (step - 1) + [False]
    suggestion = float(result.out.partition("--model.learning_rate ")[2].split()[0])
    assert suggestion < float(rows[-1]["learning_rate"])


@pytest.mark.slow
def test_a_range_test_may_end_in_lost_weights(lm, fit_arguments, tmp_path):
    arguments = [word for word in fit_arguments(tmp_path / "run")[1:] if "default_root_dir" not in str(word)]
    more = ["--steps=20", "--lowest=1e-3", "--highest=1e38", "--model.max_gradient_norm=.inf"]
    result = lm("find-lr", *arguments, *more, "--output", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert math.isfinite(float(result.out.partition("--model.learning_rate ")[2].split()[0]))


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_account_is_json(lm):
    assert read_strict_json(lm("account", "gpt2-small", "--json").out)


def test_all_json_is_written_strictly():
    """By to_json, or with no number in it that could be none."""
    calls = [
        f"{path.relative_to(ROOT)}: {call[1]}"
        for package in ("lm", "tokenization")
        for path in sorted(ROOT.glob(f"{package}/**/*.py"))
        for call in re.finditer(r"json\.dumps?\((.*)", path.read_text(encoding="utf-8"))
    ]
    elsewhere = (
        "tokenization/",
        "lm/strict_json.py",
        "lm/runs/lock.py",
        "lm/runs/recorded_settings.py",
        "lm/distributed/hosts.py",
    )  # read back where it is made
    assert [call for call in calls if "allow_nan=False" not in call and not call.startswith(elsewhere)] == []
