"""Proves that a checkpoint is written whole or not at all, that the model comes back from it bit for bit, and that
whatever else is given in its place, random bytes among it, gets one line and runs no code."""

import os
import pickle
import random
import threading

import pytest
import torch

from lm.checkpoint import MODEL_SETTINGS, compare_settings, load_checkpoint, load_model, save_checkpoint
from lm.transformer import TransformerLM
from tokenization import InputError

SETTINGS = {"vocab_size": 20, "context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": None}
SETTINGS |= {"rope_theta": 100.0, "norm_position": "pre", "position_encoding": "rope", "feed_forward": "swiglu"}
SETTINGS |= {"vocab_multiple": 16}


def make_checkpoint(**changes) -> dict:
    model = TransformerLM(**SETTINGS)
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    return {"state_dict": weights, "hyper_parameters": SETTINGS | {"learning_rate": 0.1}, "global_step": 3} | changes


def test_the_model_comes_back(tmp_path):
    checkpoint = make_checkpoint()
    save_checkpoint(checkpoint, tmp_path / "new" / "last.ckpt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]
    model = load_model(tmp_path / "new" / "last.ckpt")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, checkpoint["state_dict"][f"model.{name}"])
    assert model.context_length == 8
    assert load_checkpoint(str(tmp_path / "new" / "last.ckpt"))["global_step"] == 3


@pytest.mark.parametrize("name", MODEL_SETTINGS)
def test_the_settings_of_the_model_are_all_that_shape_it(name):
    assert set(MODEL_SETTINGS) == set(SETTINGS)
    assert name in TransformerLM.__init__.__annotations__


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_checkpoint(make_checkpoint(), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_checkpoint(make_checkpoint(lock=threading.Lock()), path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(make_checkpoint(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_checkpoint(evil=Evil()), "evil.ckpt")
    with pytest.raises(InputError, match=r"evil.ckpt: cannot be read as a checkpoint"):
        load_checkpoint("evil.ckpt")
    assert not os.path.exists("evil")


def refused(path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint; it is damaged, or not one of ours"):
        load_checkpoint(path)


def test_parts_of_a_checkpoint_and_random_bytes(tmp_path, recwarn):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    torch.save(make_checkpoint(), path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        refused(path, whole[:size])
    for _ in range(300):
        refused(path, rng.randbytes(rng.randrange(1, 300)))
    assert not recwarn.list


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"state_dict": {}, "hyper_parameters": {}},
        {"state_dict": {}, "hyper_parameters": {}, "global_step": 3},
        {"state_dict": {}, "hyper_parameters": None, "global_step": 3},
        {"state_dict": {}, "hyper_parameters": SETTINGS},
    ],
    ids=range(7),
)
def test_what_another_program_saved(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"other.ckpt: is not a checkpoint of `lm fit`"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_no_checkpoint_names_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"x.ckpt: no such checkpoint; train with `lm fit`$"):
        load_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "best.ckpt").touch()
    for path in (tmp_path, tmp_path / "x.ckpt"):
        with pytest.raises(InputError, match=r": no such checkpoint; there is .*best.ckpt$"):
            load_checkpoint(path)


def test_changed_settings():
    checkpoint = make_checkpoint()
    old = checkpoint["hyper_parameters"]
    assert compare_settings(checkpoint, dict(old), "x") == []
    assert compare_settings(checkpoint, old | {"learning_rate": 0.2}, "x") == ["learning_rate: 0.1 -> 0.2"]
    old["betas"] = (0.9, 0.95)
    assert compare_settings(checkpoint, old | {"betas": [0.9, 0.95]}, "x") == []
    assert compare_settings(checkpoint, old | {"betas": [0.9, 0.99]}, "x") == ["betas: (0.9, 0.95) -> [0.9, 0.99]"]
    for name in MODEL_SETTINGS:
        with pytest.raises(InputError, match=f"x: was trained with model.{name} "):
            compare_settings(checkpoint, old | {name: "another"}, "x")
