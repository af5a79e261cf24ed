"""Proves that a run of FSDP saves and restores the same state in either form: gathered in one file, or in shards. One
process shards over itself here; two do in test_devices.py and test_two_hosts.py."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import Result
from helpers.runs import same

from lm.runs.checkpoint import load_checkpoint
from lm.training import cli, saving, sharding

FSDP = ("--trainer.strategy=fsdp", "--trainer.devices=1", "--trainer.max_steps=4", "--checkpoints.every_n_steps=1")
FSDP = (*FSDP, "--trainer.limit_val_batches=1", "--data.batch_size=2", "--samples.max_new_tokens=0")
FSDP = (*FSDP, "--model.warmup_steps=2", "--model.min_learning_rate=0.01")  # a constant rate, whatever the last step
FSDP = (*FSDP, "--model.value_embeddings=true", "--model.smear=true")
SHARDED = (*FSDP, "--checkpoints.sharded=true")


@pytest.fixture(scope="module")
def fit(lm, fit_arguments):
    """Trains in this process, and leaves no process group in which later runs would find themselves."""

    def run(folder: Path, *settings: object) -> Result:
        result = lm(*fit_arguments(folder, *settings))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        assert (result.code, result.err) == (0, "")
        return result

    return run


@pytest.fixture(scope="module")
def gathered(fit, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("gathered") / "run"
    fit(run, *FSDP)
    return run


@pytest.fixture(scope="module")
def sharded(fit, tmp_path_factory) -> Path:
    """The same run in shards, of which the second half is resumed."""
    run = tmp_path_factory.mktemp("sharded") / "run"
    fit(run, *SHARDED, "--trainer.max_steps=2")
    fit(run, *SHARDED, "--ckpt_path=auto")
    return run


def assert_same_state(path: Path, expected: Path, but: str = "config") -> None:
    """Whatever the checkpoints hold but the settings in which the runs differ, bit for bit."""
    a, b = load_checkpoint(path), load_checkpoint(expected)
    assert list(a) == list(b)
    for key in a.keys() - {"config", but}:
        assert same(a[key], b[key]), key


def test_a_resumed_run_in_shards_is_the_gathered_one(gathered, sharded):
    assert_same_state(sharded / "last.ckpt", gathered / "last.ckpt", but="loops")  # Lightning counts the starts, too
    (folder,) = (sharded / "shards").iterdir()  # those of step 4, which best.ckpt shares
    assert [path.name for path in folder.iterdir()] == ["0-of-1.pt"]
    assert (sharded / "last.ckpt").stat().st_size < (gathered / "last.ckpt").stat().st_size / 4


@pytest.mark.parametrize("form", ["sharded", "gathered"])
def test_either_form_is_resumed_in_the_other(form, gathered, sharded, fit, tmp_path):
    """In one folder: last.ckpt is a file in both, and shards that nothing names any more are deleted."""
    source, settings = (sharded, FSDP[2:]) if form == "sharded" else (gathered, SHARDED)
    run = Path(shutil.copytree(source, tmp_path / "run"))
    more = ("--trainer.max_steps=5", "--ckpt_path=auto")
    fit(run, *settings, *more)
    assert load_checkpoint(run / "last.ckpt")["global_step"] == 5
    shards = list(run.glob("shards/step-*/*"))
    assert [path.parent.name[:6] for path in shards] == (["step-4"] if form == "sharded" else ["step-5"])


def test_consolidated_it_is_what_the_gathered_run_has_saved(gathered, fit, lm, monkeypatch, tmp_path):
    """Although the disk was full for a while."""
    write, calls = sharding.write_shard, []

    def fail_once(path, rows):
        digest = write(path, rows)
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device", str(path))
        return digest

    monkeypatch.setattr(sharding, "write_shard", fail_once)
    run, output = tmp_path / "run", tmp_path / "out/last.ckpt"
    result = fit(run, *SHARDED)
    (line,) = [line for line in result.out.splitlines() if "not saved" in line]
    assert line.startswith("step 1: not saved ([Errno 28] No space left on device: ")
    assert line.endswith("); earlier checkpoints are kept")
    assert calls[0].parent != calls[1].parent
    assert not calls[0].parent.exists()
    assert_same_state(run / "last.ckpt", gathered / "last.ckpt")
    assert lm("consolidate", run / "last.ckpt", "--output", output).code == 0
    assert_same_state(output, gathered / "last.ckpt")
    assert (output.parent / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()


def test_shards_that_another_host_has_kept_to_itself_are_no_checkpoint(tmp_path):
    with pytest.raises(sharding.InputError, match=r"1-of-2.pt: was written by another process, and is not to be seen"):
        sharding.commit({}, tmp_path / "last.ckpt", {"shards/step-1-aa/1-of-2.pt": "0"})
    assert not list(tmp_path.iterdir())


def test_nothing_but_fsdp_shards(lm, fit_arguments, tmp_path):
    result = lm(*fit_arguments(tmp_path / "run", "--checkpoints.sharded=true"))
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "lm fit: checkpoints.sharded is true, and trainer.strategy is auto, which shards nothing; take fsdp, or leave"
        " checkpoints.sharded out\n"
    )


def test_what_one_process_writes_before_a_checkpoint_fails_in_all(fit, monkeypatch, tmp_path):
    """Otherwise one would go on, and the others wait for its part of the state."""
    in_all, prepare, inside = sharding.FullySharded.in_all, saving.Saver.prepare, []

    def watched(self, work):
        inside.append(True)
        try:
            return in_all(self, work)
        finally:
            inside.pop()

    def full(self, trainer):
        assert inside
        if trainer.global_step == 2:
            raise OSError(28, "No space left on device")
        prepare(self, trainer)

    monkeypatch.setattr(sharding.FullySharded, "in_all", watched)
    monkeypatch.setattr(saving.Saver, "prepare", full)
    assert "step 2: not saved ([Errno 28] No space left on device)" in fit(tmp_path / "run", *FSDP).out


def test_a_run_with_the_weights_of_another_does_not_begin_with_bigrams(fit, gathered, monkeypatch, tmp_path):
    """Nor in a process that has not read them itself, and will be sent them."""
    find = cli.find_resume

    def sent_later(*arguments):
        return dataclasses.replace(find(*arguments), weights=None)

    monkeypatch.setattr(cli, "find_resume", sent_later)
    start = ("--model.zero_init=true", "--model.bigram_init=true", f"--init_from={gathered}")
    assert "bigrams of" not in fit(tmp_path / "run", *FSDP, *start).out
