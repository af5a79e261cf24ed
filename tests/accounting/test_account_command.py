"""Proves `lm account`: what it prints for presets and configurations, what it refuses, and its probe of a real run."""

import itertools
import json
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace

from lm.accounting.estimate import not_counted
from lm.accounting.tables import in_days
from lm.experiments.probe import predict, validations_and_saves
from lm.machine import resources

# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_on_a_preset(lm):
    result = lm("account", "gpt2-xl", "--edition", 2025, "--device", "A100 fp32", "--tokens", 4e5 * 1024 * 1024)
    assert (result.code, result.err) == (0, "")
    for words in ("2,127,057,600", "2,126,902,400", "4.513e+12", "4.349e+12", "66.9%", "69.4%", "6,584 days"):
        assert words in result.out
    assert "parameters                         8.508     7.924" in result.out
    assert "(1,024 x 1,600) (1,600 x 6,400)" not in result.out
    assert in_days(75) == "1 min 15 s"
    assert in_days(6584.2 * 86400) == "6,584 days (158,021 hours)"
    listed = lm("account", "gpt2-xl", "--edition", 2025, "--products").out
    assert "(1,024 x 1,600) (1,600 x 6,400)      48   1.007e+12  22.3%" in listed
    figures = json.loads(lm("account", "gpt2-xl", "--edition", 2025, "--json").out)
    assert figures["largest_batch"]["handout"] == 2
    assert figures["settings"]["d_ff"] == 6400
    assert sum(figures["training_flops"].values()) == 3 * sum(figures["forward_flops"].values())
    products = {product["name"]: product for product in figures["matrix_products"]}
    assert products["queries by keys"]["times"] == 48 * 25
    assert sum(product["flops"] for product in products.values()) == sum(figures["forward_flops"].values())
    more = json.loads(lm("account", "gpt2-xl", "--edition=2025", "--json", "--memory=80GiB").out)
    assert more["largest_batch"]["handout"] == 3


def test_the_command_on_a_configuration(lm, fit_arguments, tmp_path):
    _, *arguments = fit_arguments(tmp_path / "run", "--model.num_layers=3")
    result = lm("account", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    figures = json.loads(result.out)
    assert sum(figures["parameters"].values()) == 2 * 320 * 16 + 3 * (4 * 16 * 16 + 3 * 16 * 64) + 7 * 16
    assert (figures["batch_size"], figures["arrangement"]) == (8, "float32, attention blocks, fast, kernels")
    assert list(tmp_path.iterdir()) == []


def test_what_the_figures_leave_out_is_said(lm):
    settings = ("--trainer.devices=2", "--trainer.precision=64", "--model.optimizer=muon")
    result = lm("account", "gpt2-small", *settings)
    assert (result.code, result.err) == (0, "")
    assert (
        "not counted: trainer.devices 2, trainer.precision 64; the figures are for one process on a CPU" in result.out
    )
    assert "AdamW" not in result.out
    assert json.loads(lm("account", "gpt2-small", *settings, "--json").out)["adamw_flops"] is None
    assert "not counted" not in lm("account", "gpt2-small", "--trainer.precision=32").out
    counted = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed"}
    assert not_counted(Namespace(**counted)) == []
    others = {"accelerator": "gpu", "num_nodes": 2, "strategy": "fsdp", "precision": "bf16-true"}
    for name, value in others.items():
        assert not_counted(Namespace(**counted | {name: value})) == [f"trainer.{name} {value}"]


def test_a_plot(lm, tmp_path):
    assert lm("account", "gpt2-small", "--plot", tmp_path / "deep/shares.png").code == 0
    assert (tmp_path / "deep/shares.png").read_bytes().startswith(b"\x89PNG")
    assert lm("account", "gpt2-small", "--plot", tmp_path / "deep/shares.png").code == 0  # replaced
    wrong = lm("account", "gpt2-small", "--plot", tmp_path / "shares.svg")
    words = "plots are PNG pictures; choose a name that ends with .png"
    assert (wrong.code, wrong.err) == (2, f"lm account: {tmp_path / 'shares.svg'}: {words}\n")


WRONG = [
    ([], "name what to account for"),
    (["gpt3"], "gpt3: no such preset"),
    (["gpt2-xl", "-c", "configs/debug.yaml"], "name what to account for"),
    (["-c", "configs/none.yaml"], "none.yaml"),
    (["gpt2-xl", "--model.num_heads=7"], "d_model 1600 cannot be divided evenly among num_heads 7"),
    (["gpt2-xl", "--model.num_layers=0"], "num_layers is 0"),
    (["gpt2-xl", "--model.num_layers=1000000000"], "num_layers is 1000000000; it can be at most 4,096"),
    (["gpt2-xl", f"--model.d_model={1 << 60}"], "it can be at most 268,435,456"),
    (["gpt2-xl", "--model.depth=3"], "--model.depth"),
    (["gpt2-xl", "--data.batch_size=-5"], "batch_size -5 must be at least 1"),
    (["gpt2-xl", "--model.dropout=1"], "dropout is 1.0; it must be at least 0"),
    (["gpt2-xl", "--model.ema_decay=1"], "ema_decay is 1.0"),
    (["gpt2-xl", "--model.betas=[0.9,1.0]"], "betas are (0.9, 1.0)"),
    (["gpt2-xl", "--model.fast=false", "--model.compile=true"], "fast is false"),
    (["gpt2-xl", "--model.num_heads=x"], "Got value: x"),
    (["gpt2-xl", "--memory=much"], "--memory much"),
    (["gpt2-xl", "--memory=0GB"], "--memory 0GB"),
    (["gpt2-xl", "--memory=8\u212ab"], "--memory 8"),  # the sign for kelvins, of which k is the lower case
    (["gpt2-xl", "--memory=80"], "--memory 80: is not an amount of memory; 80GB is"),
    (["-c", "nope.yaml"], "nope.yaml: no such file; -c names a configuration"),
    (["gpt2-xl", "--device=1_0"], "--device 1_0: no such device"),
    (["gpt2-xl", "--memory=1.2.3GB"], "--memory 1.2.3GB"),
    (["gpt2-xl", "--device=Z80"], "--device Z80: no such device"),
    (["gpt2-xl", "--device=-1"], "--device -1"),
    (["gpt2-xl", "--mfu=0"], "--mfu 0.0"),
    (["gpt2-xl", "--mfu=1.1"], "--mfu 1.1"),
    (["gpt2-xl", "--tokens=-3"], "--tokens -3.0"),
    (["gpt2-xl", "--tokens=nan"], "--tokens nan"),
    (["gpt2-xl", "--tokens=1e9"], "--tokens 1e+09: is for the time on a device"),
    (["gpt2-xl", "--mfu=0.4"], "--mfu 0.4: is for the time on a device"),
    (["gpt2-xl", "--edition=2024"], "argument --edition"),
    (["gpt2-xl", "--probe"], "--probe: the preset gpt2-xl has no data"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_bad_input(lm, arguments, message):
    result = lm("account", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("lm account: ")
    assert message in result.err
    assert len(result.err.splitlines()) == 1


# --- the probe -------------------------------------------------------------------------------------------------------


def run_settings(steps: int, interval: int, every: int, kept: int | None = None, accumulate: int = 1, limit=None):
    """The part of a configuration that says how long a run is."""
    trainer = SimpleNamespace(
        max_steps=steps, val_check_interval=interval, accumulate_grad_batches=accumulate, limit_val_batches=limit
    )
    checkpoints = SimpleNamespace(every_n_steps=every, keep_every_n_steps=kept)
    sizes = {"data": SimpleNamespace(batch_size=4), "model": SimpleNamespace(context_length=8)}
    return SimpleNamespace(trainer=trainer, checkpoints=checkpoints, **sizes)


def test_validations_and_saves():
    """The run of whole_run: validated at 4, 8, 12 and 14, saved at 3, 4, 6, 8, 9, 12 and 14."""
    assert validations_and_saves(run_settings(14, 4, 3)) == (4, 7 + 4)
    assert validations_and_saves(run_settings(14, 8, 3, accumulate=2)) == (4, 7 + 4)
    for steps, interval, every, kept in itertools.product((1, 7, 12), (1, 4), (3, 100), (None, 2)):
        if interval > steps:
            continue
        validated = [step for step in range(1, steps + 1) if step % interval == 0 or step == steps]
        saves = 0
        for step in range(1, steps + 1):
            at_validation = step in validated
            keeps = kept is not None and step % kept == 0
            if at_validation or step % every == 0 or keeps:
                saves += 1 + at_validation + keeps  # last.ckpt, best.ckpt, step-N.ckpt
        assert validations_and_saves(run_settings(steps, interval, every, kept)) == (len(validated), saves)


def test_a_prediction_by_hand():
    seen = {"begun": 14.0, "first_step": 20.0, "steps": [1.0, 3.0], "batches": [0.5], "samples": [7.0]}
    seen |= {"saves": [0.25, 0.75], "over": 100.0}
    found = predict(seen, 10, run_settings(14, 4, 3, accumulate=2, limit=3), started=10.0, ended=101.0)
    validations, saves = validations_and_saves(run_settings(14, 4, 3, accumulate=2))
    assert found["start_seconds"] == 10
    assert found["training_seconds"] == 13 * 2
    assert found["validation_seconds"] == validations * 3 * 0.5
    assert found["saving_seconds"] == validations * 7 + saves * 0.5 + 1
    assert found["seconds"] == sum(found[key] for key in found if key.endswith("_seconds") and "tokens" not in key)
    assert found["tokens_per_second"] == 4 * 8 * 2 / 2
    for limit, batches in ((None, 10), (0.25, 2), (99, 10), (1, 1), (1.0, 10), (3.0, 3), (0, 0)):
        settings = run_settings(14, 4, 3, limit=limit)
        assert predict(seen, 10, settings, 10.0, 101.0)["validation_seconds"] == 4 * batches * 0.5


SHARDED = ("--trainer.strategy=fsdp", "--checkpoints.sharded=true")


@pytest.mark.parametrize("more", [(), pytest.param(SHARDED, marks=pytest.mark.slow)], ids=["one file", "sharded"])
def test_a_probe(more, lm, fit_arguments, tmp_path):
    """Of a run that another `lm fit` then does; nothing is left of it."""
    _, *arguments = fit_arguments(tmp_path / "run", "--trainer.max_steps=12", "--samples.max_new_tokens=0", *more)
    arguments.append("--trainer.limit_val_batches=0.15")  # less than one of a probe's own
    result = lm("account", *arguments, "--probe", "--json")
    assert (result.code, result.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    predicted = json.loads(result.out)["prediction"]
    assert lm("fit", *arguments).code == 0
    newest = [tmp_path / "run/last.ckpt", *(tmp_path / "run").glob("shards/step-12-*/*.pt")]
    size = sum(path.stat().st_size for path in newest)
    assert predicted["checkpoint_bytes"] == pytest.approx(size, rel=0.01)
    assert predicted["peak_bytes"] > 1e8
    assert predicted["steps_probed"] == 9  # not the first two, nor the one after a save
    assert predicted["processor_seconds"] > 0
    assert predicted["seconds"] > predicted["start_seconds"] > predicted["training_seconds"] > 0


@pytest.mark.slow
def test_a_probe_says_what_fit_would_refuse(lm, fit_arguments, tmp_path):
    _, *arguments = fit_arguments(tmp_path / "run", f"--data.train_path={tmp_path / 'none.bin'}")
    for more, message in (("--trainer.devices=2", "trainer.devices is 2"), ("--trainer.max_steps=60", "none.bin")):
        wrong = lm("account", *arguments, "--probe", more)
        assert (wrong.code, wrong.out, len(wrong.err.splitlines())) == (2, "", 1)
        assert message in wrong.err


def test_fit_says_what_it_expects_and_warns(lm, fit_arguments, tmp_path, monkeypatch):
    arguments = fit_arguments(tmp_path / "one", "--trainer.max_steps=1", "--samples.max_new_tokens=0")
    result = lm(*arguments)
    assert (result.code, result.err) == (0, "")
    assert "GB of memory at its peak" in result.out
    monkeypatch.setattr(
        "lm.training.checks.available_memory", lambda: 1_000_000
    )  # enough for the model, and not for the run
    monkeypatch.setattr("lm.training.checks.held_memory", lambda: 0)
    arguments = fit_arguments(tmp_path / "two", "--trainer.max_steps=1", "--samples.max_new_tokens=0")
    result = lm(*arguments)
    assert result.code == 0
    assert result.err.startswith("lm fit: ")
    assert "may be killed; lower data.batch_size" in result.err
    assert len(result.err.splitlines()) == 1


def test_available_memory(tmp_path):
    whole = resources.available_memory(tmp_path)
    for name, text in (("max", "1000000"), ("current", "600000"), ("stat", "anon 5\ninactive_file 100000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert resources.available_memory(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.available_memory(tmp_path) == pytest.approx(whole, rel=0.2)
    assert 0 < resources.held_memory() <= resources.peak_memory()
