"""Proves that every committed configuration is complete, and that its model can be built and is the handout's where it
says so."""

import pytest
import torch
import yaml
from helpers import ROOT

from lm.model.transformer import MODEL_SETTINGS, TransformerLM
from lm.training.parser import SettingsCLI

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_committed_configuration(lm, path):
    """It parses, its model can be built, its data is named with the command that makes it, and it is complete."""
    result = lm("fit", "-c", path, "--print_config")
    assert (result.code, result.err) == (0, "")
    config = yaml.safe_load(result.out)
    model = TransformerLM(**{name: config["model"][name] for name in MODEL_SETTINGS}, device="meta")
    assert (
        model(torch.zeros(1, config["model"]["context_length"], dtype=torch.long, device="meta")).shape[-1]
        == (config["model"]["vocab_size"])
    )
    assert config["trainer"]["default_root_dir"] == f"checkpoints/{path.relative_to(ROOT / 'configs').with_suffix('')}"
    assert config["trainer"]["max_steps"] % config["trainer"]["val_check_interval"] == 0
    if path.stem not in ("debug", "demo"):
        assert "tokenization encode" in path.read_text()


@pytest.mark.parametrize(
    ("name", "vocab_size", "tokens"),
    [
        ("tinystories", 10_000, 327_680_000),
        ("tinystories-cpu", 10_000, 40_960_000),
        ("openwebtext", 32_000, 327_680_000),
    ],
)
def test_the_handouts_configurations(name, vocab_size, tokens):
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    model, trainer = config["model"], config["trainer"]
    assert model["vocab_size"] == vocab_size
    assert (model["context_length"], model["d_model"], model["num_layers"], model["num_heads"]) == (256, 512, 4, 16)
    assert model["rope_theta"] == 10000
    assert trainer["max_steps"] * config["data"]["batch_size"] * model["context_length"] == tokens
    expected = 22_696_448 + 2 * (vocab_size - 10_000) * 512
    settings = {name: value for name, value in model.items() if name in MODEL_SETTINGS}
    assert TransformerLM(**settings, device="meta").num_parameters() == expected


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("7", 7), ("0.5", 0.5), ("null", None)])
def test_one_batch_is_not_all_batches(text, value):
    arguments = ["fit", "-c", str(ROOT / "configs/demo.yaml"), f"--trainer.limit_val_batches={text}"]
    found = SettingsCLI(arguments).config.fit.trainer.limit_val_batches
    assert (found, type(found)) == (value, type(value))
