"""Times some steps of a run, and predicts the whole run from them.

    seconds = start + steps x step + validations x (batches x batch + sample) + saves x save + end

The steps are those of `lm fit` itself, in a temporary folder and in a process of its own, so that its peak memory is
the run's alone. torch.compile begins with an empty cache, as in the first run of a model; later runs of the same shape
start sooner than predicted.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import Strategy

from lm.accounting.activations import make_model
from lm.accounting.costs import training_flops_per_token
from lm.machine.contention import OtherPrograms
from lm.machine.peaks import Peak
from lm.machine.resources import children_seconds, peak_memory
from lm.monitoring.throughput import Throughput
from lm.runs.folder import LAST, SHARDS
from lm.runs.manifest import read_manifest
from lm.strict_json import to_json
from lm.training.cli import RunCLI, refusals
from tokenization import InputError
from tokenization.files import write_text

SECONDS, STEPS = 8.0, 8  # of uninterrupted steps, at least
UNCOUNTED = 2  # first steps, in which the model is compiled and memory allocated
VALIDATION_BATCHES = 6

WORK = """
from lm.machine.lean_imports import import_torchmetrics_on_demand
import_torchmetrics_on_demand()
from lm.machine.resources import keep_large_blocks, use_granted_cores
keep_large_blocks()
use_granted_cores()
from lm.experiments.probe import work
work()
"""


class Clock(Callback):
    """Records when each step, batch, sample and save ends; the last callback, so that the others' time counts.

    time: time.time, or time.process_time, which stops while another program has the processor.
    """

    def __init__(self, time: Callable[[], float], leader: bool) -> None:
        """leader: whether this clock ends the run when it has seen enough."""
        self.time, self.leader = time, leader
        self.begun, self.first_step = 0.0, 0.0
        self.steps: list[float] = []  # seconds each
        self.batches: list[float] = []  # of validations
        self.samples: list[float] = []  # the rest of each validation, without saving
        self.saves: list[float] = []
        self.step, self.last, self.undisturbed, self.saved_before = 0, 0.0, True, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = self.begun or self.time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            return  # within a step that accumulates batches
        now, self.step = self.time(), trainer.global_step
        self.first_step = self.first_step or now
        if self.step > UNCOUNTED and self.undisturbed:
            self.steps.append(now - self.last)
        self.last, self.undisturbed = now, True
        if self.leader and len(self.steps) >= STEPS and sum(self.steps) >= SECONDS:
            trainer.should_stop = True  # after a validation

    def on_validation_start(self, *_: Any) -> None:
        self.undisturbed, self.validated = False, [self.time()]

    def on_validation_batch_end(self, *_: Any) -> None:
        self.validated.append(self.time())
        self.saved_before = sum(self.saves)

    def on_validation_end(self, *_: Any) -> None:
        seconds = [end - start for start, end in zip(self.validated, self.validated[1:], strict=False)]
        self.batches += seconds[1:] or seconds
        self.samples.append(self.time() - self.validated[-1] - (sum(self.saves) - self.saved_before))


SEEN = ("begun", "first_step", "steps", "batches", "samples", "saves")


def time_saves(strategy: Strategy, clocks: list[Clock]) -> None:
    """Makes a strategy tell the clocks how long each save takes, whatever form its checkpoints have."""
    save_checkpoint = strategy.save_checkpoint

    def timed(*arguments: Any, **settings: Any) -> None:
        starts = [clock.time() for clock in clocks]
        save_checkpoint(*arguments, **settings)
        for clock, start in zip(clocks, starts, strict=True):
            clock.saves.append(clock.time() - start)
            clock.undisturbed = False

    strategy.save_checkpoint = timed  # type: ignore[method-assign]


def checkpoint_size(path: Path) -> int:
    """Returns the bytes of a checkpoint, with its shards."""
    shards = read_manifest(path).get(SHARDS, {})
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in shards)))


class ProbeCLI(RunCLI):
    """`lm fit` with two clocks: one by the wall, one by processor time."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        self.clocks = [Clock(time.time, leader=True), Clock(time.process_time, leader=False)]
        trainer.callbacks.extend(self.clocks)  # type: ignore[attr-defined]
        time_saves(trainer.strategy, self.clocks)
        return trainer


def work() -> None:
    """Runs `lm fit` with the arguments of this process, and writes what the clocks saw to the first, a JSON file."""
    path, *argv = sys.argv[1:]
    try:
        with refusals():
            cli = ProbeCLI(argv)
        data = cli.datamodule
        windows = (len(data.files["validate"]) - 1) // data.context_length
        found: dict[str, Any] = {"validation_batches": -(-windows // data.batch_size), "peak_bytes": peak_memory()}
        throughput = next(callback for callback in cli.trainer.callbacks if isinstance(callback, Throughput))  # type: ignore[attr-defined]
        found["peak"] = throughput.peak
        found["clocks"] = [
            {name: getattr(clock, name) for name in SEEN} | {"over": clock.time()} for clock in cli.clocks
        ]
    except InputError as error:
        found = {"error": str(error)}
    write_text(path, to_json(found))


@dataclass(frozen=True)
class Probe:
    """What a probe has seen of some steps; it predicts runs of any length of the same settings."""

    wall: dict[str, Any]  # by the wall clock: what a Clock has recorded
    processor: dict[str, Any]  # by processor time
    validation_batches: int  # of the whole file
    started: float  # the child process, by the wall clock
    ended: float
    processor_ended: float  # its processor seconds, with those of its compilers
    peak: Peak
    peak_bytes: int
    checkpoint_bytes: int
    other_programs: float  # cores that they took meanwhile

    def by_wall(self, config: Namespace) -> dict[str, float]:
        """Predicts a run in seconds by the clock, part by part."""
        return predict(self.wall, self.validation_batches, config, self.started, self.ended)

    def by_processor(self, config: Namespace) -> dict[str, float]:
        """Predicts a run in processor seconds, part by part."""
        return predict(self.processor, self.validation_batches, config, 0, self.processor_ended)


def measure(arguments: list[str], config: Namespace) -> Probe:
    """Runs some steps of a run, and returns what the clocks have seen.

    arguments: `fit` and its arguments; config: the same, parsed.
    """
    trainer = config.trainer
    devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
    if isinstance(devices, int) and devices > 1:
        raise InputError(f"trainer.devices is {trainer.devices}; a probe runs one process, so set it to 1")
    limit = VALIDATION_BATCHES  # of a share of the file, too, which may be less than one of so few
    if isinstance(trainer.limit_val_batches, int):
        limit = min(limit, trainer.limit_val_batches)
    with tempfile.TemporaryDirectory(prefix="lm-probe-") as folder:
        run, answer = Path(folder, "run"), Path(folder, "answer.json")
        own = [f"--trainer.default_root_dir={run}", "--trainer.enable_progress_bar=false", "--ckpt_path=null"]
        own += ["--data.short_context=null", "--data.short_steps=0"]  # most of a run's windows are long
        command = [sys.executable, "-c", WORK, str(answer), *arguments, *own, f"--trainer.limit_val_batches={limit}"]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "compiled"))}
        others = OtherPrograms(torch.get_num_threads())
        start, processor_start = time.time(), children_seconds()
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        end, processor_end = time.time(), children_seconds() - processor_start
        others.look()
        if done.returncode:
            why = "was killed; is it too large for the memory?" if done.returncode == -9 else done.stderr.strip()[-300:]
            raise InputError(f"the probe of some steps {' '.join(why.split())}")
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise InputError(found["error"])
        checkpoint = checkpoint_size(run / LAST)
    wall, processor = found["clocks"]
    return Probe(
        wall=wall,
        processor=processor,
        validation_batches=found["validation_batches"],
        started=start,
        ended=end,
        processor_ended=processor_end,
        peak=Peak(*found["peak"]),
        peak_bytes=found["peak_bytes"],
        checkpoint_bytes=checkpoint,
        other_programs=others.taken if others.in_the_way else 0.0,
    )


def probe(arguments: list[str], config: Namespace) -> dict[str, Any]:
    """Predicts what a run will take, in bytes, seconds and MFU, from some of its steps.

    arguments: those of `lm fit`; config: the same, parsed.
    """
    seen = measure(arguments, config)
    prediction = seen.by_wall(config)
    flops = prediction["tokens_per_second"] * training_flops_per_token(make_model(vars(config.model)))
    return prediction | {
        "mfu": min(1.0, flops / seen.peak.flops),
        "peak_flops": seen.peak.flops,
        "peak_source": seen.peak.source,
        "other_programs": seen.other_programs,
        "processor_seconds": seen.by_processor(config)["seconds"],
        "peak_bytes": seen.peak_bytes,
        "checkpoint_bytes": seen.checkpoint_bytes,
    }


def predict(
    seen: dict[str, Any], validation_batches: int, config: Namespace, started: float, ended: float
) -> dict[str, float]:
    """Predicts a whole run, in seconds, part by part.

    seen: what a clock has recorded; validation_batches: those of the whole file; started, ended: the times of the
    process, by that clock.
    """
    trainer = config.trainer
    steps = seen["steps"] or [seen["first_step"] - seen["begun"]]
    tokens = trainer.accumulate_grad_batches * config.data.batch_size * config.model.context_length
    validations, saves = validations_and_saves(config)
    batches = limited(validation_batches, trainer.limit_val_batches)
    parts = {
        "start_seconds": seen["first_step"] - started,
        "training_seconds": (trainer.max_steps - 1) * mean(steps),
        "validation_seconds": validations * batches * mean(seen["batches"]),
        "saving_seconds": validations * mean(seen["samples"]) + saves * mean(seen["saves"]) + ended - seen["over"],
    }
    return parts | {
        "seconds": sum(parts.values()),
        "tokens_per_second": tokens / mean(steps),
        "steps_probed": len(seen["steps"]),
    }


def limited(batches: int, limit: float | None) -> int:
    """Returns how many batches Lightning's limit leaves: a number of them, or a share; 1 is one batch, 1.0 is all."""
    if limit is None:
        return batches
    return min(batches, int(limit)) if limit > 1 or isinstance(limit, int) else int(batches * limit)


def validations_and_saves(config: Namespace) -> tuple[int, int]:
    """Counts the validations and saves of a whole run, as if each validation were the best so far and saved twice."""
    trainer, every, kept = config.trainer, config.checkpoints.every_n_steps, config.checkpoints.keep_every_n_steps
    per_step, last = trainer.accumulate_grad_batches, trainer.max_steps
    validated = {*range(trainer.val_check_interval // per_step, last, trainer.val_check_interval // per_step), last}
    saved = {step for step in range(1, last) if step % every == 0 or (kept and step % kept == 0)} | validated
    return len(validated), len(saved) + len(validated) + sum(1 for step in saved if kept and step % kept == 0)
