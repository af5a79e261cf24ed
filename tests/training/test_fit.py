"""Proves training end to end, on configs/debug.yaml made tiny: what a run writes, what it says, and that validation and
generation follow from the run's folder alone."""

import io
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers.events import read_events
from helpers.runs import SETTINGS, STEPS, TIMED, same
from lightning import LightningModule
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lm.data.windows import RandomWindows, SequentialWindows
from lm.evaluation import METRICS, metrics
from lm.monitoring.ending import resuming
from lm.monitoring.samples import paragraph
from lm.optim.schedule import cosine_warmup
from lm.runs.checkpoint import load_checkpoint, load_model
from lm.training.module import LanguageModel
from tokenization import TokenFile

PLACES = """`train` or `validation` of this test, LAYOUT in lm/training/plugins.py, OTHERS in lm/experiments/figures.py
and results in lm/experiments/report.py list the curves; a metric also belongs in validation_by_hand, below"""

# --- what a run writes -----------------------------------------------------------------------------------------------


def test_a_run_is_one_folder(whole_run):
    names = sorted(path.name.split(".")[0] for path in whole_run.iterdir())
    assert names == ["best", "config", "events", "last", "tokenizer"]
    assert [path.name for path in whole_run.parent.iterdir()] == ["run"]
    config = yaml.safe_load((whole_run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == STEPS
    assert config["model"]["d_model"] == 16
    assert config["trainer"]["precision"] == "32-true"
    assert config["seed_everything"] == 0
    assert "max_steps" not in config["model"]  # it is the trainer's, and said once


def test_the_last_step_is_validated_and_saved(whole_run):
    assert torch.load(whole_run / "last.ckpt", weights_only=True)["global_step"] == STEPS
    assert torch.load(whole_run / "best.ckpt", weights_only=True)["global_step"] in (4, 8, 12, 14)
    scalars, _ = read_events(whole_run)
    validations = dict(scalars["val/loss"])
    assert list(validations) == [4, 8, 12, 14]
    best_step = min(validations, key=lambda step: validations[step])
    assert load_checkpoint(whole_run / "best.ckpt")["global_step"] == best_step


def test_every_promised_curve_is_there_at_its_steps(whole_run):
    scalars, texts = read_events(whole_run)
    train = ["lr", "train/gradient_norm", "train/loss", "train/mfu", "train/peak_memory_gb", "train/skipped_steps"]
    train += ["train/passes", "train/tokens_per_second", "train/tokens_seen"]
    validation = ["val/bits_per_byte", "val/gap", "val/loss", "val/perplexity"]
    apart = ("_norm/", "_rms/", "baselines/")
    drawn = {tag for tag in scalars if not any(part in tag for part in apart)}
    of_metrics = {f"val/{name}" for name in metrics(dict.fromkeys(METRICS, 1.0), 1, 1)}
    for tag in drawn - of_metrics - {"val/gap"}:
        assert not tag.startswith("val/"), f"{tag}: what a validation measures belongs in METRICS in lm/evaluation.py"
    for tag in drawn.symmetric_difference([*train, *validation]):
        pytest.fail(f"{tag} is {'new' if tag in drawn else 'no longer logged'}: {PLACES}")
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


def test_the_first_step_by_hand(whole_run, token_data):
    """The first loss and gradient norm, from the seed and the first batch, in torch's functions."""
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=320, context_length=16, d_model=16, num_layers=2, num_heads=2).model
    inputs, targets = RandomWindows(TokenFile.open(token_data / "train.bin").tokens, 16, 8, seed=0, num_batches=1)[0]
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    scalars, _ = read_events(whole_run)
    assert scalars["train/loss"][0] == (1, pytest.approx(loss.item()))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert scalars["train/gradient_norm"][0] == (1, pytest.approx(norm))


def test_norms_by_hand(whole_run, token_data):
    """Of each part's weights and gradients in step 10, and of what it puts out at the end: in torch's functions."""
    scalars, _ = read_events(whole_run)
    parts = ["layers.0", "layers.1", "lm_head", "ln_final", "token_embeddings"]
    for kind in ("weight_norm", "gradient_norm"):
        assert sorted(tag for tag in scalars if tag.startswith(kind)) == [f"{kind}/{part}" for part in parts]
        assert all([step for step, _ in scalars[f"{kind}/{part}"]] == [10] for part in parts)
    whole = math.hypot(*(scalars[f"gradient_norm/{part}"][0][1] for part in parts))
    assert whole == pytest.approx(dict(scalars["train/gradient_norm"])[10], rel=1e-5)
    model = load_model(whole_run / "last.ckpt")
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


def test_settings_are_shown_beside_the_results(whole_run):
    names = {}
    for path in whole_run.glob("events*"):
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
def test_validation_by_hand(whole_run, token_data, name):
    step = load_checkpoint(whole_run / name)["global_step"]
    scalars, _ = read_events(whole_run)
    by_hand = validation_by_hand(whole_run / name, token_data)
    for tag in {tag for tag in scalars if tag.startswith("val/")} - by_hand.keys() - {"val/gap"}:
        pytest.fail(f"{tag} is not proved: compute it in validation_by_hand, above")
    for tag, expected in by_hand.items():
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


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_may_begin_with_nothing(lm, fit_arguments, tmp_path):
    assert lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", "--samples.prompt=")).code == 0
    _, texts = read_events(tmp_path / "run")
    assert len(texts["sample/text_summary"]) == 1
    assert not texts["sample/text_summary"][0][1].startswith("no sample")


def test_without_a_logger(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", "--trainer.logger=false"))
    assert (result.code, result.err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best.ckpt", "config.yaml", "last.ckpt", "tokenizer"]


def test_bfloat16_on_the_cpu(lm, fit_arguments, whole_run, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, "--trainer.precision=bf16-mixed"))
    assert (result.code, result.err) == (0, "")
    assert "bf16-mixed on cpu" in result.out
    checkpoint = load_checkpoint(tmp_path / "run" / "last.ckpt")
    assert all(weight.dtype == torch.float32 for weight in checkpoint["state_dict"].values())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["precision"] == "bf16-mixed"
    losses, exact = (dict(read_events(folder)[0]["train/loss"]) for folder in (tmp_path / "run", whole_run))
    assert losses != exact
    assert list(losses.values()) == pytest.approx(list(exact.values()), abs=0.05)


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


def test_the_command_that_resumes_a_run_is_one_for_a_shell():
    folder = Path("my runs/it's one")
    words = ["lm", "fit", "-c", f"{folder}/config.yaml", "--ckpt_path", f"{folder}/last.ckpt"]
    assert shlex.split(resuming(folder)) == words


@pytest.mark.parametrize("bar", ["null", "true"])
def test_a_log_has_lines_and_no_bar(bar, lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, f"--trainer.enable_progress_bar={bar}"))
    assert result.code == 0
    assert ("training: " in result.err) == (bar == "true")
    assert "Epoch" not in result.err + result.out  # Lightning's own bar
    assert bool(re.search(r"^step 2 of 14: loss ", result.out, flags=re.MULTILINE)) == (bar == "null")


def test_max_time_ends_a_run_with_a_word_and_counts_anew(lm, fit_arguments, whole_run, tmp_path):
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
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (cut, whole_run))
    assert all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states", "global_step"))


def test_who_stops_a_run_early_is_named(lm, fit_arguments, tmp_path):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stop["init_args"] = {"monitor": "val/loss", "patience": 1, "min_delta": 100.0}
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, f"--trainer.callbacks={json.dumps([stop])}"))
    assert result.code == 0
    assert "ended at step 8 of 14: " in result.out
    assert "val/loss did not improve" in result.out


def test_other_loggers_come_beside_our_own(lm, fit_arguments, whole_run, tmp_path):
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    assert lm(*fit_arguments(tmp_path / "run", *SETTINGS, f"--trainer.logger={json.dumps(csv)}")).code == 0
    assert read_events(tmp_path / "run")[1] == read_events(whole_run)[1]  # the samples
    (metrics,) = (tmp_path / "csv").rglob("metrics.csv")
    assert "val/loss" in metrics.read_text().splitlines()[0]
    assert lm("report", tmp_path / "run", "--output", tmp_path / "report.html").code == 0


def test_a_profile_and_a_summary_are_printed(lm, fit_arguments, tmp_path):
    wishes = ["--trainer.profiler=simple", "--trainer.enable_model_summary=true"]
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2", *wishes))
    assert result.code == 0
    assert "run_training_batch" in result.out
    assert "TransformerLM" in result.out + result.err


def test_max_time_within_a_step_resumes_before_it(lm, fit_arguments, tmp_path):
    cut, whole, short = tmp_path / "cut", tmp_path / "whole", '--trainer.max_time={"microseconds": 1}'
    settings = [*SETTINGS, "--trainer.accumulate_grad_batches=5", "--trainer.val_check_interval=10"]
    settings += ["--trainer.max_steps=3", "--model.warmup_steps=1"]
    assert lm(*fit_arguments(whole, *settings)).code == 0
    for _ in range(2):  # each trains on one batch of five
        result = lm(*fit_arguments(cut, *settings, "--ckpt_path=auto", short))
        assert (result.code, result.err) == (0, "")
        assert "ended at step 0 of 3: trainer.max_time is over" in result.out
    result = lm(*fit_arguments(cut, *settings, "--ckpt_path=auto"))
    assert (result.code, result.err) == (0, "")
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (cut, whole))
    assert all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states", "global_step"))


def test_settings_that_do_not_fit_leave_no_folder(lm, fit_arguments, tmp_path):
    for setting, words in (
        ("--trainer.limit_val_batches=0.00001", "is less than one of"),
        ("--trainer.min_steps=9", "trainer.min_steps 9 is more than trainer.max_steps 7; leave it out"),
        ("--trainer.max_time=99999999999:00:00:00", "too large"),
        ("--trainer.accelerator=tpu", "torch_xla"),
    ):
        result = lm(*fit_arguments(tmp_path / "run", *SETTINGS, "--trainer.max_steps=7", setting))
        assert result.code == 2, setting
        assert len(result.err.splitlines()) == 1
        assert words in result.err
        assert not (tmp_path / "run").exists(), setting


def test_a_run_without_kernels_says_why(lm, fit_arguments, monkeypatch, tmp_path):
    monkeypatch.setattr("lm.training.fast_path.why_no_kernels", lambda: "llvmlite is not installed")
    result = lm(*fit_arguments(tmp_path / "run", "--trainer.max_steps=2"))
    assert result.code == 0
    assert result.err == (
        "lm: llvmlite is not installed; torch's operators, which are slower, take the place of our kernels\n"
    )
    assert "own kernels" not in result.out


def test_a_seed_is_drawn_where_one_is_asked_for(lm, fit_arguments, monkeypatch, tmp_path):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    seeds = []
    for name in "ab":
        assert lm(*fit_arguments(tmp_path / name, "--trainer.max_steps=1", "--seed_everything=true")).code == 0
        seeds.append(yaml.safe_load((tmp_path / name / "config.yaml").read_text())["seed_everything"])
        monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert seeds[0] != seeds[1]
    assert all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)


def test_a_disk_that_fails_at_a_forecast_ends_nothing(lm, fit_arguments, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("lm.monitoring.forecast.read_losses", fail)
    result = lm(*fit_arguments(tmp_path / "run", *SETTINGS))
    assert (result.code, result.err) == (0, "")
