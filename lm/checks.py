"""What is refused before any work is done: settings that contradict each other, a run's folder, or its checkpoint;
and the memory and disk that a run expects to take, of which is warned."""

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lm.accounting import state_bytes
from lm.activations import expected_peak, make_model
from lm.checkpoint import LAST, MODEL_SETTINGS
from lm.machine import available_memory, held_memory
from lm.transformer import FEED_FORWARDS
from tokenization import InputError, outputs


def check_trainer(trainer: Namespace) -> None:
    """trainer: its settings. A run has a length, and is validated and saved between two steps."""
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        if not isinstance(trainer[name], int) or trainer[name] < 1:
            raise InputError(f"trainer.{name} is {trainer[name]}; it must be a whole number, at least 1")
    if trainer.gradient_clip_val is not None or trainer.gradient_clip_algorithm is not None:
        raise InputError("trainer.gradient_clip_val has no effect; model.max_gradient_norm bounds the gradient")
    if trainer.val_check_interval % trainer.accumulate_grad_batches:
        raise InputError(
            f"trainer.val_check_interval {trainer.val_check_interval} counts batches, and must be a multiple of"
            f" trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}"
        )


def check_memory(model: Namespace) -> None:
    """The model alone fits: a slip in a size is noticed before it takes all the memory."""
    made, available = make_model(vars(model)), available_memory()
    tables = 3 * sum(buffer.nbytes for buffer in made.buffers())  # of positions, while they are computed
    needed = 4 * made.num_parameters() + tables
    if available is not None and needed > available:
        raise InputError(
            f"the model alone, {made.num_parameters():,} parameters and {model.context_length:,} positions, takes"
            f" {needed / 1e9:,.2f} GB, and {available / 1e9:,.2f} GB are available; make it smaller"
        )


def check_length(trainer: Namespace, model: Namespace) -> None:
    """The run is long enough for its warmup and a validation."""
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    if trainer.val_check_interval > batches:
        raise InputError(
            f"trainer.val_check_interval {trainer.val_check_interval} lies beyond the run's {batches} batches; set it"
            f" to {batches} at most"
        )
    if model.warmup_steps > trainer.max_steps:
        raise InputError(
            f"model.warmup_steps {model.warmup_steps} is more than trainer.max_steps {trainer.max_steps}: the learning"
            " rate would not be reached; shorten the warmup"
        )
    if model.min_learning_rate > model.learning_rate:
        raise InputError(
            f"model.min_learning_rate {model.min_learning_rate} is above model.learning_rate {model.learning_rate},"
            " from which it is to fall; lower it"
        )


def check_folder(config: Namespace) -> None:
    """A folder is one run's: only its own checkpoints go on in it."""
    last = Path(config.trainer.default_root_dir) / LAST
    outputs.check_folder(last.parent)
    goes_on = config.ckpt_path is not None and Path(config.ckpt_path).resolve().parent == last.parent.resolve()
    if last.exists() and not goes_on and not config.trainer.fast_dev_run:
        raise InputError(
            f"{last.parent}: already holds a run; go on with it by --ckpt_path {last}, or name another folder with"
            " --trainer.default_root_dir"
        )


def check_continuation(checkpoint: dict[str, Any], config: Namespace) -> None:
    """There are steps left, and a step still consists of as many batches: batches are counted by the step."""
    if "loops" not in checkpoint:
        raise InputError(f"{config.ckpt_path}: holds weights alone, and nothing to go on from")
    step, batches_per_step = checkpoint["global_step"], config.trainer.accumulate_grad_batches
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    if batches != step * batches_per_step:
        raise InputError(
            f"{config.ckpt_path}: was trained with trainer.accumulate_grad_batches {batches // step}, not"
            f" {batches_per_step}; leave it at that, or start a new run"
        )
    if step >= config.trainer.max_steps and not validation_due(checkpoint):
        raise InputError(
            f"{config.ckpt_path}: is at step {step}, and trainer.max_steps is {config.trainer.max_steps}; raise"
            " --trainer.max_steps to train on"
        )


def validation_due(checkpoint: dict[str, Any]) -> bool:
    """The run was interrupted between a step and the validation that belongs to it."""
    return checkpoint.get("callbacks", {}).get("Checkpoints", {}).get("validation_due", False)


def compare_settings(checkpoint: dict[str, Any], settings: dict[str, Any], path: str | os.PathLike) -> list[str]:
    """What changes between a checkpoint and the run that goes on from it, a line each, "name: old -> new".

    Raises InputError where the change is one of the model's shape, which the weights do not fit.
    """
    changes, before = [], checkpoint["hyper_parameters"]
    for name, old in before.items():
        new = settings.get(name)
        if name == "d_ff":  # null stands for a number, which follows from others that are compared, too
            default = FEED_FORWARDS[before["feed_forward"]].default_d_ff(before["d_model"])
            old, new = old or default, new or default
        if new == old or (isinstance(old, (tuple, list)) and list(new or ()) == list(old)):
            continue
        if name in MODEL_SETTINGS:
            raise InputError(
                f"{path}: was trained with model.{name} {old}, not {new}; leave it at {old}, or start a new run"
            )
        if name == "optimizer":
            raise InputError(
                f"{path}: was trained with model.optimizer {old}, whose memory {new} cannot use; leave it at {old}, or"
                " start a new run"
            )
        changes.append(f"{name}: {old} -> {new}")
    return changes


def announce_needs(config: Namespace) -> None:
    """Said before it is taken: a process that takes too much is killed without a word. On one CPU process."""
    expected, available = expected_peak(config), available_memory()
    state = state_bytes(make_model(vars(config.model)), config.model.optimizer)
    saved = state["parameters"] + state["optimizer state"]
    print(
        f"expects to take {expected / 1e9:.2f} GB of memory at its peak (`lm account` says for what),"
        f" and {saved / 1e6:,.1f} MB of disk for a checkpoint"
    )
    # What this process holds already is a part of what is expected, and not of what is available.
    if available is not None and expected - held_memory() > available:
        print(
            f"lm fit: {expected / 1e9:.2f} GB are expected, and {available / 1e9:.2f} GB are available: it may be"
            " killed; lower data.batch_size (and raise trainer.accumulate_grad_batches), or set"
            " model.recompute_activations",
            file=sys.stderr,
        )
