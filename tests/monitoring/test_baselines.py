"""Proves what a run says beside its losses: the baselines that it has to beat, passes over its text, overfitting."""

import json
import lzma
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.events import read_events

from lm.monitoring import baselines
from lm.monitoring.baselines import Baselines, standing
from lm.monitoring.overfitting import Overfitting
from lm.ngrams import ngram_losses
from tokenization import TokenFile, Tokenizer
from tokenization.tokens.token_file import TokenFileWriter

NAMES = ["unigram", "bigram", "trigram", "4-gram", "xz"]
KEPT = "train.bin.baselines.json"


@pytest.fixture
def data(token_data, tmp_path):
    """The token files in a folder of their own."""
    for path in token_data.glob("*.bin*"):
        if path.name != KEPT:
            shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.fixture
def fit(lm, fit_arguments, data):
    def run(name, *more):
        paths = [f"--data.train_path={data / 'train.bin'}", f"--data.val_path={data / 'valid.bin'}"]
        return lm(*fit_arguments(data / name, "--trainer.max_steps=2", "--samples.max_new_tokens=0", *paths, *more))

    return run


def expected_lines(folder, tokenizer, windows: int) -> dict[str, float]:
    training, validation = (TokenFile.open(folder / name) for name in ("train.bin", "valid.bin"))
    scored = np.array(validation.tokens[: windows * 16 + 1])
    about = validation.description
    factor = about.tokens / about.bytes / math.log(2)
    lines = [loss * factor for loss in ngram_losses(np.array(training.tokens), scored, 320)]
    text = b"".join(tokenizer.vocab[int(token)] for token in scored)
    return dict(
        zip(NAMES, [*lines, 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)], strict=True)
    )


def test_they_are_measured_on_the_validated_tokens_and_kept(fit, data, token_data, monkeypatch):
    result = fit("first", "--trainer.limit_val_batches=2")
    assert result.code == 0
    lines = expected_lines(data, Tokenizer.load(token_data / "tok"), windows=2 * 8)
    curves, _ = read_events(data / "first")
    for name, bits in lines.items():
        assert curves[f"baselines/{name}"] == [(2, pytest.approx(bits))]
        assert f"{name} {bits:.3f}" in result.out
    assert f"bits per byte{standing(lines, curves['val/bits_per_byte'][0][1])}" in result.out
    kept = (data / KEPT).read_bytes()
    assert json.loads(kept)["bits_per_byte"] == pytest.approx(lines)

    monkeypatch.setattr(baselines, "measure", lambda *_: pytest.fail("is kept"))
    assert fit("second", "--trainer.limit_val_batches=2").code == 0
    assert read_events(data / "second")[0]["baselines/xz"] == curves["baselines/xz"]
    assert (data / KEPT).read_bytes() == kept


def test_other_tokens_replace_what_was_kept(fit, data):
    assert fit("first", "--trainer.limit_val_batches=2").code == 0
    before = json.loads((data / KEPT).read_text())
    assert fit("second", "--trainer.limit_val_batches=1").code == 0
    after = json.loads((data / KEPT).read_text())
    assert after["about"]["scored_tokens"] < before["about"]["scored_tokens"]
    assert after["bits_per_byte"] != before["bits_per_byte"]


@pytest.mark.parametrize(
    "content", [b"mine", b"{}", b"[1]", b'{"about": {}, "bits_per_byte": {"xz": 0}, "sha256": ""}']
)
def test_what_is_not_ours_is_left_alone(content, fit, data):
    (data / KEPT).write_bytes(content)
    result = fit("run")
    assert result.code == 0
    assert "4-gram" in result.out
    assert (data / KEPT).read_bytes() == content


def test_order_decides_how_long_they_are(fit, data):
    assert "bigram" in (short := fit("short", "--baselines.order=2").out)
    assert "trigram" not in short
    result = fit("none", "--baselines.order=0")
    assert result.code == 0
    assert "by counting" not in result.out
    assert not [tag for tag in read_events(data / "none")[0] if tag.startswith("baselines/")]
    result = fit("wrong", "--baselines.order=5")
    assert (result.code, result.out) == (2, "")
    assert result.err == ("lm fit: baselines.order is 5; it must be from 0, which measures nothing, to 4\n")


def test_a_model_that_stays_above_the_trigrams_says_so(fit, monkeypatch):
    few = fit("few", "--model.learning_rate=1e-6", "--model.min_learning_rate=0")
    assert few.code == 0
    assert "something is wrong" not in few.err  # 256 tokens are too few to tell
    monkeypatch.setattr(baselines, "ENOUGH_TOKENS", 200)
    result = fit("enough", "--model.learning_rate=1e-6", "--model.min_learning_rate=0")
    assert result.code == 0
    assert "bits per byte after 256 tokens, where a trigram table of" in result.err
    assert "the run may only be too short. If longer ones stay above it, look at train/loss" in result.err
    monkeypatch.setattr(baselines, "MOST_TOKENS", 256)  # as many as the run reads
    result = fit("as-many", "--model.learning_rate=1e-6", "--model.min_learning_rate=0")
    assert "where a trigram table of 244 has" in result.err
    assert "something is wrong. Look at train/loss" in result.err


LINES = {"unigram": 2.298, "bigram": 1.374, "trigram": 1.157, "4-gram": 1.127, "xz": 1.75}


@pytest.mark.parametrize(
    ("reached", "words"),
    [
        (3.0, ": above the unigram table at 2.298"),
        (2.0, ": below the unigram table at 2.298"),
        (1.5, ": below xz at 1.750"),
        (1.13, ": below the trigram table at 1.157"),
        (0.9, ": below the 4-gram table at 1.127"),
        (math.nan, ""),
    ],
)
def test_in_words(reached, words):
    assert standing(LINES, reached) == words
    assert standing({}, reached) == ""


def test_a_trial_run_leaves_nothing_beside_the_data(fit, data):
    """As `lm find-lr` makes one."""
    result = fit("run", "--trainer.fast_dev_run=2")
    assert result.code == 0
    assert "by counting" not in result.out
    assert not (data / KEPT).exists()


def test_ids_without_a_token_are_counted_all_the_same(fit, data, token_data):
    """Of a vocabulary with room for more tokens than there are."""
    tokenizer = Tokenizer.load(token_data / "tok")
    for name in ("train", "valid"):
        with TokenFileWriter(data / f"{name}.bin", 400, tokenizer.digest) as writer:
            writer.write(np.random.default_rng(0).integers(300, 400, 2000))
            writer.num_bytes = 2000
    result = fit("run", "--model.vocab_size=400")
    assert (result.code, result.err) == (0, "")
    assert "4-gram" in result.out


def test_too_little_text_has_no_tables(monkeypatch, fit):
    monkeypatch.setattr(baselines, "FEWEST_TOKENS", 10**9)
    result = fit("run")
    assert result.code == 0
    assert "by counting" not in result.out


# --- passes and overfitting ------------------------------------------------------------------------------------------


def test_a_model_that_learns_its_text_by_heart_is_told(fit, data, token_data):
    """Of 150 tokens, read more than a hundred times."""
    tokens = TokenFile.open(data / "train.bin").tokens[:150]
    with TokenFileWriter(data / "train.bin", 320, Tokenizer.load(token_data / "tok").digest) as writer:
        writer.write(np.array(tokens))
    steps = ["--trainer.max_steps=160", "--trainer.val_check_interval=20", "--model.learning_rate=1e-2"]
    result = fit("run", *steps)
    assert result.code == 0
    curves, _ = read_events(data / "run")
    validations = dict(curves["val/loss"])
    lowest = min(validations, key=lambda step: validations[step])
    assert lowest < 120
    (line,) = [line for line in result.out.splitlines() if "overfitting" in line]
    told = int(line.split(":")[0].removeprefix("step "))
    assert validations[told] > validations[lowest]
    assert f"after {told * 128 / 150:.1f} passes over the text" in line
    assert curves["train/passes"][-1] == (160, pytest.approx(160 * 128 / 150))
    losses = [loss for _, loss in curves["train/loss"]]
    expected = [
        (step, pytest.approx(loss - np.mean(losses[max(0, step - 100) : step]))) for step, loss in validations.items()
    ]
    assert curves["val/gap"] == expected


def test_order_is_checked():
    with pytest.raises(ValueError, match=r"baselines\.order is -1"):
        Baselines(order=-1)


def test_a_state_is_restored():
    old, new = Overfitting(), Overfitting()
    old.losses = {1: 1.0, 2: 2.0}
    old.best, old.above = {"validation": 1.5, "training": 1.0, "step": 3}, 1
    new.load_state_dict(old.state_dict())
    assert new.state_dict() == old.state_dict()


def test_a_loss_that_is_no_number_is_no_overfitting(capsys, tmp_path):
    watch, trainer = (
        Overfitting(),
        SimpleNamespace(
            state=SimpleNamespace(fn="fit"), sanity_checking=False, loggers=[], datamodule=None, global_step=0
        ),
    )
    for step, validation in enumerate((3.0, math.nan, math.inf, math.inf), start=1):
        watch.losses, trainer.global_step = {step: 3.0 - 0.1 * step}, step
        trainer.callback_metrics = {"val/loss": validation}
        watch.on_validation_end(trainer, None)
    assert (watch.above, capsys.readouterr()) == (0, ("", ""))
