"""Proves that the model's settings are declared once, by TransformerLM: the command line's help, the checkpoint, the
account, import and export have the same names, and the help has their types, defaults and texts."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from lm.accounting.activations import make_model
from lm.interchange.llama import llama_settings, model_settings
from lm.model.fast_attention import CAUSAL_ATTENTIONS
from lm.model.initialization import START_SETTINGS
from lm.model.transformer import (
    FEED_FORWARDS,
    MODEL_SETTINGS,
    NORM_POSITIONS,
    POSITION_ENCODINGS,
    SIZES,
    TransformerLM,
)
from lm.optim.schedule import SCHEDULES
from lm.runs.checkpoint import OLDER
from lm.training.module import LanguageModel
from lm.training.optimizers import OPTIMIZERS, SETTINGS

PARAMETERS = inspect.signature(TransformerLM).parameters
OWN = [name for name in inspect.signature(LanguageModel).parameters if name != "model"]
OFFERED = {*OWN, *MODEL_SETTINGS} - {"max_steps"}  # which follows from trainer.max_steps
NEEDED = {"vocab_size": 40, "context_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2}
OTHERS = NEEDED | {"d_ff": 24, "rope_theta": 50.0, "norm_position": "post", "position_encoding": "none"}
OTHERS |= {"feed_forward": "silu", "vocab_multiple": 16, "tie_embeddings": True, "qk_norm": True, "bigram_rows": 40}
OTHERS |= {"embedding_skips": True, "value_embeddings": True, "smear": True}
LITERAL = "what the registry holds, and nothing else, belongs in the setting's Literal in"


@pytest.fixture(scope="module")
def options(lm) -> dict[str, str]:
    """What `lm fit --help-all` says of each --model option, on one line."""
    text = " ".join(lm("fit", "--help-all").out.partition("\nTrains a TransformerLM")[2].split())
    parts = re.split(r" --model\.(\w+) ", text.partition(" --data CONFIG ")[0])[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_list_of_settings_is_the_signature():
    assert [*PARAMETERS] == [*MODEL_SETTINGS, "device", "dtype"]
    assert set(SIZES) == set(NEEDED) | {"d_ff", "vocab_multiple", "bigram_rows"}
    assert OTHERS.keys() == set(MODEL_SETTINGS)  # what the tests below give another value


def test_the_help_offers_every_setting_with_its_type_and_default(options):
    assert options.keys() == OFFERED
    for name in MODEL_SETTINGS:
        default, kind = PARAMETERS[name].default, PARAMETERS[name].annotation
        kind = kind.__name__ if isinstance(kind, type) else str(kind)
        words = f"type: {kind}, default: {default})".replace("typing.", "").replace("None", "null")
        assert (f"(required, type: {kind})" if default is inspect.Parameter.empty else f"({words}") in options[name]


@pytest.mark.parametrize("part", [TransformerLM, LanguageModel])
def test_the_help_has_the_text_of_the_docstring(options, part):
    texts = dict(re.findall(r"^        (\w+): (.*(?:\n {12}.*)*)", inspect.getdoc(part).replace("\n", "\n    "), re.M))
    texts = {name: " ".join(text.split()) for name, text in texts.items() if name in options}
    assert texts.keys() == OFFERED & {*(MODEL_SETTINGS if part is TransformerLM else OWN)}
    for name, text in texts.items():
        assert text in options[name]


def test_the_choices_are_the_registries():
    for name, registry in {
        "norm_position": NORM_POSITIONS,
        "position_encoding": POSITION_ENCODINGS,
        "feed_forward": FEED_FORWARDS,
    }.items():
        assert get_args(PARAMETERS[name].annotation) == tuple(registry), f"{name}: {LITERAL} lm/model/transformer.py"
    own = inspect.signature(LanguageModel).parameters
    for name, registry in {"attention": CAUSAL_ATTENTIONS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}.items():
        offered = {*get_args(own[name].annotation)} - {"auto"}
        assert offered == {*registry}, f"{name}: {LITERAL} lm/training/module.py"


@pytest.mark.parametrize("given", [NEEDED, OTHERS], ids=["defaults", "others"])
def test_a_run_records_all_settings_and_the_account_reads_them(given):
    expected = {name: given.get(name, PARAMETERS[name].default) for name in MODEL_SETTINGS}
    expected["d_ff"] = given.get("d_ff", 64)
    task = LanguageModel(**given, z_loss=0.5)
    assert {name: task.hparams[name] for name in MODEL_SETTINGS} == expected == task.model.settings
    assert task.hparams.keys() - {"z_loss"} == {*MODEL_SETTINGS, *OWN} - {"z_loss"}
    assert task.model.z_loss == 0.5
    assert make_model({**task.hparams}).settings == expected


def test_a_checkpoint_without_a_setting_is_from_before_it():
    assert OLDER.keys() - {"optimizer"} - {*START_SETTINGS} == set(MODEL_SETTINGS) - NEEDED.keys()
    own = inspect.signature(LanguageModel).parameters
    assert {name: own[name].default for name in START_SETTINGS} == START_SETTINGS


def test_the_defaults_of_the_optimizers_settings_are_the_signatures():
    own = inspect.signature(LanguageModel).parameters
    assert {name: own[name].default for name in SETTINGS} == SETTINGS, "correct SETTINGS in lm/training/optimizers.py"


def test_import_and_export_have_all_settings():
    llama = TransformerLM(**NEEDED, rope_theta=7.0, tie_embeddings=True)
    assert model_settings(llama_settings(llama), Path("config.json")) == llama.settings


def test_settings_are_given_by_name_from_num_heads_on():
    with pytest.raises(TypeError, match="positional"):
        TransformerLM(40, 8, 16, 1, 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'd_fff'"):
        LanguageModel(**NEEDED, d_fff=3)
