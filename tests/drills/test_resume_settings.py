"""The drill over settings: a run that has been stopped goes on with one setting changed, each that the parser has.

Each change is refused, in one line that names it, and no file changes; or it is announced with old and new value.
Unless docs/training.md says that it changes the training, the run is exact besides: weights and optimizer are the
unbroken run's, bit for bit. What is tried follows from the parser, so that a setting nobody has thought of fails.
"""

import json
import os
import shutil
import types
import typing
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers.processes import start
from helpers.runs import STEPS, same
from jsonargparse._typehints import ActionTypeHint

from lm.runs.checkpoint import load_checkpoint
from lm.training.parser import LINKED, SettingsCLI

Change = tuple[str, object]

# How to go on, and not with what:
PLACES = {"trainer.default_root_dir", "ckpt_path", "init_from", "allow_changed_data", "device"}
CHANGE_THE_TRAINING = {"data.batch_size", "data.seed", "trainer.max_steps", "trainer.precision", "trainer.fast_dev_run"}
CALLBACKS = ("OnExceptionCheckpoint", "Timer", "ModelSummary")
UNTRIED = {"trainer.num_nodes": "needs another machine", "trainer.accelerator": "needs another device"}


def special(folder: Path, data: Path) -> dict[str, list[object]]:
    """Values where the type alone makes none that anybody would give. folder: for what they write."""
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder / "csv")}}
    return {
        "seed_everything": [5],
        "ckpt_path": ["best", "auto"],
        "init_from": [str(folder / "run-0" / "best.ckpt")],
        "data.train_path": [
            str(data / "train.bin"),
            str(data / "valid.bin"),
            f"{data / 'train.bin'}:2",
            f"{data / 'train.bin'}:2,{data / 'valid.bin'}:1",
            f"{data / 'train.bin'}:0",
            "",
        ],
        "data.val_path": [str(data / "valid.bin"), str(data / "train.bin"), ""],
        "data.tokenizer": [str(data / "tok"), ""],
        "trainer.default_root_dir": [str(folder / "moved"), "", "s3://bucket/run"],
        "trainer.devices": ["auto"],
        "trainer.strategy": ["ddp"],
        "trainer.precision": ["bf16-mixed", "bf16-true", "64-true", "transformer-engine"],
        "trainer.logger": [False, csv],
        "trainer.callbacks": [[{"class_path": f"lightning.pytorch.callbacks.{name}"}] for name in CALLBACKS],
        "trainer.plugins": [[{"class_path": "lightning.pytorch.plugins.io.TorchCheckpointIO"}]],
        "trainer.profiler": ["simple", "advanced"],
        "trainer.max_time": ["00:01:00:00", "00:00:00:00"],
        "trainer.max_steps": [STEPS + 2, STEPS - 2, 5],
        "trainer.max_epochs": [None, 0, 1],
        "trainer.val_check_interval": [5, 100, 0.5],
        "trainer.limit_train_batches": [1.0, 3, 0.5, 0],
        "trainer.limit_val_batches": [1, 0.5, 0],
        "trainer.overfit_batches": [2, 0.5],
        "trainer.num_sanity_val_steps": [2, -1],
        "trainer.gradient_clip_algorithm": ["norm"],
        "model.compile": [False],
        "model.betas": [[0.8, 0.9]],
        "model.d_ff": [32],
    }


def values(hint: object, old: object) -> list[object]:
    """Others than the old one, by the setting's type."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return [part for part in parts if part != old]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [value for part in parts for value in values(part, old)]
    if hint is bool:
        return [not old]
    number = old if isinstance(old, (int, float)) else 0
    made = {int: number + 1, float: number / 2 or 0.5, str: "other"}
    return [made[hint]] if hint in made else []  # type: ignore[index]


def recorded(run: Path) -> dict[str, object]:
    """Every setting and its value, as config.yaml has them: trainer.max_steps, seed_everything."""
    settings: dict[str, object] = {}
    for group, value in yaml.safe_load((run / "config.yaml").read_text()).items():
        inside = {f"{group}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {}
        settings |= inside or {group: value}
    return settings


def changes(run: Path, folder: Path, data: Path) -> list[Change]:
    """Each setting of `lm fit` with each value that it is changed to."""
    parser = SettingsCLI(["fit", "-c", str(run / "config.yaml")])._subcommand_parsers["fit"]
    hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    given, found = special(folder, data), []
    for name, old in recorded(run).items():
        if name in UNTRIED:
            continue
        new = given.pop(name) if name in given else values(hints[name], old)
        assert new, f"this test knows no other value for {name}, a {hints[name]}"
        found += [(name, value) for value in new]
    assert not given  # each is a setting still
    return found


def contents(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def is_exact(run: Path, unbroken: Path) -> bool:
    a, b = (load_checkpoint(folder / "last.ckpt") for folder in (run, unbroken))
    return all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states", "global_step"))


def outcome(lm, change: Change, run: Path, unbroken: Path) -> str:
    """Goes on with the change -> "refused", "announced" or "announced and exact"; else what is wrong."""
    name, value = change
    os.environ.pop("PL_GLOBAL_SEED", None)  # which a run in the same process has left
    before, word = contents(run), value if isinstance(value, str) else json.dumps(value)
    arguments = ["fit", "-c", run / "config.yaml", f"--trainer.default_root_dir={run}"]
    arguments += [f"--ckpt_path={run / 'last.ckpt'}", f"--{name}={word}"]
    if name == "trainer.strategy":  # which leaves a process group behind
        process = start(arguments)
        (out, err), code = process.communicate(), process.returncode
    else:
        try:
            result = lm(*arguments)
        except Exception as error:
            return f"traceback: {error!r}"
        code, out, err = result.code, result.out, result.err
    if code == 2:
        named = (
            any(part in err for part in (name.rpartition(".")[2], word, "a setting: ")) and len(err.splitlines()) == 1
        )
        return "refused" if named and contents(run) == before else f"refused, but {err!r}"
    if code:
        return f"exit code {code}: {err!r}"
    label = name.removeprefix("model.").replace("trainer.max_steps", "max_steps")
    if name not in PLACES and f"  from here on  {label}: " not in out:
        return "not announced"
    if name.startswith("model.") or name in CHANGE_THE_TRAINING:
        return "announced"
    moved = Path(str(value)) if name == "trainer.default_root_dir" else run
    return "announced and exact" if is_exact(moved, unbroken) else "announced, and not exact"


@pytest.mark.parametrize("share", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_every_setting(share, lm, stopped_run, whole_run, token_data, monkeypatch, tmp_path):
    """share: of the changes one in so many is tried."""
    data = shutil.copytree(token_data, tmp_path / "data")
    shutil.copytree(stopped_run, tmp_path / "run-0")
    monkeypatch.chdir(tmp_path)
    found, wrong = Counter(), []
    for number, change in enumerate(changes(stopped_run, tmp_path, data)[::share], start=1):
        run = Path(shutil.copytree(stopped_run, tmp_path / f"run-{number}"))
        what = outcome(lm, change, run, whole_run)
        found[what] += 1
        if what not in ("refused", "announced", "announced and exact"):
            wrong.append((*change, what))
        shutil.rmtree(run)
    print(f"{found.total()} changes of a setting on going on: {dict(found)}")
    assert wrong == []


def test_every_setting_is_tried(stopped_run, token_data, tmp_path):
    """Each that the parser has, but those that are named above with a reason, and those that follow from others."""
    parser = SettingsCLI(["fit", "-c", str(stopped_run / "config.yaml")])._subcommand_parsers["fit"]
    names = {action.dest for action in parser._actions if isinstance(action, ActionTypeHint)} - set(LINKED)
    tried = {name for name, _ in changes(stopped_run, tmp_path, token_data)}
    assert names - tried == set(UNTRIED)
