"""The drill of numbers that are none: NaN, inf and -inf are put wherever a number decides something, in a run, a
checkpoint, a sweep, a range test, an event file, the settings. What is good stays, what is bad is named, the exit code
is not 0, and JSON stays JSON."""

import csv
import json
import math
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.events import read_events
from torch.utils.tensorboard import SummaryWriter

from lm import evaluation
from lm.experiments.results import Results
from lm.model.transformer import TransformerLM
from lm.runs.checkpoint import load_checkpoint, save_checkpoint
from lm.runs.folder import BEST, LAST
from lm.runs.newest import find_newest
from lm.training.checks import check_numbers
from lm.training.module import LanguageModel
from tokenization import InputError

NAN, INF = math.nan, math.inf
VALUES = [NAN, INF, -INF]
SETTINGS = [
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=3",
    "--checkpoints.every_n_steps=1",
    "--checkpoints.keep_every_n_steps=3",
    "--samples.max_new_tokens=2",
]
many = pytest.mark.slow


def strict(text: str):
    """What a reader makes of JSON that knows no NaN; Python's own would take it."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_finite(run: Path) -> dict[str, int]:
    """Every checkpoint of the run verifies and holds finite numbers only -> their steps by name."""
    steps = {}
    for path in run.glob("*.ckpt"):
        state = load_checkpoint(path, finite=())
        for weight in state["state_dict"].values():
            assert weight.isfinite().all(), path
        for moments in state["optimizer_states"][0]["state"].values():
            assert all(moments[name].isfinite().all() for name in ("m", "v")), path
        steps[path.name] = state["global_step"]
    return steps


def put(tensor: torch.Tensor, value: float, rng: random.Random) -> None:
    with torch.no_grad():
        tensor.view(-1)[rng.randrange(tensor.numel())] = value


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
    [*TRIALS, *(pytest.param(*trial, marks=many) for trial in MANY_TRIALS if trial not in TRIALS)],
)
def test_a_state_that_is_lost_is_never_saved(where, value, step, lm, fit_arguments, monkeypatch, tmp_path):
    run, spoiler = tmp_path / "run", Spoiler(where, value, step, random.Random(f"{where} {value} {step}"))
    spoiler.arm(monkeypatch)
    result = lm(*fit_arguments(run, *SETTINGS))
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


def spoil_training(patch: pytest.MonkeyPatch, where: str, value: float, steps: set[int]) -> None:
    training_step, backward = LanguageModel.training_step, LanguageModel.backward

    def spoilt_step(self, batch, batch_idx):
        if where == "activation" and self.global_step + 1 in steps:
            hook = self.model.layers[0].register_forward_hook(lambda module, inputs, output: output + value)
            try:
                return training_step(self, batch, batch_idx)
            finally:
                hook.remove()
        loss = training_step(self, batch, batch_idx)
        return loss + value if where == "loss" and self.global_step + 1 in steps else loss

    def spoilt_backward(self, loss, *args, **kwargs):
        backward(self, loss, *args, **kwargs)
        if where == "gradient" and self.global_step + 1 in steps:
            put(next(self.parameters()).grad, value, random.Random(0))

    patch.setattr(LanguageModel, "training_step", spoilt_step)
    patch.setattr(LanguageModel, "backward", spoilt_backward)


PLACES = ("activation", "loss", "gradient")
SHORT = [("activation", INF)]


@pytest.mark.parametrize(
    ("where", "value"),
    [*SHORT, *(pytest.param(w, v, marks=many) for w in PLACES for v in VALUES if (w, v) not in SHORT)],
)
def test_a_step_is_skipped_and_the_run_ends_well(where, value, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_training(monkeypatch, where, value, {2, 3})
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert result.code == 0, result.err
    assert assert_finite(tmp_path / "run")[LAST] == 6
    skipped = dict(read_events(tmp_path / "run")[0]["train/skipped_steps"])
    assert [skipped[step] for step in range(1, 7)] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("where", ["gradient", *(pytest.param(where, marks=many) for where in PLACES[:2])])
def test_a_run_of_nothing_but_bad_steps_is_no_success(where, lm, fit_arguments, monkeypatch, tmp_path):
    """Although it is shorter than model.max_skipped_steps."""
    spoil_training(monkeypatch, where, NAN, set(range(1, 7)))
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert result.code == 2
    assert "not finite in 6 steps in a row, up to step 6" in result.err
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize(("steps", "code", "last"), [({5, 6}, 2, 4), pytest.param({6}, 0, 6, marks=many)])
def test_a_run_that_ends_in_bad_steps_is_no_success(steps, code, last, lm, fit_arguments, monkeypatch, tmp_path):
    """Its loss may still be finite: huge weights make RMSNorm divide by infinity, and the model guesses."""
    spoil_training(monkeypatch, "gradient", INF, steps)
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
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
    ("bad", "loss", "count"), [*VALIDATIONS[:2], *(pytest.param(*trial, marks=many) for trial in VALIDATIONS[2:])]
)
def test_a_bad_batch_is_not_left_out_of_the_validation(bad, loss, count, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, bad)
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, *SETTINGS))
    assert result.code == 0
    assert result.err == f"lm fit: step 4: the validation loss is {loss}; it is not finite in {count} of 3 batches\n"
    drawn = dict(read_events(run)[0]["val/loss"])
    assert repr(drawn[4]) == repr(loss)
    assert math.isfinite(drawn[2] + drawn[6])
    assert assert_finite(run)[BEST] == min((2, 6), key=lambda step: drawn[step])
    assert load_checkpoint(run / LAST)["callbacks"]["Checkpoints"]["best_loss"] == min(drawn[2], drawn[6])


@pytest.mark.parametrize("value", [NAN, *(pytest.param(value, marks=many) for value in VALUES[1:])])
def test_a_run_that_ends_with_a_bad_validation_is_no_success(value, lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, {(6, 1): value})
    run = tmp_path / "run"
    result = lm(*fit_arguments(run, *SETTINGS))
    assert result.code == 2
    said, line = result.err.splitlines()
    assert said.startswith("lm fit: step 6: the validation loss is")
    assert line.startswith(
        f"lm fit: the run has ended at step 6 with a validation loss of {value}; {run / BEST} is the"
    )
    steps = assert_finite(run)
    assert steps[BEST] in (2, 4)
    assert steps[LAST] == 6


@many
def test_early_stopping_by_a_bad_validation_is_no_success(lm, fit_arguments, monkeypatch, tmp_path):
    spoil_validation(monkeypatch, {(2, 0): NAN})
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, *stop))
    assert result.code == 2
    assert "ended at step 2 with a validation loss of nan; there is no good checkpoint" in result.err


# --- checkpoints that hold such numbers, as older versions wrote them ------------------------------------------------


@pytest.fixture(scope="module")
def good(lm, fit_arguments, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("good") / "run"
    assert lm(*fit_arguments(run, *SETTINGS)).code == 0
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


@pytest.mark.parametrize(("part", "value"), [*PARTS, *(pytest.param(*trial, marks=many) for trial in MANY_PARTS)])
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
        for record in map(strict, result.out.splitlines()):
            assert (record["loss"], record["perplexity"], record["bits_per_byte"]) == (None, None, None)
            assert record["tokens"] > 0
    assert "nan nats a token" in lm("test", run, token_data / "valid.bin").out


def test_one_bad_document_is_no_success(lm, good, token_data, monkeypatch):
    token_losses = evaluation.token_losses

    def spoilt(model, windows):
        losses = token_losses(model, windows)
        return [loss + INF if window.document == 3 else loss for loss, window in zip(losses, windows, strict=True)]

    monkeypatch.setattr(evaluation, "token_losses", spoilt)
    result = lm("test", good, token_data / "valid.bin", "--json", "--per-document")
    assert result.code == 2
    *documents, total = map(strict, result.out.splitlines())
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
    content = strict((tmp_path / "sweep.json").read_text())
    assert [row["value"] for row in content["runs"]] == ["inf", *range(1, len(SWEEPS))]
    with open(tmp_path / "sweep.csv", newline="") as file:
        cells = [cell for row in csv.DictReader(file) for name, cell in row.items() if name != "value"]
    assert not {"nan", "inf", "-inf"} & set(cells)
    again = Results.read(tmp_path, "model.max_gradient_norm", results.settings)
    assert again.rows == results.rows
    assert results.draw().read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [["both infinities", "one below everything"], pytest.param([*SWEEPS], marks=many)])
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


@pytest.mark.parametrize(
    ("where", "step"), [*RANGE_TESTS, *(pytest.param(*trial, marks=many) for trial in MANY_RANGE_TESTS)]
)
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


@many
def test_a_range_test_may_end_in_lost_weights(lm, fit_arguments, tmp_path):
    arguments = [word for word in fit_arguments(tmp_path / "run")[1:] if "default_root_dir" not in str(word)]
    more = ["--steps=20", "--lowest=1e-3", "--highest=1e38", "--model.max_gradient_norm=.inf"]
    result = lm("find-lr", *arguments, *more, "--output", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert math.isfinite(float(result.out.partition("--model.learning_rate ")[2].split()[0]))


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings():
    """Those of a run, as the parser gives them, without what it leaves to the machine."""
    from lm.training.parser import SettingsCLI

    return SettingsCLI(["fit", "-c", str(ROOT / "configs/debug.yaml")]).config.fit


def float_settings(settings) -> dict[str, float | tuple[float, ...]]:
    """By dotted names, every one that is a float by its default, or a tuple of floats."""
    sections = ((section, vars(values)) for section, values in vars(settings).items() if hasattr(values, "__dict__"))
    named = {f"{section}.{name}": value for section, values in sections for name, value in values.items()}
    kind = (float, tuple, list)
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, kind) and (isinstance(value, float) or all(isinstance(each, float) for each in value))
    }


IMPOSSIBLE = [*VALUES, 1e39]  # the last in float32
NEVER_SCALES = [("model.max_gradient_norm", INF), ("model.max_gradient_norm", 1e39)]


def test_no_setting_is_a_number_that_is_none(settings):
    floats = float_settings(settings)
    assert {"model.learning_rate", "model.betas", "model.eps", "samples.temperature"} <= floats.keys()
    for name, usual in {**floats, "trainer.limit_val_batches": 1.0}.items():
        section, _, key = name.partition(".")
        for value in IMPOSSIBLE:
            changed = settings.clone()
            changed[section][key] = value if isinstance(usual, float) else (*usual[:-1], value)
            if (name, value) in NEVER_SCALES:
                check_numbers(changed)
            else:
                with pytest.raises(InputError, match=re.escape(f"{name} is {value}; it must be a finite number")):
                    check_numbers(changed)


@many
def test_no_setting_of_the_command_line_is_a_number_that_is_none(settings, lm, fit_arguments, tmp_path):
    for name in (*float_settings(settings), "trainer.limit_val_batches"):
        for value in IMPOSSIBLE:
            if (name, value) not in NEVER_SCALES:
                words = re.sub(r"(nan|inf)", r".\1", str(value)) if value != 1e39 else "1.0e+39"
                wish = f"[0.9,{words}]" if name == "model.betas" else words
                result = lm(*fit_arguments(tmp_path / "run", f"--{name}={wish}"))
                assert (result.code, result.out) == (2, ""), (name, value)
                assert name.rpartition(".")[2] in result.err, (name, value)
                assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


SENSELESS = {
    "model.learning_rate=.inf": "model.learning_rate is inf; it must be a finite number",
    "model.eps=0": "eps is 0.0; it must be finite and at least 1.2e-38",
    "model.eps=1e-46": "eps is 1e-46",
    "model.betas=[1.0,0.95]": "each must be at least 0 and below 1",
    "model.rope_theta=0": "theta is 0.0",
}


@pytest.mark.parametrize(
    "wish", [*list(SENSELESS)[:2], *(pytest.param(wish, marks=many) for wish in list(SENSELESS)[2:])]
)
def test_settings_that_cannot_work(wish, lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", f"--{wish}"))
    assert (result.code, result.out) == (2, "")
    assert SENSELESS[wish] in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"learning_rate": NAN}, {"weight_decay": INF}, {"z_loss": NAN}, {"eps": 0.0}])
def test_the_classes_refuse_as_well(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LanguageModel(vocab_size=32, context_length=8, d_model=8, num_layers=1, num_heads=1, **wrong)


def test_a_sweep_over_what_cannot_be_is_refused_before_its_first_run(lm, fit_arguments, tmp_path):
    arguments = [word for word in fit_arguments(tmp_path / "run")[1:] if "default_root_dir" not in str(word)]
    result = lm("sweep", *arguments, "--param=model.z_loss", "--values", "0.1", ".nan", "--output", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert "model.z_loss is nan" in result.err
    assert not (tmp_path / "out").exists()


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_account_is_json(lm):
    assert strict(lm("account", "gpt2-small", "--json").out)


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
        "lm/training/checks.py",
        "lm/training/hosts.py",
    )  # read back where it is made
    assert [call for call in calls if "allow_nan=False" not in call and not call.startswith(elsewhere)] == []
