"""Refuses a run before any work is done: contradictory settings, a folder in use, a checkpoint that does not fit.

It also announces the memory and disk space that a run will need. Nothing is changed here.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from lm.accounting.activations import expected_peak, make_model
from lm.accounting.costs import state_bytes
from lm.data.datamodule import TokenDataModule
from lm.machine.resources import available_memory, held_memory
from lm.model.initialization import START_SETTINGS
from lm.model.transformer import FEED_FORWARDS, MODEL_SETTINGS
from lm.runs.folder import LAST
from lm.runs.recorded_settings import settings_of
from lm.training.config_files import with_current_names
from lm.training.module import LanguageModel
from tokenization import InputError, Tokenizer, outputs

MAY_BE_INFINITE = {"model.max_gradient_norm"}  # never scales
LARGEST = 3.4028234e38  # of float32: anything beyond is infinite where it is used
STEPS_COUNT = "a run counts steps and has no epochs"
# Trainer settings that a run ignores: the allowed values, and why.
NO_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((None, -1), f"{STEPS_COUNT}; trainer.max_steps is its length"),
    "min_epochs": ((None,), f"{STEPS_COUNT}; trainer.max_steps is its length"),
    "check_val_every_n_epoch": ((None,), f"{STEPS_COUNT}; trainer.val_check_interval says when to validate"),
    "reload_dataloaders_every_n_epochs": ((0,), STEPS_COUNT),
    "limit_train_batches": (
        (None, 1.0),
        "a run draws from the whole token file, and no batch twice; set its length with trainer.max_steps, its data"
        " with data.train_path",
    ),
    "overfit_batches": ((0.0,), "a run draws no batch twice; give it a small token file in data.train_path"),
    "gradient_clip_val": ((None,), "it has no effect; model.max_gradient_norm bounds the gradient"),
    "gradient_clip_algorithm": ((None,), "it has no effect; model.max_gradient_norm bounds the gradient"),
    "enable_checkpointing": ((None, True), "a run is its checkpoints; trainer.fast_dev_run writes none"),
    "plugins": ((None,), "a run has its own"),
    "barebones": ((False,), "a run logs its progress and saves checkpoints"),
}


PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")


def check_numbers(config: Namespace) -> None:
    """Raises InputError for a number that is too large or not finite."""
    for section, settings in vars(config).items():
        for name, value in vars(settings).items() if isinstance(settings, Namespace) else ():
            numbers = value if isinstance(value, list | tuple) else [value]
            for number in numbers:
                good = not isinstance(number, float) or abs(number) <= LARGEST
                if isinstance(number, int) and abs(number) >= 1 << 62:
                    raise InputError(f"{section}.{name} must be below 2^62; it has {len(str(abs(number)))} digits")
                if not good and not (f"{section}.{name}" in MAY_BE_INFINITE and number > 0):
                    raise InputError(f"{section}.{name} is {number}; it must be a finite number, {LARGEST:g} at most")


def check_trainer(trainer: Namespace) -> None:
    """Raises InputError for settings of the trainer that a run cannot have: it is one local folder and counts steps."""
    folder = str(trainer.default_root_dir or "")
    if not folder.strip():
        raise InputError("trainer.default_root_dir is empty; name the folder of the run, checkpoints/NAME")
    if "://" in folder:
        raise InputError(f"trainer.default_root_dir is {folder}; a run needs a local folder")
    for name, (allowed, reason) in NO_EFFECT.items():
        if not any(trainer[name] == value and type(trainer[name]) is type(value) for value in allowed):
            raise InputError(f"trainer.{name} is {trainer[name]}: {reason}; leave it out")
    if isinstance(trainer.max_time, str) and not re.fullmatch("[0-9]+(:[0-9]{2}){3}", trainer.max_time.strip()):
        raise InputError(f"trainer.max_time is {trainer.max_time}; write DD:HH:MM:SS, 00:12:00:00 for twelve hours")
    limit = trainer.limit_val_batches
    if limit is not None and not limit > 0:
        raise InputError(f"trainer.limit_val_batches is {limit}; a validation takes at least 1 batch")
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        if not isinstance(trainer[name], int) or trainer[name] < 1:
            raise InputError(f"trainer.{name} is {trainer[name]}; it must be a whole number, at least 1")
    if trainer.min_steps is not None and trainer.min_steps > trainer.max_steps:
        raise InputError(
            f"trainer.min_steps {trainer.min_steps} is more than trainer.max_steps {trainer.max_steps}; leave it out"
        )
    if trainer.val_check_interval % trainer.accumulate_grad_batches:
        raise InputError(
            f"trainer.val_check_interval {trainer.val_check_interval} counts batches, and must be a multiple of"
            f" trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}"
        )


def check_memory(model: Namespace) -> None:
    """Raises InputError if the model's weights alone exceed the available memory, as by a mistyped size."""
    made, available = make_model(vars(model)), available_memory()
    tables = 3 * sum(buffer.nbytes for buffer in made.buffers())  # position tables, while they are computed
    needed = 4 * made.num_parameters() + tables
    if available is not None and needed > available:
        raise InputError(
            f"the model alone, {made.num_parameters():,} parameters and {model.context_length:,} positions, needs"
            f" {needed / 1e9:,.2f} GB, and {available / 1e9:,.2f} GB are available; make it smaller"
        )


def check_precision(precision: Any) -> None:
    """Raises InputError unless weights stay in float32, as norms, optimizer and samples expect."""
    if str(precision) not in PRECISIONS:
        raise InputError(
            f"trainer.precision is {precision}, which would not keep the weights in float32; take 32-true, bf16-mixed"
            " or 16-mixed"
        )


def check_paths(config: Namespace) -> None:
    """Raises InputError for an empty path, as a script's unset variable gives: it would mean the current folder.

    And for a tokenizer that does not exist, as before the first run: a large model takes seconds to make.
    """
    for name in ("data.train_path", "data.val_path", "data.tokenizer", "ckpt_path", "init_from"):
        if config.get(name) is not None and not str(config[name]).strip():
            raise InputError(f"{name} is empty; name a path")
    if not Path(config.data.tokenizer).is_dir():
        Tokenizer.load(config.data.tokenizer)  # says what makes it


def check_length(trainer: Namespace, model: Namespace) -> None:
    """Raises InputError for a warmup longer than the run, or a final learning rate above the peak."""
    if model.warmup_steps > trainer.max_steps:
        raise InputError(
            f"model.warmup_steps {model.warmup_steps} is more than trainer.max_steps {trainer.max_steps}: the learning"
            " rate would never be reached; shorten the warmup"
        )
    if model.min_learning_rate > model.learning_rate:
        raise InputError(
            f"model.min_learning_rate {model.min_learning_rate} is above model.learning_rate {model.learning_rate},"
            " from which it is to fall; lower it"
        )


def check_classes(config: Namespace) -> None:
    """Raises InputError for settings that model or data refuse; they are made without weights, and no file is read."""
    try:
        with torch.device("meta"):
            LanguageModel(**vars(config.model))
        TokenDataModule(**vars(config.data))
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None


def check_folder(config: Namespace) -> None:
    """Raises InputError if the folder already holds another run than the one that resumes."""
    last = Path(config.trainer.default_root_dir) / LAST
    outputs.check_folder(last.parent)
    for path in sorted(last.parent.glob("hpc_ckpt_*")):
        raise InputError(
            f"{path}: was saved by Lightning for SLURM, perhaps in the middle of a step, and Lightning would resume it"
            " unasked; delete it, or move it out of the run's folder"
        )
    goes_on = config.ckpt_path is not None and Path(config.ckpt_path).resolve().parent == last.parent.resolve()
    if any(last.parent.glob("*.ckpt")) and not goes_on and not config.trainer.fast_dev_run:
        checkpoint = shlex.quote(str(last)) if last.exists() else "auto"
        raise InputError(
            f"{last.parent}: already holds a run; resume it with --ckpt_path {checkpoint}, or name another folder with"
            " --trainer.default_root_dir"
        )


def check_continuation(checkpoint: dict[str, Any], config: Namespace) -> None:
    """Raises InputError if the checkpoint has no state to resume from, or if no steps are left."""
    if "loops" not in checkpoint:
        raise InputError(f"{config.ckpt_path}: holds only weights, and no state to resume from")
    step = checkpoint["global_step"]
    if step > config.trainer.max_steps or (step == config.trainer.max_steps and not validation_due(checkpoint)):
        raise InputError(
            f"{config.ckpt_path}: is at step {step:,}, and trainer.max_steps is {config.trainer.max_steps:,}; raise"
            " --trainer.max_steps to train on"
        )


def validation_due(checkpoint: dict[str, Any]) -> bool:
    """Whether the run was interrupted between a step and its validation."""
    due: bool = checkpoint.get("callbacks", {}).get("Checkpoints", {}).get("validation_due", False)
    return due


def compare_settings(checkpoint: dict[str, Any], settings: dict[str, Any], path: str | os.PathLike[str]) -> list[str]:
    """Lists the settings of the model that change when a run resumes, as "name: old -> new".

    Raises InputError for a change that the weights or the optimizer's state do not fit.
    """
    changes, before = [], checkpoint["hyper_parameters"]
    for name, old in before.items():
        new = settings.get(name)
        if name == "d_ff":  # null stands for a number that follows from settings compared here too
            default = FEED_FORWARDS[before["feed_forward"]].default_d_ff(before["d_model"])
            old, new = old or default, new or default
        if new == old or (isinstance(old, (tuple, list)) and list(new or ()) == list(old)):
            continue
        if name in MODEL_SETTINGS or name in START_SETTINGS:
            raise InputError(
                f"{path}: was trained with model.{name} {old}, not {new}; leave it at {old}, or start a new run"
            )
        if name == "optimizer":
            raise InputError(
                f"{path}: was trained with model.optimizer {old}, whose state {new} cannot use; leave it at {old}, or"
                " start a new run"
            )
        changes.append(f"{name}: {old} -> {new}")
    return changes


def compare_shape(checkpoint: dict[str, Any], settings: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raises InputError if a checkpoint's weights are those of another model than the settings'."""
    shape = {name: checkpoint["hyper_parameters"][name] for name in MODEL_SETTINGS}
    compare_settings({"hyper_parameters": shape}, settings, path)


SAID_ELSEWHERE = {"trainer.max_steps", "data.batch_size", "data.seed", "data.context_length", "data.vocab_size"}


def compare_config(checkpoint: dict[str, Any], config: Namespace) -> list[str]:
    """Lists the other changed settings, those of neither model nor data; an older checkpoint records none."""
    old, new = with_current_names(checkpoint.get("config", {})), settings_of(config)
    return [
        f"{name}: {old[name]} -> {value}"
        for name, value in new.items()
        if name in old and old[name] != value and not name.startswith("model.") and name not in SAID_ELSEWHERE
    ]


def announce_needs(config: Namespace) -> None:
    """Prints the memory and disk space that a run on one CPU process will need, and warns if memory is short.

    The kernel kills a process that takes too much without a message.
    """
    expected, available = expected_peak(config), available_memory()
    state = state_bytes(make_model(vars(config.model)), config.model.optimizer, config.model.ema_decay > 0)
    saved = sum(state.values()) - state["gradients"]
    print(
        f"expects to take {expected / 1e9:.2f} GB of memory at its peak (`lm account` itemises it) and"
        f" {saved / 1e6:,.1f} MB of disk per checkpoint"
    )
    # Memory that this process holds already is part of the expected, and not of the available.
    if available is not None and expected - held_memory() > available:
        print(
            f"lm fit: {expected / 1e9:.2f} GB are expected, and {available / 1e9:.2f} GB are available: the run may be"
            " killed; lower data.batch_size (and raise trainer.accumulate_grad_batches), or set"
            " model.recompute_activations",
            file=sys.stderr,
        )
