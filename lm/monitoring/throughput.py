"""Measures a run's speed and MFU, and estimates the time it has left."""

import math
import time
from collections import deque
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lm.accounting.costs import forward_flops, training_flops_per_token, training_seconds
from lm.durations import format_duration
from lm.machine.contention import LOOK_EVERY, SHORTEST, OtherPrograms
from lm.machine.devices import wait_for
from lm.machine.peaks import peak_flops, record_peak
from lm.machine.resources import peak_memory
from lm.machine.waiting import wait_briefly
from lm.model.transformer import TransformerLM
from lm.monitoring.saying import say

TYPICAL_MFU = 0.5  # for the estimate before the first step
FORWARD = 1 / 3  # time of a validation batch, as a share of a training batch
RECENT = 20  # stretches between logged steps that the estimate goes by
ENOUGH_STEPS, ENOUGH_SECONDS = 3, 2.0  # needed for an estimate


class Pace:
    """Estimates the time that a run has left, from its own steps and validations."""

    def __init__(self) -> None:
        self.stretches: deque[tuple[int, float]] = deque(maxlen=RECENT)  # (steps, seconds)
        self.validations: list[float] = []  # seconds each, with the samples and saves that follow

    def seconds_left(self, steps: int, validations: int, validation_steps: float) -> float | None:
        """Estimates the seconds for this many more; None before enough steps have been seen.

        validation_steps: the batches of a validation, divided by the batches of a step.
        """
        made, seconds = sum(steps for steps, _ in self.stretches), sum(seconds for _, seconds in self.stretches)
        if made < ENOUGH_STEPS or seconds < ENOUGH_SECONDS:
            return None
        step, seen = seconds / made, self.validations
        validation = sum(seen) / len(seen) if seen else validation_steps * FORWARD * step
        return steps * step + validations * validation


class Throughput(Callback):
    """Logs the tokens seen since the run began, and its speed on all devices together.

    The clock runs from one logged step to the next, without a process's first step, in which the model is compiled, and
    without validations and what follows them. MFU (Chowdhery et al. 2022) is the share of the devices' peak FLOP/s that
    the model's matrix products alone account for; recomputed activations are not counted.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device, model = pl_module.device.type, pl_module.model
        self.costs: dict[int, tuple[float, float]] = {}  # of a token in a window of this length
        self.pace, self.first_step, self.told = Pace(), trainer.global_step + 1, False
        self.paused: float | None = None  # when a validation began
        threads = torch.get_num_threads() * trainer.world_size // trainer.num_nodes
        self.others = OtherPrograms(threads) if device == "cpu" else None
        self.peak = peak_flops(device, str(trainer.precision))
        say(trainer, f"{pl_module.arrangement}; {self._peak_in_words()}")
        self._announce(trainer, model, min(trainer.max_steps, pl_module.hparams["max_steps"]))  # type: ignore[arg-type]
        self._look_for_others(trainer, SHORTEST)
        self._restart(trainer)

    def _peak_in_words(self) -> str:
        return f"MFU is of {self.peak.flops / 1e9:,.0f} GFLOP/s per device ({self.peak.source})"

    def _announce(self, trainer: Trainer, model: TransformerLM, max_steps: int) -> None:
        steps, data = max_steps - trainer.global_step, trainer.datamodule  # type: ignore[attr-defined]
        tokens, now = data.tokens_after(max_steps) - data.tokens_after(trainer.global_step), self.peak.now
        seconds = training_seconds(model, tokens, now * trainer.world_size, TYPICAL_MFU)
        say(
            trainer,
            f"{steps:,} steps to go, by a first estimate {format_duration(seconds)} (at half of the"
            f" {now / 1e9:,.0f} GFLOP/s that the device reaches right now; `lm account --probe` measures it)",
        )

    def on_validation_start(self, *_: Any) -> None:
        self.paused = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.paused is not None:
            self.pace.validations.append(time.perf_counter() - self.paused)
            self.paused = None
            self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self.tokens, self.start, self.start_step = 0, time.perf_counter(), trainer.global_step
        self.flops = self.surely_computed = 0.0  # for these tokens, on all devices

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        tokens = batch[0].numel() * trainer.world_size
        self.tokens += tokens
        flops, surely_computed = self._cost(pl_module.model, batch[0].shape[1])  # type: ignore[arg-type]
        self.flops += tokens * flops
        self.surely_computed += tokens * surely_computed
        pl_module.log("train/tokens_seen", float(trainer.datamodule.tokens_after(trainer.global_step)))  # type: ignore[attr-defined]
        pl_module.log("train/passes", trainer.datamodule.passes_after(trainer.global_step), prog_bar=True)  # type: ignore[attr-defined]
        if trainer.global_step == self.start_step:
            return  # within a step that accumulates batches
        logged = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if logged:
            self._log(trainer, pl_module)
        if logged or trainer.global_step == self.first_step:
            self._restart(trainer)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait_for(pl_module.device.type)
        seconds = time.perf_counter() - self.start
        speed, flops = self.tokens / seconds, self.flops / seconds / trainer.world_size
        if trainer.global_step > self.first_step:
            self.pace.stretches.append((trainer.global_step - self.start_step, seconds))
            self._raise_peak(trainer, pl_module, self.surely_computed / seconds / trainer.world_size)
        pl_module.log("train/tokens_per_second", speed, prog_bar=True)
        pl_module.log("train/mfu", min(1.0, flops / self.peak.flops), prog_bar=True)
        pl_module.log("train/peak_memory_gb", peak_memory(pl_module.device.type) / 1e9)
        self._estimate(trainer, pl_module)
        self._look_for_others(trainer)

    def _cost(self, model: TransformerLM, length: int) -> tuple[float, float]:
        """Returns the FLOPs for a token in a window of this length, and those that no kernel can leave out."""
        if length not in self.costs:
            flops = forward_flops(model, length)
            left_out = flops["scores"] / 2 / sum(flops.values())  # by a causal attention
            cost = training_flops_per_token(model, length)
            self.costs[length] = cost, cost * (1 - left_out)
        return self.costs[length]

    def _raise_peak(self, trainer: Trainer, pl_module: LightningModule, flops: float) -> None:
        """Raises the peak that a step on a CPU has exceeded; a GPU's is on its data sheet or measured."""
        if flops > self.peak.flops and pl_module.device.type == "cpu":
            self.peak = record_peak("cpu", str(trainer.precision), flops, "a training step")
            say(trainer, f"step {trainer.global_step:,}: faster than the peak; {self._peak_in_words()}")

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps, per_step = trainer.max_steps - trainer.global_step, trainer.accumulate_grad_batches
        interval = float(trainer.val_check_batch or math.inf) / per_step
        batches = sum(trainer.num_val_batches)
        validations = 0
        if batches and math.isfinite(interval):
            validations = math.ceil(trainer.max_steps / interval) - int(trainer.global_step // interval)
        left = self.pace.seconds_left(steps, validations, batches / per_step)
        if left is None:
            return
        pl_module.log("left", left, prog_bar=True, logger=False)
        if not self.told:
            say(trainer, f"step {trainer.global_step:,}: by the steps so far, {format_duration(left)} to go")
            self.told = True

    def _look_for_others(self, trainer: Trainer, after: float = LOOK_EVERY) -> None:
        """Makes threads wait as the load of other programs demands, and prints a line when that changes."""
        if self.others is not None and self.others.look(after):
            wait_briefly(self.others.in_the_way)
            if self.others.changed:
                say(trainer, f"step {trainer.global_step:,}: {self.others}")
