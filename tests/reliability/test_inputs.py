"""Damage and malice: flipped bits and truncated files are noticed and named; a stranger's files run nothing and take
no memory; a loss or a gradient that is no number never reaches the weights."""

import io
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from helpers.checkpoints import Calls, archive, sign
from helpers.faults import spoil_gradient, spoil_loss, watch_weights

from lm.runs.checkpoint import load_checkpoint, load_tokenizer, verify
from tokenization import InputError, TokenFile


@pytest.fixture
def files(unbroken, token_data, tmp_path):
    """{file: what reads it}, in a folder of their own."""
    run = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    for name in ("train.bin", "train.bin.json", "valid.bin", "valid.bin.json"):
        shutil.copy(token_data / name, run / name)
    readers = {run / name: (lambda name=name: verify(run / name)) for name in ("last.ckpt", "best.ckpt")}
    for path in (run / "tokenizer").iterdir():
        readers[path] = lambda: load_tokenizer(run / "last.ckpt")
    for name in ("train", "valid"):
        for suffix in (".bin", ".bin.json"):
            readers[run / f"{name}{suffix}"] = lambda name=name: TokenFile.open(run / f"{name}.bin")
    return readers


def noticed(path: Path, read, content: bytes) -> bool:
    """The file with another content is refused in one line that names it; afterwards it is as before."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        read()
    except InputError as error:
        return path.name.removesuffix(".json") in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(whole)
    return False


@pytest.mark.parametrize("factor", [1, pytest.param(10, marks=pytest.mark.torture)])
def test_flipped_bits_and_truncations_are_noticed(factor, files, rng, figure):
    flips = cuts = missed = 0
    paths = sorted(files)
    for number in range(1200 * factor):
        path = paths[number % len(paths)]
        content = bytearray(path.read_bytes())
        if number % 6:
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            flips += 1
        else:
            del content[rng.randrange(len(content)) :]
            cuts += 1
        if not noticed(path, files[path], bytes(content)):
            print("missed", path.name, len(content), number)
            missed += 1
    assert all(read() for read in files.values())  # and whole files are not refused
    assert missed == 0
    figure(f"{flips:,} flipped bits and {cuts:,} truncations of {len(paths)} checkpoint, token and tokenizer files:"
           f" {flips + cuts - missed:,} noticed, the file named")  # fmt: skip


# --- malice ----------------------------------------------------------------------------------------------------------


def bomb(content: bytes) -> bytes:
    """Its first tensor is a gibibyte of zeros, packed, in haste, into a few mebibytes."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(1 << 30) if name.endswith("/data/0") else old.read(name))
    return buffer.getvalue()


def laughs() -> list:
    value: list = ["ha"]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.fixture(scope="module")
def evil(unbroken) -> dict[str, bytes]:
    """Checkpoints, each signed as ours are, whose reading would make a file named "evil", or take a gibibyte."""
    good = load_checkpoint(unbroken[0] / "last.ckpt")
    manifest = '{"step": 40}'
    mkdir, instantiator = Calls(os.mkdir, "evil"), good["hyper_parameters"] | {"_instantiator": "os.mkdir"}
    contents = {
        "a call of the system": archive(good | {"x": Calls(os.system, "mkdir evil")}),
        "a call in the weights": archive(good | {"state_dict": {"model.x": mkdir}}),
        "evaluation": archive(good | {"x": Calls(eval, "__import__('os').mkdir('evil')")}),
        "a pickle in a pickle": archive(good | {"x": Calls(pickle.loads, pickle.dumps(mkdir))}),
        "a bare pickle": pickle.dumps(good | {"x": mkdir}),
        "an instantiator": archive(good | {"hyper_parameters": instantiator, "_instantiator": "os.mkdir"}),
        "memory by a call": archive(good | {"x": Calls(bytearray, 1 << 30)}),
        "a zip bomb": bomb(archive(good)),
        "laughs": archive(good | {"hyper_parameters": good["hyper_parameters"] | {"eps": laughs()}}),
        "a wide model": archive(good | {"hyper_parameters": good["hyper_parameters"] | {"d_model": 1 << 20}}),
        "a deep model": archive(good | {"hyper_parameters": good["hyper_parameters"] | {"num_layers": 1 << 30}}),
        "a long context": archive(good | {"hyper_parameters": good["hyper_parameters"] | {"context_length": 1 << 40}}),
        "a YAML tag": b"!!python/object/apply:os.mkdir [evil]",
    }
    return {name: sign(content, manifest) for name, content in contents.items()}


COMMANDS = {
    "generate": lambda path, config: ["generate", path, "--max-new-tokens=1"],
    "fit": lambda path, config: ["fit", "-c", config, "--ckpt_path", path, "--trainer.max_steps=41"],
    "validate": lambda path, config: ["validate", "-c", config, "--ckpt_path", path],
}


def peak_memory() -> float:
    """Of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_a_strangers_files_run_nothing_and_take_no_memory(evil, unbroken, lm, figure, monkeypatch, tmp_path):
    run = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = str(run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, and not from the making of the bomb
    tried, before, start = 0, peak_memory(), time.monotonic()
    for name, content in evil.items():
        (run / "evil.ckpt").write_bytes(content)
        for command, arguments in COMMANDS.items():
            result = lm(*arguments(run / "evil.ckpt", run / "config.yaml"))
            refused = result.code == 2 and "evil.ckpt" in result.err and len(result.err.splitlines()) == 1
            harmless = name == "an instantiator" and result.code == 0  # read, and not heeded
            assert refused or harmless, (name, command, result.err)
            assert not Path("evil").exists()
            tried += 1
    for tag in ("!!python/object/apply:os.mkdir [evil]", "!!python/object/new:os.system ['mkdir evil']"):
        Path("evil.yaml").write_text(f"seed_everything: {tag}\n")
        result = lm("fit", "-c", "evil.yaml")
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert not Path("evil").exists()
        tried += 1
    grown = peak_memory() - before
    assert grown < 300
    assert time.monotonic() - start < 600
    figure(f"malicious files: {tried} readings of {len(evil)} checkpoints and 2 configurations, nothing ran,"
           f" the process grew by {grown:.0f} MiB")  # fmt: skip


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [range(2, 9, 3), pytest.param(range(2, 13), marks=pytest.mark.torture)])
def test_what_is_no_number_never_reaches_the_weights(steps, lm, fit_arguments, figure, tmp_path):
    for spoil in (spoil_loss, spoil_gradient):
        for step in steps:
            with pytest.MonkeyPatch.context() as patch:
                spoil(patch, {step})
                seen = watch_weights(patch)
                run = tmp_path / f"{spoil.__name__}-{step}"
                assert lm(*fit_arguments(run, "--trainer.max_steps=14", "--samples.max_new_tokens=0")).code == 0
            if step > 1:
                assert all(map(torch.equal, seen[step - 1], seen[step]))
            assert not all(map(torch.equal, seen[step], seen[step + 1]))
            assert load_checkpoint(run / "last.ckpt")["skipped_steps"]["total"] == 1
    figure(f"NaN in the loss and Inf in the gradient, each at {len(steps)} steps: the weights changed 0 times")
