"""Proves for every optimizer that its state is what `lm account` counts, that a bad step changes nothing, and that no
setting is accepted that has no effect."""

import json

import pytest
from helpers.optimizer_contracts import bad_steps_are_skipped, counted_is_kept, each_setting_counts
from helpers.registries import few, label

from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS, SETTINGS

FEW = pytest.mark.parametrize("settings", few(), ids=label)
OTHERS = {"weight_decay": 0.5, "betas": (0.5, 0.6), "eps": 0.5}  # a value of each setting that no default is
OTHERS |= {"muon_rate": 2.0, "muon_iteration": "polar-express", "cautious_decay": True}
EACH = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@EACH
@FEW
def test_its_state(settings, optimizer):
    counted_is_kept(settings, optimizer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@EACH
@FEW
def test_bad_steps(settings, optimizer, bad):
    bad_steps_are_skipped(settings, optimizer, bad)


@EACH
@pytest.mark.parametrize("setting", SETTINGS)
def test_its_settings(optimizer, setting):
    assert setting in OTHERS, f"no other value of the new setting {setting}: OTHERS, above, needs one"
    each_setting_counts(few()[0], optimizer, setting, OTHERS[setting])


def test_lm_account_counts_the_newest(lm):
    optimizer = list(OPTIMIZERS)[-1]
    sizes = [f"--model.{name}={few()[0][name]}" for name in ("d_model", "num_layers", "num_heads", "vocab_size")]
    done = lm("account", "gpt2-small", *sizes, f"--model.optimizer={optimizer}", "--json")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    of = {name: figures["settings"][name] for name in ("d_model", "num_layers", "num_heads", "vocab_size", "d_ff")}
    made = LanguageModel(**of, context_length=8, optimizer=optimizer).configure_optimizers()
    for group in made.param_groups:
        for weight in group["params"]:
            weight.grad = weight.detach().clone()
    made.step()
    kept = sum(value.nbytes for state in made.state.values() for value in state.values() if hasattr(value, "nbytes"))
    assert figures["state_bytes"]["optimizer state"] == kept


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer is 'sgd'; it can be adamw, muon"):
        LanguageModel(**few()[0], optimizer="sgd")
