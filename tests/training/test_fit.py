"""Proves training end to end, on configs/debug.yaml made tiny: what a run writes, that a resumed run is the
uninterrupted one bit for bit, and that validation and generation follow from the run's folder alone."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import ROOT
from helpers.events import read_events
from helpers.runs import SETTINGS, STEPS, TIMED, same
from lightning import LightningModule, Trainer
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader

from lm.optim.schedule import cosine_warmup
from lm.runs.checkpoint import load_checkpoint, load_model, load_tokenizer
from lm.training.data import TokenDataModule
from lm.training.module import LanguageModel
from lm.training.recovery import Checkpoints
from lm.training.samples import paragraph
from lm.training.windows import RandomWindows, SequentialWindows
from tokenization import InputError, TokenFile


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not same(a[key], b[key])] == []
    (scalars, texts), (other_scalars, other_texts) = read_events(one), read_events(other)
    for curves in (scalars, other_scalars):
        assert all(curves.pop(tag) for tag in TIMED)
    assert dict(scalars) == dict(other_scalars)
    assert texts == other_texts


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def cut_run(lm, fit_arguments):
    """cut_run(step, folder, *settings): a run that dies when `step` steps are done."""

    def run(step: int, folder: Path, *settings: object) -> None:
        start = LanguageModel.on_train_batch_start

        def fail(self, batch, batch_idx):
            if self.global_step == step:
                raise PowerCut
            start(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "on_train_batch_start", fail)
            patch.setattr(Checkpoints, "on_exception", lambda *_: None)  # nothing can be saved any more
            with pytest.raises(PowerCut):
                lm(*fit_arguments(folder, *settings))

    return run


@pytest.fixture(scope="module")
def run(lm, fit_arguments, tmp_path_factory) -> Path:
    """A whole run of 14 steps, validated at 4, 8, 12 and 14, saved at 3, 4, 6, 8, 9, 12 and 14."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = lm(*fit_arguments(folder, *SETTINGS))
    assert (result.code, result.err) == (0, "")
    parameters = 2 * 320 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 64) + 5 * 16
    assert f"{folder}: {parameters:,} parameters, 14 steps of 128 tokens, 32-true on cpu" in result.out
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The same run, moved elsewhere, for tests that change it."""
    return Path(shutil.copytree(run, tmp_path / "elsewhere"))


# --- what a run writes -----------------------------------------------------------------------------------------------


def test_a_run_is_one_folder(run):
    names = sorted(path.name.split(".")[0] for path in run.iterdir())
    assert names == ["best", "config", "events", "last", "tokenizer"]
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == STEPS
    assert config["model"]["d_model"] == 16
    assert config["trainer"]["precision"] == "32-true"
    assert config["seed_everything"] == 0
    assert "max_steps" not in config["model"]  # it is the trainer's, and said once


def test_the_last_step_is_validated_and_saved(run):
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == STEPS
    assert torch.load(run / "best.ckpt", weights_only=True)["global_step"] in (4, 8, 12, 14)
    scalars, _ = read_events(run)
    validations = dict(scalars["val/loss"])
    assert list(validations) == [4, 8, 12, 14]
    best_step = min(validations, key=lambda step: validations[step])
    assert load_checkpoint(run / "best.ckpt")["global_step"] == best_step


def test_every_promised_curve_is_there_at_its_steps(run):
    scalars, texts = read_events(run)
    train = ["lr", "train/gradient_norm", "train/loss", "train/mfu", "train/peak_memory_gb", "train/skipped_steps"]
    train += ["train/passes", "train/tokens_per_second", "train/tokens_seen"]
    validation = ["val/bits_per_byte", "val/gap", "val/loss", "val/perplexity"]
    apart = ("_norm/", "_rms/", "baselines/")
    assert sorted(tag for tag in scalars if not any(part in tag for part in apart)) == sorted(train) + validation
    steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
    for tag in train:
        assert steps[tag] == list(range(1, STEPS + 1)), tag
    for tag in validation:
        assert steps[tag] == [4, 8, 12, 14], tag
    assert [value for _, value in scalars["train/tokens_seen"]] == [128 * step for step in range(1, STEPS + 1)]
    assert {value for _, value in scalars["train/skipped_steps"]} == {0}
    expected = [cosine_warmup(step, 1e-2, 1e-3, 5, STEPS) for step in range(1, STEPS + 1)]
    assert [value for _, value in scalars["lr"]] == pytest.approx(expected)
    assert expected[-1] == pytest.approx(1e-3)  # the cosine ends with the run
    assert scalars["train/loss"][0][1] == pytest.approx(math.log(320), abs=0.3)
    assert all(value > 0 for tag in (*TIMED, "train/gradient_norm") for _, value in scalars[tag])
    assert [step for step, _ in texts["sample/text_summary"]] == [4, 8, 12, 14]
    assert all(text.startswith("Once upon a time") for _, text in texts["sample/text_summary"])


def test_the_first_step_by_hand(run, token_data):
    """The first loss and gradient norm, from the seed and the first batch, in torch's functions."""
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=320, context_length=16, d_model=16, num_layers=2, num_heads=2).model
    inputs, targets = RandomWindows(TokenFile.open(token_data / "train.bin").tokens, 16, 8, seed=0, num_batches=1)[0]
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    scalars, _ = read_events(run)
    assert scalars["train/loss"][0] == (1, pytest.approx(loss.item()))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert scalars["train/gradient_norm"][0] == (1, pytest.approx(norm))


def test_norms_by_hand(run, token_data):
    """Of each part's weights and gradients in step 10, and of what it puts out at the end: in torch's functions."""
    scalars, _ = read_events(run)
    parts = ["layers.0", "layers.1", "lm_head", "ln_final", "token_embeddings"]
    for kind in ("weight_norm", "gradient_norm"):
        assert sorted(tag for tag in scalars if tag.startswith(kind)) == [f"{kind}/{part}" for part in parts]
        assert all([step for step, _ in scalars[f"{kind}/{part}"]] == [10] for part in parts)
    whole = math.hypot(*(scalars[f"gradient_norm/{part}"][0][1] for part in parts))
    assert whole == pytest.approx(dict(scalars["train/gradient_norm"])[10], rel=1e-5)
    model = load_model(run / "last.ckpt")
    inputs, _ = SequentialWindows(TokenFile.open(token_data / "valid.bin").tokens, 16, 8)[0]
    x, seen = model.token_embeddings(inputs), {}
    seen["token_embeddings"] = x
    for number, layer in enumerate(model.layers):
        seen[f"layers.{number}"] = x = layer(x, torch.arange(16))
    seen["ln_final"] = model.ln_final(x)
    assert {tag for tag in scalars if "_rms/" in tag} == {f"activation_rms/{part}" for part in seen}
    for part, value in seen.items():
        points = scalars[f"activation_rms/{part}"]
        assert [step for step, _ in points] == [4, 8, 12, 14]
        assert points[-1][1] == pytest.approx(value.square().mean().sqrt().item(), rel=1e-5)


def test_settings_are_shown_beside_the_results(run):
    names = {}
    for path in run.glob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith("_hparams_"):
                    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    names[value.tag] = content
    assert {metric.name.tag for metric in names["_hparams_/experiment"].experiment.metric_infos} == {
        "val/loss", "val/bits_per_byte", "train/loss"
    }  # fmt: skip
    settings = names["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["model.learning_rate"].number_value == 0.01
    assert settings["data.batch_size"].number_value == 8
    assert settings["model.norm_position"].string_value == "pre"


def validation_by_hand(checkpoint: Path, token_data: Path, limit: int = 5) -> dict[str, float]:
    """Side by side windows of 16 from the beginning, `limit` batches of 8, in torch's functions."""
    model, file = load_model(checkpoint), TokenFile.open(token_data / "valid.bin")
    tokens = torch.tensor(file.tokens[: min(limit * 8, (len(file) - 1) // 16) * 16 + 1].astype("int64"))
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens[:-1].view(-1, 16)).flatten(0, 1), tokens[1:]).item()
    description = json.loads((token_data / "valid.bin.json").read_text())
    bits = loss / math.log(2) * description["tokens"] / (token_data / "valid.txt").stat().st_size
    return {"val/loss": loss, "val/perplexity": math.exp(loss), "val/bits_per_byte": bits}


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_validation_by_hand(run, token_data, name):
    step = load_checkpoint(run / name)["global_step"]
    scalars, _ = read_events(run)
    for tag, expected in validation_by_hand(run / name, token_data).items():
        assert dict(scalars[tag])[step] == pytest.approx(expected, rel=1e-5)


def test_validate_reads_the_whole_file_where_nothing_limits_it(lm, copy, token_data):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    arguments = ("validate", "-c", copy / "config.yaml", "--ckpt_path", copy / "best.ckpt")
    result = lm(*arguments, "--trainer.limit_val_batches=null")
    assert (result.code, result.err) == (0, "")
    for tag, expected in validation_by_hand(copy / "best.ckpt", token_data, limit=10**9).items():
        line = next(line for line in result.out.splitlines() if tag in line)
        assert float(line.replace("│", " ").split()[-1]) == pytest.approx(expected, rel=1e-5)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


# --- resuming --------------------------------------------------------------------------------------------------------

CASES = {
    # step of the cut, checkpoint to go on from, its step, settings
    "saved between validations": (11, "last.ckpt", 9, []),
    "saved at a validation": (13, "last.ckpt", 12, []),
    "best": (7, "best.ckpt", 4, []),
    "saved by both": (8, "last.ckpt", 6, ["--trainer.val_check_interval=3"]),
    "before any validation": (4, "last.ckpt", 3, ["--trainer.val_check_interval=14"]),
    "accumulated": (7, "last.ckpt", 6, ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]),
    "accumulated, best": (5, "best.ckpt", 4, ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]),
    "worker": (8, "last.ckpt", 6, ["--data.num_workers=1", "--trainer.val_check_interval=5"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, lm, fit_arguments, cut_run, run, tmp_path):
    cut_step, name, saved_step, settings = CASES[case]
    whole, cut = run, tmp_path / "cut"
    if settings:
        whole = tmp_path / "whole"
        assert lm(*fit_arguments(whole, *SETTINGS, *settings)).code == 0
    cut_run(cut_step, cut, *SETTINGS, *settings)
    assert load_checkpoint(cut / name)["global_step"] == saved_step
    if name == "best.ckpt":  # the folder of somebody who kept only this
        (cut / "last.ckpt").unlink()
    for events in cut.glob("events*"):
        shutil.move(events, tmp_path / events.name)
    result = lm("fit", "-c", cut / "config.yaml", "--ckpt_path", cut / name)
    assert (result.code, result.err) == (0, "")
    assert f"resuming from {cut / name}, step {saved_step}" in result.out
    again = read_events(cut)[0]
    assert min(step for points in again.values() for step, _ in points) == saved_step + 1  # nothing is done twice
    for events in tmp_path.glob("events*"):
        shutil.move(events, cut / events.name)
    (after, texts), (expected, expected_texts) = read_events(cut), read_events(whole)
    assert all(expected.pop(tag) and after.pop(tag) for tag in TIMED)
    assert after == expected  # neither a gap nor a point twice, in what TensorBoard joins
    assert texts == expected_texts
    tokens = 128 * (2 if "accumulated" in case else 1)
    assert expected["train/tokens_seen"] == [(step, tokens * step) for step in range(1, STEPS + 1)]
    for name in ("last.ckpt", "best.ckpt"):
        a, b = load_checkpoint(whole / name), load_checkpoint(cut / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not same(a[key], b[key])] == []


@pytest.mark.parametrize("steps", [8, 10], ids=["ended at a validation", "ended between validations"])
def test_a_finished_run_trained_further_is_the_longer_run(steps, lm, fit_arguments, tmp_path):
    constant = ["--model.min_learning_rate=0.01", "--model.warmup_steps=0"]  # or the cosine would end elsewhere
    assert lm(*fit_arguments(tmp_path / "whole", *SETTINGS, *constant)).code == 0
    assert lm(*fit_arguments(tmp_path / "part", *SETTINGS, *constant, f"--trainer.max_steps={steps}")).code == 0
    arguments = ("-c", tmp_path / "part/config.yaml", "--ckpt_path", tmp_path / "part/last.ckpt")
    assert lm("fit", *arguments, f"--trainer.max_steps={STEPS}").code == 0
    (expected, _), (curves, _) = read_events(tmp_path / "whole"), read_events(tmp_path / "part")
    for tag, points in expected.items():
        if tag not in TIMED:
            assert points == [
                point
                for point in curves[tag]
                if steps != 10 or not tag.startswith(("val/", "activation_rms/", "baselines/")) or point[0] != 10
            ], tag
    a, b = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("whole", "part"))
    for key in ("state_dict", "optimizer_states", "global_step", "hyper_parameters"):
        assert same(a[key], b[key]), key


def test_the_same_command_writes_the_same_run(lm, fit_arguments, run, tmp_path):
    torch.manual_seed(123)
    assert lm(*fit_arguments(tmp_path / "again", *SETTINGS)).code == 0
    assert_same_run(run, tmp_path / "again")


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_may_begin_with_nothing(lm, fit_arguments, tmp_path):
    assert lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", "--samples.prompt=")).code == 0
    _, texts = read_events(tmp_path / "run")
    assert len(texts["sample/text_summary"]) == 1
    assert not texts["sample/text_summary"][0][1].startswith("no sample")


# --- a resumed run with other settings -------------------------------------------------------------------------------


def go_on(copy: Path, *settings: object) -> list[object]:
    arguments = ["fit", "-c", copy / "config.yaml", "--ckpt_path", copy / "last.ckpt"]
    return [*arguments, "--trainer.default_root_dir", copy, *settings]


def test_changed_settings_take_effect_and_are_recorded(lm, copy):
    settings = {"learning_rate": 0.5, "min_learning_rate": 0.3, "weight_decay": 0.7, "betas": [0.5, 0.6], "eps": 1e-3}
    flags = [f"--model.{name}={value}" for name, value in settings.items()]
    result = lm(*go_on(copy, "--trainer.max_steps=20", *flags))
    assert (result.code, result.err) == (0, "")
    assert "  from here on  learning_rate: 0.01 -> 0.5" in result.out
    assert "  from here on  max_steps: 14 -> 20" in result.out
    assert len(result.out.split("from here on")) == 1 + 1 + len(settings)  # those, and nothing else
    recorded = yaml.safe_load((copy / "config.yaml").read_text())
    checkpoint = load_checkpoint(copy / "last.ckpt")
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    for name, value in settings.items():
        assert recorded["model"][name] == value
        if name in group:
            assert group[name] == (tuple(value) if name == "betas" else value)
    scalars, _ = read_events(copy)
    rates = dict(scalars["lr"])
    assert [rates[step] for step in range(1, 15)] == pytest.approx(
        [cosine_warmup(s, 1e-2, 1e-3, 5, 14) for s in range(1, 15)]
    )
    assert [rates[step] for step in range(15, 21)] == pytest.approx(
        [cosine_warmup(s, 0.5, 0.3, 5, 20) for s in range(15, 21)]
    )
    assert checkpoint["global_step"] == 20


def test_the_best_stays_the_best_across_a_resume(lm, copy):
    before, best = (copy / "best.ckpt").read_bytes(), load_checkpoint(copy / "best.ckpt")["global_step"]
    assert lm(*go_on(copy, "--trainer.max_steps=20", "--model.learning_rate=10")).code == 0
    assert min(dict(read_events(copy)[0]["val/loss"]).items(), key=lambda point: point[1])[0] == best
    assert (copy / "best.ckpt").read_bytes() == before


REFUSED = {
    "d_model": (["--model.d_model=32"], "last.ckpt: was trained with model.d_model 16, not 32; leave it at 16, or"),
    "layers": (["--model.num_layers=1"], "was trained with model.num_layers 2, not 1"),
    "context": (["--model.context_length=8"], "was trained with model.context_length 16, not 8"),
    "vocabulary": (["--model.vocab_size=400"], "was trained with model.vocab_size 320, not 400"),
    "ablation": (["--model.norm_position=post"], "was trained with model.norm_position pre, not post"),
    "theta": (["--model.rope_theta=5000"], "was trained with model.rope_theta 10000.0, not 5000.0"),
    "finished": (["--trainer.max_steps=14"], "last.ckpt: is at step 14, and trainer.max_steps is 14; raise"),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "was trained with trainer.accumulate_grad_batches 1"),
    "tokenizer": (
        ["--data.tokenizer=other/tok", "--data.train_path=other/train.bin", "--data.val_path=other/valid.bin"],
        "other/tok: is not the tokenizer that the checkpoint was trained with",
    ),
    "other tokenizer's file": (
        ["--data.val_path=other/valid.bin"],
        "other/valid.bin: was encoded by another tokenizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_change_is_refused_and_changes_no_file(case, lm, copy, token_data, small, monkeypatch):
    monkeypatch.chdir(copy)
    small.save("other/tok")
    for name in ("train", "valid"):
        small.encode_files([token_data / f"{name}.txt"], f"other/{name}.bin", num_processes=1)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    settings, message = REFUSED[case]
    result = lm(*go_on(copy, "--trainer.max_steps=20", *settings))
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_second_run_in_the_same_folder_is_refused(lm, fit_arguments, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    result = lm(*fit_arguments(copy, *SETTINGS))
    assert result.code == 2
    assert f"{copy}: already holds a run; resume it with --ckpt_path {copy / 'last.ckpt'}, or" in result.err
    other = shutil.copytree(copy, tmp_path / "other")
    result = lm(*go_on(copy, f"--trainer.default_root_dir={other}", "--trainer.max_steps=20"))
    assert (result.code, result.out) == (2, "")
    assert f"{other}: already holds a run" in result.err
    assert (other / "last.ckpt").read_bytes() == (copy / "last.ckpt").read_bytes()
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_in_another_folder_is_whole_there(lm, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    settings = ["--trainer.max_steps=20", "--model.learning_rate=10", f"--trainer.default_root_dir={new}"]
    assert lm(*go_on(copy), *settings).code == 0
    assert {path.name for path in new.iterdir()} >= {"best.ckpt", "last.ckpt", "config.yaml", "tokenizer"}
    validations = dict(read_events(new)[0]["val/loss"])
    assert load_checkpoint(new / "best.ckpt")["global_step"] == min(validations, key=lambda step: validations[step])
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_trial_run_leaves_a_run_as_it_was(lm, fit_arguments, copy, tmp_path):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for folder in (copy, tmp_path / "new"):
        assert lm(*fit_arguments(folder, "--trainer.fast_dev_run=true")).code == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_without_a_logger(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", "--trainer.logger=false"))
    assert (result.code, result.err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.ckpt", "config.yaml", "last.ckpt", "tokenizer"]


def test_bfloat16_on_the_cpu(lm, fit_arguments, run, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, "--trainer.precision=bf16-mixed"))
    assert (result.code, result.err) == (0, "")
    assert "bf16-mixed on cpu" in result.out
    checkpoint = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert all(weight.dtype == torch.float32 for weight in checkpoint["state_dict"].values())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    losses, exact = (dict(read_events(folder)[0]["train/loss"]) for folder in (tmp_path / "run", run))
    assert losses != exact
    assert list(losses.values()) == pytest.approx(list(exact.values()), abs=0.05)


# --- the folder alone ------------------------------------------------------------------------------------------------


def test_generate_needs_the_folder_alone(lm, copy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for unused in ("config.yaml", "last.ckpt"):
        (copy / unused).unlink()
    for events in copy.glob("events*"):
        events.unlink()
    arguments = ("generate", "elsewhere/best.ckpt", "--prompt", "The cat", "--max-new-tokens", 9, "--top-k", 7)
    first, again, other = (lm(*arguments, "--seed", seed) for seed in (1, 1, 2))
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("The cat")
    assert first.out.endswith("\n")
    assert again.out == first.out != other.out
    assert len(load_tokenizer("elsewhere/best.ckpt").encode(first.out[:-1])) > len("The cat") // 4
    assert lm("generate", "elsewhere/best.ckpt", "--prompt", "", "--max-new-tokens", 3).code == 0
    greedy = {lm(*arguments, "--temperature", 0, "--seed", seed).out for seed in (1, 2)}
    assert len(greedy) == 1


def test_a_text_beyond_the_context_slides_and_says_so_once_and_last(lm, run):
    result = lm("generate", run / "best.ckpt", "--prompt", "The cat saw a red ball. " * 9, "--max-new-tokens", 5)
    assert result.code == 0
    assert result.out.startswith("The cat saw a red ball. " * 9)
    assert re.fullmatch(
        r"\[the prompt has \d+ tokens, and the model sees 16 at once: only its last 8 were read\]\n", result.err
    )
    arguments = ["generate", run / "best.ckpt", "--temperature", 0, "--prompt", "The cat"]
    length = len(load_tokenizer(run / "best.ckpt").encode("The cat"))
    assert lm(*arguments, "--max-new-tokens", 17 - length).err == ""  # the last one is drawn from a full context
    one_more = lm(*arguments, "--max-new-tokens", 18 - length).err
    assert (
        one_more
        == "[the text has 18 tokens, and the model sees 16 at once: the end was written from the last 8 to 16]\n"
    )


def test_generation_is_the_models(lm, run):
    """Greedy, against the argmax of the model on the whole text, which still fits the context."""
    model, tokenizer = load_model(run / "last.ckpt"), load_tokenizer(run / "last.ckpt")
    token_ids = tokenizer.encode("The cat saw")
    for _ in range(6):
        token_ids.append(int(model(torch.tensor(token_ids))[-1].argmax()))
    result = lm("generate", run / "last.ckpt", "--prompt", "The cat saw", "--max-new-tokens", 6, "--temperature", 0)
    assert result.out == tokenizer.decode(token_ids).partition("<|endoftext|>")[0] + "\n"


def test_several_prompts_write_what_each_writes_alone(lm, run):
    prompts, settings = ("The cat", "Tom saw a red", ""), ("--max-new-tokens", 30, "--temperature", 1)
    result = lm("generate", run / "best.ckpt", *settings, "--seed", 4, *(f"--prompt={prompt}" for prompt in prompts))
    assert (result.code, len(result.err.splitlines())) == (0, 1)  # that 30 tokens slide
    expected = ""
    for number, prompt in enumerate(prompts):
        alone = lm("generate", run / "best.ckpt", *settings, "--seed", 4 + number, "--prompt", prompt)
        expected += f"[{number + 1} of 3, seed {4 + number}]\n{alone.out}\n"
    assert result.out == expected


def test_generation_in_bfloat16(lm, run):
    arguments = ("generate", run / "best.ckpt", "--prompt", "The cat saw", "--max-new-tokens", 40, "--temperature", 1)
    exact, named, rounded = (lm(*arguments, *more) for more in ((), ("--precision=fp32",), ("--precision", "bf16")))
    assert exact.out == named.out
    assert rounded.code == 0
    assert rounded.out.startswith("The cat saw")
    assert rounded.out == lm(*arguments, "--precision", "bf16").out


def test_a_reader_that_leaves_ends_the_text_quietly(run):
    arguments = [sys.executable, "-m", "lm", "generate", str(run / "best.ckpt"), "--max-new-tokens", "9"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert process.returncode == 141
    assert len(errors.splitlines()) <= 1  # that the text is longer than the context


WRONG_WISHES = [
    (["--temperature=-1"], "temperature -1.0"),
    (["--temperature=nan"], "temperature nan"),
    (["--top-k=0"], "top_k 0"),
    (["--top-p=-0.1"], "top_p -0.1"),
    (["--top-p=1.5"], "top_p 1.5"),
    (["--max-new-tokens=0"], "--max-new-tokens 0"),
    (["--seed=-1"], "--seed -1"),
    ([f"--seed={1 << 64}"], f"--seed {1 << 64}"),
    (["--prompt=\udcff"], "--prompt: is not UTF-8"),
    (["--prompt=a", "--prompt=\udcff"], "--prompt: is not UTF-8"),
    (["--precision=fp8"], "argument --precision: invalid choice: 'fp8'"),
]


@pytest.mark.parametrize(("wish", "message"), WRONG_WISHES, ids=[ascii(wish[0]) for wish, _ in WRONG_WISHES])
def test_a_wish_that_makes_no_sense(lm, run, wish, message):
    result = lm("generate", run / "best.ckpt", *wish)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"lm generate: {message}")
    assert len(result.err.splitlines()) == 1


def test_a_damaged_run(lm, copy):
    """A checkpoint cut short, one of other bytes, a folder without its tokenizer; whichever command reads them."""
    content = (copy / "best.ckpt").read_bytes()
    (copy / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (copy / "random.ckpt").write_bytes(b"\x80\x02" + bytes(range(256)))
    torch.save({"weights": torch.zeros(3)}, copy / "other.ckpt")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in ("cut", "random", "other", "none"):
        path = copy / f"{name}.ckpt"
        for arguments in (
            ["generate", path],
            go_on(copy, "--ckpt_path", path, "--trainer.max_steps=20"),
            ["validate", "-c", copy / "config.yaml", "--ckpt_path", path],
        ):
            result = lm(*arguments)
            assert (result.code, result.out) == (2, "")
            assert len(result.err.splitlines()) == 1
            assert str(path) in result.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    shutil.rmtree(copy / "tokenizer")
    result = lm("generate", copy / "best.ckpt")
    assert (result.code, result.out) == (2, "")
    assert f"{copy / 'tokenizer'}: no such tokenizer folder" in result.err


def test_validate_wants_a_checkpoint(lm, copy):
    result = lm("validate", "-c", copy / "config.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err == "lm validate: which checkpoint? --ckpt_path checkpoints/RUN/best.ckpt names one\n"


def test_validate_takes_a_folder(lm, copy):
    named = lm("validate", "-c", copy / "config.yaml", "--ckpt_path", copy / "best.ckpt")
    assert named.code == 0
    for run in (copy, copy / "best.ckpt"):
        result = lm("validate", run)
        assert (result.code, result.out, result.err) == (0, named.out, named.err)
    (copy / "best.ckpt").unlink()
    assert lm("validate", copy, "--trainer.limit_val_batches=1").code == 0  # last.ckpt stands in, as in generate


# --- in Python -------------------------------------------------------------------------------------------------------


def quiet(**settings: object) -> Trainer:
    silent = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **silent, **settings)


def test_lightning_loads_a_checkpoint(run):
    loaded, ours = LanguageModel.load_from_checkpoint(run / "best.ckpt"), load_model(run / "best.ckpt")
    assert loaded.hparams["max_steps"] == STEPS
    assert same(loaded.model.state_dict(), ours.state_dict())


def test_a_trainer_of_ones_own_trains_the_same(run, token_data):
    torch.manual_seed(0)
    shape = {"vocab_size": 320, "context_length": 16, "d_model": 16, "num_layers": 2, "num_heads": 2}
    rate = {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 5, "max_steps": STEPS}
    paths = [str(token_data / name) for name in ("train.bin", "valid.bin", "tok")]
    model, data = LanguageModel(**shape, **rate), TokenDataModule(*paths, 16, 320, batch_size=8)
    quiet(max_steps=STEPS).fit(model, datamodule=data)
    assert same(dict(model.state_dict()), load_checkpoint(run / "last.ckpt")["state_dict"])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_what_is_no_batch_and_a_run_without_a_length_are_refused(token_data):
    model = LanguageModel(vocab_size=320, context_length=16, d_model=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="a batch is a Tensor; it must be a pair of tensors"):
        quiet(max_steps=2).fit(model, DataLoader([torch.zeros(2, 16, dtype=torch.long)] * 4))
    data = TokenDataModule(*(str(token_data / name) for name in ("train.bin", "valid.bin", "tok")), 16, 320)
    with pytest.raises(InputError, match="max_steps is -1; it must be at least 1"):
        quiet(max_epochs=1).fit(model, datamodule=data)


# --- what a run says -------------------------------------------------------------------------------------------------


def test_only_drawn_steps_reach_lightning(lm, fit_arguments, tmp_path, monkeypatch):
    """The last step is drawn, wherever it falls, and every figure is that of its own step."""
    logged, log = [], LightningModule.log
    monkeypatch.setattr(
        LightningModule, "log", lambda module, *args, **kw: logged.append(args[0]) or log(module, *args, **kw)
    )
    few = ("--trainer.max_steps=7", "--trainer.val_check_interval=7")
    for every in (1, 3):
        assert lm(*fit_arguments(tmp_path / f"{every}", *few, f"--trainer.log_every_n_steps={every}")).code == 0
    everything, drawn = (read_events(tmp_path / f"{every}")[0] for every in (1, 3))
    for name in ("train/loss", "lr", "train/gradient_norm", "train/tokens_seen"):
        assert drawn[name] == [(step, value) for step, value in everything[name] if step in (3, 6, 7)], name
    assert logged.count("train/loss") == 7 + 3


def test_without_a_bar_the_losses_are_printed(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, "--trainer.log_every_n_steps=5"))
    scalars, _ = read_events(tmp_path / "run")
    losses, validations = dict(scalars["train/loss"]), dict(scalars["val/loss"])
    lines = [line.split(":")[0] for line in result.out.splitlines() if line.startswith("step ")]
    assert lines == ["step 4", "step 5 of 14", "step 8", "step 10 of 14", "step 12", "step 14"]
    assert f"step 5 of 14: loss {losses[5]:.4f}, " in result.out
    assert f"step 8: validation loss {validations[8]:.4f}, perplexity {math.exp(validations[8]):.2f}, " in result.out
    assert result.out.endswith(f"{tmp_path / 'run'}: ended at step 14 of 14\n")
    step, best = min(validations.items(), key=lambda entry: entry[1])
    bits = dict(scalars["val/bits_per_byte"])[step]
    words = f"; the best validation loss is {best:.4f}, at step {step}: {bits:.4f} bits per byte"
    assert re.search(r"\ntrained for \d+ s" + re.escape(words), result.out)


def test_a_sample_is_printed_below_each_validation(lm, fit_arguments, tmp_path):
    arguments = (*SETTINGS, "--samples.prompt=Tom", "--samples.max_new_tokens=5")
    result = lm(*fit_arguments(tmp_path / "run", *arguments))
    lines = result.out.splitlines()
    below = [lines[i + 1] for i, line in enumerate(lines) if "validation loss" in line and line.startswith("step ")]
    assert len(below) == 4
    assert all(line.startswith("  Tom") for line in below)


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("a \n\n b\tc", "utf-8", "  a b c"),
        ("\x1b[2J\x07 \u202e", "utf-8", "  \\x1b[2J\\x07 \\u202e"),
        ("é日", "utf-8", "  é日"),
        ("é日", "ascii", "  \\xe9\\u65e5"),
        ("", "utf-8", ""),
        ("ab " * 60, "utf-8", "\n".join(["  " + "ab " * 25 + "ab", "  " + "ab " * 25 + "ab", "  " + "ab " * 7 + "ab"])),
    ],
)
def test_any_terminal_shows_a_sample(text, encoding, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert paragraph(text) == shown


def test_a_run_shorter_than_the_validation_interval_is_validated_at_its_end(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=3", "--trainer.val_check_interval=100"))
    assert (result.code, result.err) == (0, "")
    assert [step for step, _ in read_events(tmp_path / "run")[0]["val/loss"]] == [3]
    assert (tmp_path / "run" / "best.ckpt").exists()


def test_max_time_ends_a_run_with_a_word_and_counts_anew(lm, fit_arguments, run, tmp_path):
    """Each start makes a step of its own; in the end the run is what it would have been without."""
    cut, short = tmp_path / "run", '--trainer.max_time={"microseconds": 1}'
    for step in (1, 2, 3):
        result = lm(*fit_arguments(cut, *SETTINGS, "--ckpt_path=auto", short))
        assert (result.code, result.err) == (0, "")
        assert load_checkpoint(cut / "last.ckpt")["global_step"] == step
        assert result.out.endswith(
            f"{cut}: ended at step {step} of 14: trainer.max_time is over;"
            f" `lm fit -c {cut / 'config.yaml'} --ckpt_path {cut / 'last.ckpt'}` resumes it\n"
        )
    assert lm(*fit_arguments(cut, *SETTINGS, "--ckpt_path=auto")).code == 0
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (cut, run))
    assert all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states", "global_step"))


def test_who_stops_a_run_early_is_named(lm, fit_arguments, tmp_path):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stop["init_args"] = {"monitor": "val/loss", "patience": 1, "min_delta": 100.0}
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, f"--trainer.callbacks={json.dumps([stop])}"))
    assert result.code == 0
    assert "ended at step 8 of 14: " in result.out
    assert "val/loss did not improve" in result.out


def test_other_loggers_come_beside_our_own(lm, fit_arguments, run, tmp_path):
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    assert lm(*fit_arguments(tmp_path / "run", *SETTINGS, f"--trainer.logger={json.dumps(csv)}")).code == 0
    assert read_events(tmp_path / "run")[1] == read_events(run)[1]  # the samples
    (metrics,) = (tmp_path / "csv").rglob("metrics.csv")
    assert "val/loss" in metrics.read_text().splitlines()[0]
    assert lm("report", tmp_path / "run", "--output", tmp_path / "report.html").code == 0


def test_a_profile_and_a_summary_are_printed(lm, fit_arguments, tmp_path):
    wishes = ["--trainer.profiler=simple", "--trainer.enable_model_summary=true"]
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", *wishes))
    assert result.code == 0
    assert "run_training_batch" in result.out
    assert "TransformerLM" in result.out + result.err
