"""Proves that a checkpoint is written whole or not at all, that the model comes back from it bit for bit, that a
changed bit is noticed, and that whatever else is given in its place, random bytes among it, gets one line, runs no
code and takes no memory."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import threading
import zipfile

import pytest
import torch
from helpers.checkpoints import Calls, archive, sign
from helpers.faults import fail_to_read
from helpers.models import save_run

from lm.model.transformer import MODEL_SETTINGS, TransformerLM
from lm.runs.checkpoint import OLDER, load_checkpoint, load_model, load_tokenizer, save_checkpoint, verify
from lm.runs.manifest import training_facts
from lm.training.checks import compare_settings
from tokenization import InputError

SETTINGS = {"vocab_size": 20, "context_length": 8, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": None}
SETTINGS |= {"rope_theta": 100.0, "norm_position": "pre", "position_encoding": "rope", "feed_forward": "swiglu"}
SETTINGS |= {"vocab_multiple": 16, "tie_embeddings": True, "qk_norm": True, "bigram_rows": 6}
SETTINGS |= {"embedding_skips": True, "value_embeddings": True, "smear": True}


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


def test_verify_goes_on_where_a_checkpoint_cannot_be_read(lm, monkeypatch, tmp_path):
    for name in ("best", "last", "step-1"):
        save_checkpoint(make_checkpoint(), tmp_path / f"{name}.ckpt")
    (tmp_path / "best.ckpt").write_bytes((tmp_path / "best.ckpt").read_bytes()[:-1])
    fail_to_read(tmp_path / "last.ckpt", monkeypatch)
    result = lm("verify", tmp_path)
    assert result.code == 2
    assert f"{tmp_path / 'step-1.ckpt'}: intact" in result.out
    first, second = result.err.splitlines()
    assert first.startswith(f"lm verify: {tmp_path / 'best.ckpt'}: ")
    assert second == f"lm verify: {tmp_path / 'last.ckpt'}: Input/output error"


# --- the manifest and its digest -------------------------------------------------------------------------------------


def test_the_file_is_an_archive_a_manifest_and_a_digest(tmp_path, small):
    path = tmp_path / "last.ckpt"
    small.save(tmp_path / "tokenizer")
    (tmp_path / "config.yaml").write_bytes(b"seed: 1")
    data = {"tokenizer_sha256": small.digest, "train_sha256": "11", "val_sha256": "22"}
    save_checkpoint(make_checkpoint(TokenDataModule=data), path)
    content = path.read_bytes()
    manifest = verify(path)
    assert content.endswith(sign(b"", json.dumps(manifest)).rpartition(b"sha256")[0] + content[-72:])
    assert content[-72:] == f"sha256 {hashlib.sha256(content[:-72]).hexdigest()}\n".encode()
    names = ("vocab.json", "merges.txt", "tokenizer_config.json")
    files = {f"tokenizer/{name}": hashlib.sha256((tmp_path / "tokenizer" / name).read_bytes()) for name in names}
    assert manifest == {
        "format": 1,
        "step": 3,
        **data,
        "config_sha256": hashlib.sha256(b"seed: 1").hexdigest(),
        "files": {name: sha256.hexdigest() for name, sha256 in files.items()},
    }
    assert torch.load(path, weights_only=True)["global_step"] == 3
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("best_loss", [1.5, float("inf"), None])
def test_the_facts_of_the_training(tmp_path, best_loss):
    callbacks = {} if best_loss is None else {"callbacks": {"Checkpoints": {"best_loss": best_loss}}}
    for name in ("best.ckpt", "last.ckpt"):
        save_checkpoint(make_checkpoint(**callbacks), tmp_path / name)
    known = {"validation_loss": 1.5} if best_loss == 1.5 else {}
    assert training_facts(tmp_path / "best.ckpt") == {"step": 3, **known}
    assert training_facts(tmp_path / "last.ckpt") == {"step": 3}  # the lowest loss may be that of another state
    save_checkpoint(make_checkpoint(global_step=0), tmp_path / "best.ckpt")  # imported
    assert training_facts(tmp_path / "best.ckpt") == {}


def test_every_changed_bit_and_every_cut_is_noticed(tmp_path):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    save_checkpoint(make_checkpoint(), path)
    whole = path.read_bytes()
    end = range(8 * (len(whole) - 300), 8 * len(whole))  # manifest and digest, bit by bit
    for bit in [*end, *(rng.randrange(8 * len(whole)) for _ in range(300))]:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"last.ckpt: is (damaged|not a checkpoint of `lm fit`, or not a whole)"):
            load_checkpoint(path)
    for size in [*range(len(whole) - 400, len(whole)), *(rng.randrange(len(whole)) for _ in range(100)), 0]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"last.ckpt: is (damaged|not a checkpoint of `lm fit`, or not a whole)"):
            verify(path)
    path.write_bytes(whole)
    assert verify(path)["step"] == 3


def test_a_changed_tokenizer_is_noticed_and_named(tmp_path, small):
    path = tmp_path / "last.ckpt"
    small.save(tmp_path / "tokenizer")
    save_checkpoint(make_checkpoint(), path)
    assert load_tokenizer(path).digest == small.digest
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        file = tmp_path / "tokenizer" / name
        whole = file.read_bytes()
        file.write_bytes(whole + b"\n")  # the same tokenizer, but not the same file
        with pytest.raises(InputError, match=f"{name}: has changed since .*last.ckpt was saved"):
            verify(path)
        with pytest.raises(InputError, match=f"{name}: has changed"):
            load_tokenizer(path)
        file.unlink()
        with pytest.raises(InputError, match=f"{name}: is missing"):
            verify(path)
        file.write_bytes(whole)
    assert verify(path)


# --- what strangers send ---------------------------------------------------------------------------------------------


def packed(content: bytes) -> bytes:
    """The same archive, compressed: a bomb, were the content long."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


EVIL = {
    "a call": lambda: archive(make_checkpoint(evil=Calls(os.mkdir, "evil"))),
    "a call at once": lambda: archive(Calls(os.mkdir, "evil")),
    "memory": lambda: archive(make_checkpoint(evil=Calls(bytearray, 1 << 40))),
    "evaluation": lambda: archive(make_checkpoint(evil=Calls(eval, "__import__('os').mkdir('evil')"))),
    "a compressed archive": lambda: packed(archive(make_checkpoint())),
    "no archive": lambda: pickle.dumps(make_checkpoint(evil=Calls(os.mkdir, "evil"))),
    "an archive behind something": lambda: b"x" * 64 + archive(make_checkpoint()),
    "text": lambda: b"!!python/object/apply:os.mkdir [evil]",
}


@pytest.mark.parametrize("case", EVIL)
def test_a_strangers_checkpoint_runs_no_code(case, tmp_path, monkeypatch):
    """Signed as ours are: a digest says that a file is whole, and not who wrote it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(sign(EVIL[case]()))
    with pytest.raises(InputError, match=r"evil.ckpt: cannot be read as a checkpoint"):
        load_checkpoint("evil.ckpt")
    assert not os.path.exists("evil")
    (tmp_path / "good.ckpt").write_bytes(sign(archive(make_checkpoint())))
    assert load_checkpoint("good.ckpt")["global_step"] == 3


def laughs() -> list:
    value: list = ["ha"]
    for _ in range(60):
        value = [value, value]  # 2^60 words, were they written out
    return value


SIZES = {"num_layers": 10**9, "context_length": 10**12, "d_model": 10**6, "vocab_size": 10**9, "d_ff": 10**9}


@pytest.mark.parametrize("name", SIZES)
def test_a_strangers_settings_take_no_memory(name, tmp_path):
    checkpoint = make_checkpoint(hyper_parameters=SETTINGS | {name: SIZES[name]})
    (tmp_path / "evil.ckpt").write_bytes(sign(archive(checkpoint)))
    with pytest.raises(
        InputError, match=r"evil.ckpt: its weights are not those of the model that its settings describe"
    ):
        load_model(tmp_path / "evil.ckpt")
    checkpoint["hyper_parameters"][name] = laughs()
    (tmp_path / "evil.ckpt").write_bytes(sign(archive(checkpoint)))
    with pytest.raises(InputError, match=r"evil.ckpt: is not a checkpoint of `lm fit`"):
        load_checkpoint(tmp_path / "evil.ckpt")


def refused(path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a checkpoint of `lm fit`, or not a whole one"):
        load_checkpoint(path)


def test_parts_of_a_checkpoint_and_random_bytes(tmp_path, recwarn):
    path, rng = tmp_path / "last.ckpt", random.Random(0)
    whole = archive(make_checkpoint())
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1, len(whole)):
        refused(path, whole[:size])
    for _ in range(300):
        refused(path, rng.randbytes(rng.randrange(1, 300)))
        path.write_bytes(sign(rng.randbytes(rng.randrange(1, 300))))
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            load_checkpoint(path)
    assert not recwarn.list


NO_MANIFESTS = ["[3]", "3", '{"step": "3"}', '{"files": {}}', '{"step": 3, "files": null}', '{"step": 3, "files": [1]}']


@pytest.mark.parametrize("manifest", [*NO_MANIFESTS, "[" * 60_000, f'{{"step": {"1" * 5000}}}'], ids=lambda m: m[:30])
def test_a_manifest_of_another_kind(manifest, tmp_path):
    refused(tmp_path / "x.ckpt", sign(archive(make_checkpoint()), manifest))


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
    (tmp_path / "other.ckpt").write_bytes(sign(archive(content)))
    with pytest.raises(InputError, match=r"other.ckpt: is not a checkpoint of `lm fit`"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_no_checkpoint_names_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"x.ckpt: no such checkpoint; train with `lm fit`$"):
        load_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "broken.ckpt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name, what in {
        "": "is a folder, not a checkpoint",
        "x.ckpt": "no such checkpoint",
        "broken.ckpt": "is a broken link",
        "pipe.ckpt": "is not a regular file",
    }.items():
        with pytest.raises(InputError, match=rf"{name}: {what}; there is [^,]*best.ckpt$"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match=r"folder.ckpt: is a folder without a checkpoint; train with `lm fit`$"):
        load_checkpoint(tmp_path / "folder.ckpt")


def test_a_missing_tokenizer_is_not_to_be_trained_anew(token_data, tmp_path):
    save_run(tmp_path, token_data)
    (tmp_path / "tokenizer/notes.txt").write_text("not the tokenizer's")
    save_checkpoint(load_checkpoint(tmp_path / "best.ckpt"), tmp_path / "best.ckpt")
    (tmp_path / "tokenizer/notes.txt").unlink()
    load_tokenizer(tmp_path / "best.ckpt")
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"is missing, and .* needs it; copy it from the tokenizer it was"):
        load_tokenizer(tmp_path / "best.ckpt")


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


def test_a_checkpoint_from_before_a_setting_was_one_without_it(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name not in OLDER}
    model = TransformerLM(**settings)
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    path = tmp_path / "last.ckpt"
    save_checkpoint({"state_dict": weights, "hyper_parameters": settings, "global_step": 3}, path)
    assert torch.equal(load_model(path).lm_head.weight, model.lm_head.weight)
    checkpoint = load_checkpoint(path)
    assert compare_settings(checkpoint, settings | OLDER, path) == []
    for name, value in {"tie_embeddings": True, "qk_norm": True, "optimizer": "muon"}.items():
        with pytest.raises(InputError, match=f"was trained with model.{name} "):
            compare_settings(checkpoint, settings | OLDER | {name: value}, path)
