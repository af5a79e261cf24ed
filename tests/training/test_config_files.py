"""Proves that configurations are read as they are written: YAML 1.2's numbers, no key twice, UTF-8, bounded aliases;
and that a committed configuration means what PyYAML makes of it."""

import math
import time

import pytest
import yaml
from helpers import ROOT

from lm.experiments.report import flatten
from lm.training.config_files import check_config, load
from tokenization import InputError

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

SCALARS = {  # by the core schema of YAML 1.2.2, chapter 10.3
    "010": 10,
    "+12": 12,
    "-7": -7,
    "0o17": 15,
    "0x1F": 31,
    "1_000": "1_000",
    "1:30": "1:30",
    "01:02:03:04": "01:02:03:04",
    "1e3": 1000.0,
    "1.": 1.0,
    ".5": 0.5,
    "-1.5E-3": -0.0015,
    "-.inf": -math.inf,
    "yes": "yes",
    "No": "No",
    "on": "on",
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "": None,
    "2001-01-01": "2001-01-01",
    "'010'": "010",
    "=": "=",
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_is_written(text):
    value = load(f"a: {text}\nb: 1\n")["a"]
    assert (value, type(value)) == (SCALARS[text], type(SCALARS[text]))


def test_nan_is_a_number():
    assert math.isnan(load("a: .nan\nb: 1\n")["a"])


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_committed_configuration_means_the_same_to_pyyaml(path):
    """But that 1e-3 is a number, which YAML 1.1 takes for a string."""
    ours, theirs = load(path.read_text()), yaml.safe_load(path.read_text())
    flat, flat_theirs = dict(flatten(ours)), dict(flatten(theirs))
    assert flat == {name: float(v) if isinstance(flat[name], float) else v for name, v in flat_theirs.items()}


def test_aliases_and_merges_stay_possible():
    text = "a: &one {x: 1, y: [1, 2]}\nb: *one\nc: {<<: *one, x: 3}\n"
    assert load(text) == yaml.safe_load(text)


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [ha, ha]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]) + "\n"


WRONG = {
    "twice": ("trainer:\n  max_steps: 5\n  devices: 1\n  max_steps: 6\n", "max_steps is set twice, on lines 2 and 4"),
    "a group twice": (
        "model:\n  d_model: 16\ntrainer: {}\nmodel:\n  d_ff: 64\n",
        "model is set twice, on lines 1 and 4",
    ),
    "quoted": ("a: 1\n'a': 2\n", "a is set twice, on lines 1 and 2"),
    "laughs": (laughs(30), "expand to more than 100,000 values"),
    "itself": ("a: &a [1, *a]\n", "expand to more than"),
    "deep": ("[" * 5000 + "]" * 5000, "is nested too deeply"),
    "open": ("a: [1, 2\nb: 3\n", "line 2: "),
    "a tab": ("a:\n\tb: 1\n", "line 2: "),
    "a tag": ("a: !!python/object/apply:os.mkdir [evil]\n", "line 1: could not determine a constructor"),
    "a long number": ("a: 1" + "0" * 5000 + "\n", "Exceeds the limit"),
    "empty": ("", "holds no settings"),
    "comments": ("# nothing\n", "holds no settings"),
    "a list": ("- 1\n- 2\n", "is not a configuration, which lists settings by name"),
    "a text": ("just words\n", "is not a configuration, "),
    "huge": ("#" * 1_000_000, "has 1,000,000 bytes; no configuration has more than 262,144"),
    "two": ("a: 1\n---\nb: 2\n", "line 2: but found another document"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(case, tmp_path):
    content, message = WRONG[case]
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    start = time.process_time()
    with pytest.raises(InputError) as refusal:
        check_config(path)
    assert time.process_time() - start < 5
    assert str(refusal.value).startswith(f"{path}: ")
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 400


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: {}\n# für\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: is not UTF-8 at byte 13"):
        check_config(path)


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbftrainer:\n  max_steps: 5\n")
    check_config(path)
    assert load(path.read_text(encoding="utf-8")) == {"trainer": {"max_steps": 5}}


@pytest.mark.parametrize("text", ["Tom:", "{one, two}", "a: b: c"])
def test_a_prompt_is_no_mapping(text):
    """What the command line gives as a value; the last is no YAML at all, and taken as it is by the parser."""
    try:
        assert load(text) == text
    except yaml.YAMLError:
        assert text == "a: b: c"


def test_a_group_lists_its_settings(lm, tmp_path):
    for text, words in (
        ("trainer: 5", "trainer is 5; it must list its settings by name"),
        ("checkpoints: []", "checkpoints is []; it must list its settings by name"),
        ("fit: {trainer: {max_steps: 4}}", "there is no setting fit"),
    ):
        config = tmp_path / "config.yaml"
        config.write_text(text)
        result = lm("fit", "-c", ROOT / "configs/debug.yaml", "-c", config)
        assert (result.code, result.out) == (2, "")
        assert f"lm fit: {config}: {words}" in result.err
