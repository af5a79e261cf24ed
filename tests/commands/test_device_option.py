"""Proves that --device decides where a trained model computes, and that a device that is not there costs one line."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from jsonargparse import Namespace

from lm.machine.devices import find_device, wait_for
from lm.training import parser
from lm.training.module import LanguageModel
from tokenization import InputError


@pytest.fixture(scope="module")
def run(lm, fit_arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "run"
    few = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--samples.max_new_tokens=0", "--device=cpu")
    done = lm(*fit_arguments(folder, *few, "--trainer.accelerator=auto"))
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize(
    ("name", "cuda", "found"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_device_of_a_name(monkeypatch, name, cuda, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # which auto passes over
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("accelerator", "device", "settled"),
    [("auto", None, "cpu"), ("mps", None, "mps"), ("gpu", None, "gpu"), ("cpu", "mps", "mps"), ("auto", "auto", "cpu")],
)
def test_a_run_takes_apples_gpu_only_if_asked_to(monkeypatch, accelerator, device, settled):
    """Lightning's own auto would take it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for check in ("check_numbers", "check_trainer"):
        monkeypatch.setattr(parser, check, lambda settings: None)
    settings = Namespace(device=device, trainer=Namespace(accelerator=accelerator, devices="auto", precision="32-true"))
    parser.settle_trainer(settings)
    assert (settings.trainer.accelerator, settings.device) == (settled, None)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch, name):
    waited = []
    for backend in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, backend), "synchronize", lambda backend=backend: waited.append(backend))
    wait_for("cpu")
    assert waited == []
    wait_for(name)
    assert waited == [name]


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_one_that_is_not_there(monkeypatch, name):
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device {name}: .* take --device cpu, or auto"):
        find_device(name)


def test_a_run_records_the_device_as_its_accelerator(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["accelerator"], config["device"]) == ("cpu", None)


def commands(run, token_data):
    return {
        "generate": ["generate", run, "--max-new-tokens=3", "--temperature=0"],
        "test": ["test", run, token_data / "valid.bin"],
        "serve": ["serve", run, "--port=0"],
        "validate": ["validate", "-c", run / "config.yaml", "--ckpt_path", run / "best.ckpt"],
        "fit": ["fit", "-c", run / "config.yaml", "--trainer.default_root_dir", run.with_name("other")],
    }


@pytest.mark.parametrize("command", ["generate", "test", "validate"])
def test_on_the_cpu(lm, run, token_data, command):
    arguments = commands(run, token_data)[command]
    done = lm(*arguments, "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out == lm(*arguments).out  # auto, on a machine without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("command", ["generate", "test", "serve", "validate", "fit"])
def test_refused(lm, run, token_data, command):
    for name in ("cuda", "quantum"):
        done = lm(*commands(run, token_data)[command], "--device", name)
        assert (done.code, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert name in done.err
    assert not run.with_name("other").exists()


def test_models_compute_where_they_were_put(lm, run, token_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moved.append(device) or self)
    for command in ("generate", "test"):
        lm(*commands(run, token_data)[command], "--device", "cuda")
        assert moved.pop() == torch.device("cuda")


def test_logged_numbers_do_not_visit_the_device(monkeypatch):
    """Lightning would copy a Python number to the GPU, and wait for it."""
    seen = {}
    monkeypatch.setattr("lightning.LightningModule.log", lambda self, name, value, **_: seen.update({name: value}))
    monkeypatch.setattr(LanguageModel, "trainer", SimpleNamespace(training=False))
    module = LanguageModel(vocab_size=9, context_length=4, d_model=4, num_layers=1, num_heads=1)
    module.log("number", 3)
    module.log("tensor", loss := torch.tensor(1.0, requires_grad=True))
    module.log("agreed on", 2.5, sync_dist=True)  # which the devices' own network carries, from there
    assert (seen["number"].device.type, seen["number"].dtype) == ("cpu", torch.float32)
    assert seen["tensor"] is loss
    assert seen["agreed on"] == 2.5
    assert not isinstance(seen["agreed on"], torch.Tensor)
