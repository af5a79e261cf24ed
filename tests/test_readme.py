"""The commands and the Python of README.md and of the pages that a newcomer follows do what they say: each block runs,
in order, in a folder of its own; the walkthrough's first, as the others show what can be done afterwards.

The texts and the model are made small, and nothing else is changed.
"""

import gzip
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT
from helpers.pages import RUN_PAGES, blocks, commands
from helpers.processes import ForkServer
from lightning import Trainer

COMMANDS = [line for line in commands(*RUN_PAGES) if not line.startswith("make ")]


def shorten(text: str, documents: int) -> str:
    return "<|endoftext|>".join(text.split("<|endoftext|>")[:documents])


@pytest.fixture(scope="module")
def workplace(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in small: fewer stories, a smaller demo model, and somebody's own texts."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "README.md", folder)
    stories = {}
    for part, documents in (("train", 300), ("valid", 60)):
        with gzip.open(ROOT / f"data/tinystories-{part}.txt.gz", "rt", encoding="utf-8") as file:
            stories[part] = shorten(file.read(), documents)
        (folder / "data").mkdir(exist_ok=True)
        (folder / f"data/tinystories-{part}.txt.gz").write_bytes(gzip.compress(stories[part].encode()))
    (folder / "my-texts").mkdir()
    for number, story in enumerate(stories["train"].split("<|endoftext|>")[:50]):
        (folder / f"my-texts/{number}.txt").write_text(story)
    (folder / "my-valid.txt").write_text(stories["valid"])
    (folder / "book.txt").write_text(stories["valid"])
    config = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 3, "limit_val_batches": 2, "log_every_n_steps": 1}
    config["model"] |= {"d_model": 24, "num_layers": 1, "warmup_steps": 1}
    config["samples"]["max_new_tokens"] = 5
    (folder / "configs").mkdir()
    (folder / "configs/demo.yaml").write_text(yaml.safe_dump(config))
    (folder / "bin").mkdir()
    for command in ("tokenization", "lm"):
        script = folder / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{fork_server.python}" -m {command} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*isinstance\\(treespec, LeafSpec\\)",
)
def test_readme_commands_run_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(COMMANDS) >= 12
    environment = os.environ | {"PATH": f"{workplace / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    outputs = {}
    for command in COMMANDS:
        command = command.replace("--trainer.max_steps 2100", "--trainer.max_steps 6")
        done = subprocess.run(command, shell=True, cwd=workplace, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
        outputs[command.split(" -")[0]] = done.stdout
    assert outputs["lm generate checkpoints/demo/best.ckpt"].startswith("Once upon a time")
    assert "val/bits_per_byte" in outputs["lm validate checkpoints/demo"]
    for run in ("demo", "mine"):
        names = {path.name for path in (workplace / "checkpoints" / run).iterdir()}
        assert {"config.yaml", "last.ckpt", "best.ckpt", "tokenizer"} <= names
    monkeypatch.chdir(workplace)
    train, write = blocks("python", *RUN_PAGES)
    exec(write, {})
    text = capsys.readouterr().out
    assert text.startswith("Once upon a time")
    assert len(text) > 60
    trainers: list[Trainer] = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *args, fit=Trainer.fit: trainers.append(self) or fit(self, *args))
    variables: dict[str, Any] = {}
    exec(train, variables)
    assert [trainer.global_step for trainer in trainers] == [50]
    assert variables["windows"].shape[1] == 65


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_file_of_the_code_is_in_its_map() -> None:
    text = (ROOT / "docs/code.md").read_text() + (ROOT / "README.md").read_text()
    exempt = {"__init__.py", "errors.py"}
    for path in (*ROOT.glob("tokenization/**/*.py"), *ROOT.glob("lm/**/*.py"), *ROOT.glob("configs/*.yaml")):
        name, folder = path.relative_to(ROOT).as_posix(), path.relative_to(ROOT).parent.as_posix()
        assert path.name in exempt or name in text or f"`{folder}/`" in text, f"docs/code.md does not mention {name}"
