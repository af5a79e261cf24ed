"""Decides how a run begins: anew, with the weights of another run, or from a checkpoint of its own.

find_resume decides from the settings and the run's folder, and changes nothing; take_folder locks the folder for the
run that then begins.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.data.datamodule import TokenDataModule
from lm.distributed.hosts import Hosts
from lm.runs.checkpoint import check_checkpoint, find_checkpoint, load_checkpoint, peek_checkpoint
from lm.runs.folder import TOKENIZER, delete_leftovers, kept_name
from lm.runs.lock import run_lock
from lm.runs.manifest import read_manifest
from lm.runs.newest import find_newest, make_complete
from lm.runs.shards import delete_unused_shards
from lm.training.checks import (
    check_continuation,
    check_folder,
    check_length,
    compare_config,
    compare_settings,
    compare_shape,
    validation_due,
)
from lm.training.lightning_inside import batches_trained
from tokenization import InputError, Tokenizer

AUTO = "auto"  # --ckpt_path: the newest checkpoint in the run's folder that verifies


@dataclass(frozen=True)
class Resume:
    """How a run begins."""

    checkpoint: str | None = None  # to resume from
    step: int = 0  # of that checkpoint
    data: dict[str, Any] | None = None  # what it records of its data
    accumulated: int = 0  # batches of each process in each step until then; 0 if there is nothing to compare
    processes: int | None = None  # until then; an older checkpoint does not record it
    weights: dict[str, Any] | None = None  # a new run's first state dict, by --init_from; of the first process alone
    given_weights: bool = False  # whether there are any, in every process
    automatic: bool = False  # found by --ckpt_path auto
    nothing_left: bool = False  # the run is complete, which is no error with --ckpt_path auto
    allow_changed_data: bool = False
    news: tuple[str, ...] = ()  # lines to print once everything has been checked


def find_resume(settings: Namespace, hosts: Hosts) -> Resume:
    """Decides how `lm fit` begins; InputError if settings, the run's folder and the checkpoint do not agree.

    Of several processes the first one finds and verifies the checkpoint, and reads the weights of --init_from. A
    complete run is no error with --ckpt_path auto, which a scheduler may start again and again.
    """
    automatic = settings.ckpt_path == AUTO
    path, news = locate_checkpoint(settings, hosts)
    settings = settings.clone()
    settings.ckpt_path = path
    verified = automatic or hosts.rank > 0
    checkpoint = (peek_checkpoint if verified else check_checkpoint)(path) if path is not None else None
    changes = compare_settings(checkpoint, vars(settings.model), path) if checkpoint and path else []
    if not settings.trainer.fast_dev_run:
        check_length(settings.trainer, settings.model)
    check_folder(settings)
    allowed = settings.allow_changed_data
    if checkpoint is None:
        weights, given = None, settings.init_from is not None
        if given and hosts.rank == 0:
            weights, file = read_initial_weights(settings)
            news = [*news, f"starting with the weights of {file}"]
        return Resume(
            weights=weights, given_weights=given, automatic=automatic, allow_changed_data=allowed, news=tuple(news)
        )
    step = checkpoint["global_step"]
    done = automatic and step == settings.trainer.max_steps and not validation_due(checkpoint)
    if not done:
        check_continuation(checkpoint, settings)
        news = [*news, f"resuming from {path}, step {step:,}"]
    changes += compare_config(checkpoint, settings)
    news += from_here_on(changes)
    return Resume(
        path,
        step,
        data=checkpoint[TokenDataModule.__name__],
        accumulated=0 if done else batches_trained(checkpoint) // max(step, 1),
        processes=checkpoint.get("processes"),
        automatic=automatic,
        nothing_left=done,
        allow_changed_data=allowed,
        news=tuple(news),
    )


def locate_checkpoint(settings: Namespace, hosts: Hosts) -> tuple[str | None, list[str]]:
    """Returns the file that --ckpt_path stands for, or None for a new run, and lines on how auto chose it.

    The first process finds it. None where it is not to be seen from another host, which the hosts then notice.
    """
    folder, path = settings.trainer.default_root_dir, settings.ckpt_path
    if path in ("last", "best"):
        path = str(Path(folder, f"{path}.ckpt"))
    if path != AUTO:
        return path, []

    def find() -> tuple[str | None, list[str]]:
        newest, reasons = find_newest(folder)
        return str(newest) if newest else None, [f"--ckpt_path auto: {reason}" for reason in reasons]

    path, news = hosts.decided(find)
    return path if path is not None and Path(path).is_file() else None, news


def read_initial_weights(settings: Namespace) -> tuple[dict[str, Any], Path]:
    """Returns the state dict that --init_from stands for, and its file; InputError if model or tokenizer differ."""
    path = find_checkpoint(settings.init_from)
    checkpoint = load_checkpoint(path)
    compare_shape(checkpoint, vars(settings.model), path)
    digests = [Tokenizer.load(folder).digest for folder in (path.parent / TOKENIZER, settings.data.tokenizer)]
    if digests[0] != digests[1]:
        raise InputError(
            f"{path}: was trained with {path.parent / TOKENIZER}, which is not the tokenizer {settings.data.tokenizer};"
            " encode the text with that tokenizer, and set data.tokenizer"
        )
    return checkpoint["state_dict"], path


def compare_processes(resume: Resume, accumulate: int, processes: int) -> list[str]:
    """Announces another number of processes; InputError if a step would then have another number of batches.

    accumulate: the batches of each process in each step, from here on.
    """
    if not resume.accumulated:
        return []
    before, now = resume.processes or processes, processes
    batches = before * resume.accumulated
    if batches == now * accumulate:
        change = f"processes: {before} -> {now}; the batches of each step stay the same, the numbers up to rounding"
        return [change] if before != now else []
    if before == now:
        raise InputError(
            f"{resume.checkpoint}: was trained with trainer.accumulate_grad_batches {resume.accumulated}, not"
            f" {accumulate}; leave it at that, or start a new run"
        )
    remedy = f"take a number of processes that divides {batches}"
    if not batches % now:
        remedy = f"set trainer.accumulate_grad_batches to {batches // now}, and trainer.val_check_interval to match"
    raise InputError(
        f"{resume.checkpoint}: was trained by {before} processes with {batches} batches a step, and {now} with"
        f" trainer.accumulate_grad_batches {accumulate} would take {now * accumulate}; {remedy}"
    )


def from_here_on(changes: list[str]) -> list[str]:
    """Formats changes of settings in a resumed run, a line each."""
    return [f"  from here on  {change}" for change in changes]


@contextlib.contextmanager
def take_folder(settings: Namespace, resume: Resume) -> Iterator[list[str]]:
    """Locks the run's folder for this process, and yields a line on each leftover deleted in it.

    Checks again what find_resume has seen there, as another run may have written to it since.
    """
    folder = settings.trainer.default_root_dir
    with run_lock(folder):
        check_folder(settings)
        if resume.checkpoint is not None:
            if read_manifest(resume.checkpoint)["step"] != resume.step:
                raise InputError(f"{resume.checkpoint}: has just been replaced by another run; start again")
            if resume.automatic:
                make_complete(resume.checkpoint, kept_name(resume.step, settings.checkpoints.keep_every_n_steps))
        leftovers = [*delete_leftovers(folder), *delete_unused_shards(Path(folder))]
        yield [f"{path}: left half-written by a killed run; deleted" for path in leftovers]
