"""How a run begins: anew, with the weights of another, or where it was when its checkpoint was saved.

find_resume decides it from the settings and the run's folder, and changes nothing; take_folder holds the folder for the
run that then begins.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.model.transformer import MODEL_SETTINGS
from lm.runs.checkpoint import find_checkpoint, load_checkpoint
from lm.runs.folder import TOKENIZER, delete_leftovers, run_lock
from lm.runs.manifest import read_manifest
from lm.runs.newest import find_newest, make_last
from lm.training.checks import (
    check_continuation,
    check_folder,
    check_length,
    compare_config,
    compare_settings,
    validation_due,
)
from lm.training.data import TokenDataModule
from tokenization import InputError, Tokenizer

AUTO = "auto"  # --ckpt_path: the newest checkpoint in the run's folder that verifies


@dataclass(frozen=True)
class Resume:
    """How a run begins."""

    checkpoint: str | None = None  # to go on from
    step: int = 0  # of that checkpoint
    data: dict[str, Any] | None = None  # what it remembers of its data
    weights: dict[str, Any] | None = None  # the state dict that a new run begins with, by --init_from
    automatic: bool = False  # --ckpt_path auto has found it
    nothing_left: bool = False  # the run was complete already, which to --ckpt_path auto is no error
    allow_changed_data: bool = False
    news: tuple[str, ...] = ()  # to announce when everything else has been checked


def find_resume(settings: Namespace) -> Resume:
    """Decides how `lm fit` begins; InputError where the settings, the run's folder and the checkpoint do not agree.

    A run with nothing left to do ends well for whoever starts it again and again by --ckpt_path auto.
    """
    automatic = settings.ckpt_path == AUTO
    path, news = locate_checkpoint(settings)
    settings = settings.clone()
    settings.ckpt_path = path
    checkpoint = load_checkpoint(path) if path is not None else None
    changes = compare_settings(checkpoint, vars(settings.model), path) if checkpoint and path else []
    if not settings.trainer.fast_dev_run:
        check_length(settings.trainer, settings.model)
    check_folder(settings)
    allowed = settings.allow_changed_data
    if checkpoint is None:
        weights = None
        if settings.init_from is not None:
            weights, source = read_initial_weights(settings)
            news = [*news, f"beginning with the weights of {source}"]
        return Resume(weights=weights, automatic=automatic, allow_changed_data=allowed, news=tuple(news))
    step = checkpoint["global_step"]
    done = automatic and step == settings.trainer.max_steps and not validation_due(checkpoint)
    if not done:
        check_continuation(checkpoint, settings)
        news = [*news, f"going on from {path}, step {step}"]
    changes += compare_config(checkpoint, settings)
    news += from_here_on(changes)
    data = checkpoint[TokenDataModule.__name__]
    return Resume(path, step, data, None, automatic, done, allowed, tuple(news))


def locate_checkpoint(settings: Namespace) -> tuple[str | None, list[str]]:
    """Returns the file that --ckpt_path stands for, or None for a new run; and of auto, why that one, a line each."""
    folder, path = settings.trainer.default_root_dir, settings.ckpt_path
    if path == AUTO:
        newest, reasons = find_newest(folder)
        return str(newest) if newest else None, [f"--ckpt_path auto: {reason}" for reason in reasons]
    if path in ("last", "best"):
        path = str(Path(folder, f"{path}.ckpt"))
    return path, []


def read_initial_weights(settings: Namespace) -> tuple[dict[str, Any], Path]:
    """Returns the state dict that --init_from stands for, and its file; InputError if it is of another model."""
    path = find_checkpoint(settings.init_from)
    checkpoint = load_checkpoint(path)
    shape = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
    compare_settings({"hyper_parameters": shape}, vars(settings.model), path)
    digests = [Tokenizer.load(folder).digest for folder in (path.parent / TOKENIZER, settings.data.tokenizer)]
    if digests[0] != digests[1]:
        raise InputError(
            f"{path}: knows the tokens of {path.parent / TOKENIZER}, and not those of {settings.data.tokenizer};"
            " encode the text with that tokenizer, and set data.tokenizer"
        )
    return checkpoint["state_dict"], path


def from_here_on(changes: list[str]) -> list[str]:
    """Announces what differs from the run that is gone on with, a line each."""
    return [f"  from here on  {change}" for change in changes]


@contextlib.contextmanager
def take_folder(settings: Namespace, resume: Resume) -> Iterator[list[str]]:
    """Holds the run's folder for this process, and yields what was cleared away in it, a line each.

    What find_resume has seen there is looked at again: another run may have written to it until now.
    """
    folder = settings.trainer.default_root_dir
    with run_lock(folder):
        check_folder(settings)
        if resume.checkpoint is not None:
            if read_manifest(resume.checkpoint)["step"] != resume.step:
                raise InputError(f"{resume.checkpoint}: another run has just replaced it; start again")
            if resume.automatic:
                make_last(resume.checkpoint)
        yield [f"{path}: left half-written by a run that was killed; deleted" for path in delete_leftovers(folder)]
