"""Proves that a model card tells what the run has recorded, by the tests' own reading of it, and tells no more."""

import re
import shutil

import pytest
import yaml
from helpers.events import Asked, read_events
from helpers.models import save_run

from lm.interchange.model_card import digests_of, read_data, read_figures
from lm.machine.identity import code_in_words
from lm.runs.checkpoint import load_model
from lm.runs.manifest import read_manifest
from tokenization import TokenFile


@pytest.fixture(scope="module")
def cards(lm, whole_run, token_data, tmp_path_factory):
    """The card of a trained run, and of one that has nothing but its weights."""
    folder = tmp_path_factory.mktemp("cards")
    save_run(folder / "bare", token_data)
    for run in (whole_run, folder / "bare"):
        assert lm("export", run, "--output", folder / run.name / "hf").code == 0
    return [(folder / run.name / "hf/README.md").read_text() for run in (whole_run, folder / "bare")]


def rows(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, flags=re.MULTILINE))


def test_data_size_losses_and_tokens(cards, whole_run, token_data):
    told, (scalars, _) = rows(cards[0]), read_events(whole_run)
    step = int(told["optimizer steps"])
    for name, tag in {"training loss": "train/loss", "validation loss": "val/loss"}.items():
        assert told[name] == f"{dict(scalars[tag])[step]:.4f} nats per token"
    assert told["tokens seen"] == f"{dict(scalars['train/tokens_seen'])[step]:,.0f}"
    assert told["parameters"] == f"{load_model(whole_run / 'best.ckpt').num_parameters():,}, in fp32"
    train = token_data / "train.bin"
    assert told["training data"].startswith(f"`{train.parent.name}/train.bin` ({len(TokenFile.open(train)):,} tokens, ")
    assert told["code"] == f"text-to-lm {code_in_words()}"
    assert str(token_data) not in cards[0]  # a folder of this machine


def test_the_size_of_another_text_under_the_same_name_is_not_told(whole_run, token_data, tmp_path):
    digests = digests_of(read_manifest(whole_run / "best.ckpt"))
    config = yaml.safe_load((whole_run / "config.yaml").read_text())
    for name in ("train", "valid"):
        for path in token_data.glob(f"{name}.bin*"):
            shutil.copy(path, tmp_path)
    config["data"] |= {"train_path": str(tmp_path / "train.bin"), "val_path": str(tmp_path / "valid.bin")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert all(" tokens, " in told for told in read_data(tmp_path / "config.yaml", digests).values())
    for path in token_data.glob("valid.bin*"):
        shutil.copy(path, tmp_path / path.name.replace("valid", "train"))
    told = read_data(
        tmp_path / "config.yaml", digests - {TokenFile.open(token_data / "valid.bin").description.data_sha256}
    )
    assert told == {"training data": f"`{tmp_path.name}/train.bin`", "validation data": f"`{tmp_path.name}/valid.bin`"}


def test_no_figure_of_a_validation_is_forgotten(whole_run, monkeypatch):
    asked, (scalars, _) = Asked(), read_events(whole_run)
    monkeypatch.setattr("lm.interchange.model_card.read_curves", lambda _: asked)
    read_figures(whole_run, 1)
    left, expected = {tag for tag in scalars if tag.startswith("val/")} - asked.tags, {"val/perplexity", "val/gap"}
    tags = ", ".join(sorted(left ^ expected))
    assert left == expected, (
        f"add {tags} to read_figures in lm/interchange/model_card.py, or to `expected` in this test"
    )


def test_what_is_not_known_is_not_told(cards):
    told = rows(cards[1])
    assert told["optimizer steps"] == "3"
    assert not {"training loss", "validation loss", "training data", "machine", "code"} & told.keys()


def test_the_licence_is_left_to_the_user(cards):
    for card in cards:
        head = card.split("---\n")[1]
        assert yaml.safe_load(head) == {"library_name": "transformers", "pipeline_tag": "text-generation"}
        assert re.search("^# license: ", head, flags=re.MULTILINE)
        assert "**Licence: not chosen yet.**" in card


def test_the_code_of_the_card_runs(cards, lm, saved_run, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.+?)```", cards[1], flags=re.DOTALL)
    assert lm("export", saved_run, "--output", tmp_path / "hf").code == 0
    monkeypatch.chdir(tmp_path / "hf")
    exec(code.replace("max_new_tokens=100", "max_new_tokens=3"), {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_an_imported_model_has_no_training_and_begun_ones_name_their_source(lm, saved_run, whole_run, tmp_path):
    assert lm("export", saved_run, "--output", tmp_path / "hf").code == 0
    assert lm("import", tmp_path / "hf", "--output", tmp_path / "run").code == 0
    assert lm("export", tmp_path / "run", "--output", tmp_path / "hf2").code == 0
    assert (tmp_path / "hf2/README.md").read_text().endswith("\nNot recorded: the weights were imported.\n")
    shutil.copytree(whole_run, tmp_path / "tuned")
    config = tmp_path / "tuned/config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"init_from": "a/b|c/best.ckpt"}))
    assert lm("export", tmp_path / "tuned", "--output", tmp_path / "hf3").code == 0
    assert rows((tmp_path / "hf3/README.md").read_text())["began with the weights of"] == r"`b\|c/best.ckpt`"


@pytest.mark.parametrize("listed", [False, True])
def test_every_source_of_a_mixture_is_named_with_its_share(token_data, tmp_path, listed):
    train, valid = token_data / "train.bin", token_data / "valid.bin"
    sources = [{"path": str(train), "weight": 3.0}, {"path": str(valid), "weight": 1.0}]
    setting = sources if listed else f"{train}:3,{valid}:1"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"train_path": setting, "val_path": str(valid)}}))
    digests = {TokenFile.open(path).description.data_sha256 for path in (train, valid)}
    first, second = read_data(tmp_path / "config.yaml", digests)["training data"].split("; ")
    assert first.startswith(f"`{train.parent.name}/train.bin` ({len(TokenFile.open(train)):,} tokens, ")
    assert first.endswith(", 75% of the windows")
    assert second.startswith(f"`{valid.parent.name}/valid.bin` (")
    assert second.endswith(", 25% of the windows")
