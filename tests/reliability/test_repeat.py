"""Proves that a run repeats itself on two threads, shipped and compiled, in bfloat16 where the processor has it.
Its losses, weights and moments are the same bits twice, and after a kill and a resume.

Nothing may run beside these tests, and they do not take over the one thread of the others: `make test-repeat`.
"""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from helpers.events import read_events
from helpers.processes import ForkServer, fork_server_process

from lm.runs.checkpoint import load_checkpoint
from lm.runs.folder import LAST
from tokenization import END_OF_TEXT, Tokenizer
from tokenization.bpe import learn_merges
from tokenization.pretokenization import count_pretokens

CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
SMALLER = {"trainer.max_steps": 4, "trainer.accumulate_grad_batches": 1, "data.batch_size": 4}
KILLER = """
import os, signal
from lightning.pytorch.callbacks import Callback

class KillAt(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> Path:
    """A folder with a tokenizer of the demo's size, and token files of some of its stories; and KillAt in killer.py."""
    folder = tmp_path_factory.mktemp("stories")
    with gzip.open(ROOT / "data/tinystories-valid.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(200_000)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    counts = count_pretokens(text, [END_OF_TEXT])
    tokenizer = Tokenizer(*learn_merges(counts, 2048, [END_OF_TEXT]), [END_OF_TEXT])
    tokenizer.save(folder / "tokenizer")
    for name in ("train", "valid"):
        tokenizer.encode_files([folder / "text.txt"], folder / f"{name}.bin", num_processes=1)
    (folder / "killer.py").write_text(KILLER)
    return folder


@pytest.fixture(scope="module")
def server():
    """The folder of a server that forks runs on two threads; it imports everything while other things are done."""
    with fork_server_process(OMP_NUM_THREADS="2") as folder:
        yield folder


def fit(stories: Path, config: str, run: Path, settings: dict[str, object], server: Path | None = None) -> int:
    """`lm fit` on two threads, as a user starts it or forked by a server -> its exit code."""
    common: dict[str, object] = {
        "trainer.default_root_dir": run,
        "trainer.accelerator": "cpu",
        "trainer.limit_val_batches": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "model.warmup_steps": 2,
        "samples.max_new_tokens": 0,
        "baselines.order": 0,
        "data.train_path": stories / "train.bin",
        "data.val_path": stories / "valid.bin",
        "data.tokenizer": stories / "tokenizer",
        "ckpt_path": "auto",
    }
    arguments = ["fit", "-c", ROOT / config, *(f"--{name}={value}" for name, value in (common | settings).items())]
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{stories}", "OMP_NUM_THREADS": "2"}
    if server is not None:
        return ForkServer(server).start(arguments, Path(f"{run}.log"), **environment).wait(None)
    with open(f"{run}.log", "a") as log:
        command = [sys.executable, "-m", "lm", *arguments]
        return subprocess.run(command, env=os.environ | environment, stdout=log, stderr=log).returncode


def tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: found for part, inner in entries for key, found in tensors(inner, f"{name}.{part}").items()}
    return {}


def assert_repeated(run: Path, again: Path, steps: int) -> None:
    losses, losses_again = (read_events(folder)[0]["train/loss"] for folder in (run, again))
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    assert losses_again == losses
    first, second = (load_checkpoint(folder / LAST) for folder in (run, again))
    for part in ("state_dict", "optimizer_states"):
        ours, theirs = tensors(first[part]), tensors(second[part])
        assert ours
        assert ours.keys() == theirs.keys()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not different, f"{len(different)} of {len(ours)} tensors differ, the first: {different[0]}"


@pytest.mark.repeat
@pytest.mark.parametrize("compiled", [False, True], ids=["as-shipped", "compiled"])
def test_the_demo_repeats_itself(compiled, server, stories, tmp_path):
    """Eight steps, and again: this time killed in the sixth, and gone on with after the fourth in another process."""
    settings = {"trainer.max_steps": 8, "trainer.val_check_interval": 8, "checkpoints.every_n_steps": 4}
    settings |= {"model.compile": "true"} if compiled else {}
    whole, again = tmp_path / "whole", tmp_path / "again"
    logs = [Path(f"{run}.log") for run in (whole, again)]
    assert fit(stories, "configs/demo.yaml", whole, settings) == 0, logs[0].read_text()
    path = "attention blocks, loss in chunks, own kernels" + (", compiled" if compiled else "; MFU")
    assert path in logs[0].read_text()
    kill = settings | {"trainer.callbacks+": "killer.KillAt", "trainer.callbacks.step": 6}
    assert fit(stories, "configs/demo.yaml", again, kill, server) == -signal.SIGKILL, logs[1].read_text()
    assert fit(stories, "configs/demo.yaml", again, settings, server) == 0, logs[1].read_text()
    assert f"resuming from {again / LAST}, step 4" in logs[1].read_text()
    assert_repeated(whole, again, 8)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_repeats_itself(config, stories, tmp_path):
    """With few, small batches; what is meant for a GPU on the CPU."""
    asked = yaml.safe_load((ROOT / config).read_text())
    settings: dict[str, object] = SMALLER | {"trainer.val_check_interval": 4, "trainer.limit_val_batches": 1}
    settings |= {"model.vocab_size": max(2048, asked["model"]["vocab_size"]), "model.compile": "true"}
    runs = tmp_path / "run", tmp_path / "again"
    for run in runs:
        assert fit(stories, config, run, settings) == 0, Path(f"{run}.log").read_text()
    assert_repeated(*runs, 4)
