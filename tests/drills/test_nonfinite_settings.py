"""The drill of numbers that are none, in the settings: no option, sweep or class takes one."""

import re

import pytest
from helpers import ROOT
from helpers.nonfinite import INF, NAN, VALUES

from lm.training.checks import check_numbers
from lm.training.module import LanguageModel
from tokenization import InputError

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


@pytest.mark.slow
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
    "wish", [*list(SENSELESS)[:2], *(pytest.param(wish, marks=pytest.mark.slow) for wish in list(SENSELESS)[2:])]
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
