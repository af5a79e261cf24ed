"""Ten steps of `lm fit` under torch's profiler: the kernels that take longest, and what is asked of the driver."""

import time
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile

from gpu_stages.bench import Bench, Part, fit
from gpu_stages.throughput import our_settings

STEPS, FIRST = 10, 20  # that are profiled; after so many
CALLS = {
    "launches": ("LaunchKernel",),
    "copies": ("cudaMemcpy", "cuMemcpy"),
    "waits": ("Synchronize",),
    "allocations": ("cudaMalloc", "cudaFree"),
}


def parts(bench: Bench) -> dict[str, Part]:
    return {
        f"lm fit {batch}, {'compiled' if compiled else 'eager'}": partial(profiled, bench, batch, compiled)
        for batch, compiled in ([(4, False)] if bench.small else [(128, True), (128, False), (512, True)])
    }


class Profile(Callback):
    def __init__(self, bench: Bench, first: int, steps: int):
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device == "cuda")
        self.bench, self.first, self.steps, self.profile = bench, first, steps, profile(activities=activities)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.first:
            self.bench.wait()
            self.profile.start()
            self.begun = time.perf_counter()
        if trainer.global_step == self.first + self.steps:
            self.bench.wait()
            self.seconds = time.perf_counter() - self.begun
            self.profile.stop()


def profiled(bench: Bench, batch: int, compiled: bool) -> dict[str, Any]:
    first, steps = (2, 3) if bench.small else (FIRST, STEPS)
    watch = Profile(bench, first, steps)
    settings = our_settings(bench, batch, first + steps + 2) | {"trainer.log_every_n_steps": 1000}
    settings["model.compile"] = compiled and settings["model.compile"]
    fit(bench, bench.folder / f"run-{batch}-{compiled}", "tinystories.yaml", settings, [watch])
    on_gpu = bench.device == "cuda"
    averages = watch.profile.key_averages()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # An operator and its kernels are both listed; only kernels run on the device.
    kernels = [event for event in averages if not on_gpu or str(event.device_type).endswith("CUDA")]
    kernels = [event for event in kernels if not event.is_user_annotation]
    kernels = sorted(kernels, key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in kernels) / steps / 1e3
    rows = [
        f"  {getattr(event, own) / steps / 1e3:8.3f} ms {event.count / steps:7.1f} times  {event.key[:100]}"
        for event in kernels[:25]
    ]
    counts = {
        name: sum(event.count for event in averages if any(word in event.key for word in words)) / steps
        for name, words in CALLS.items()
    }
    return {"ms a step": watch.seconds / steps * 1e3, "ms of kernels": total, **counts, "long": "\n".join(rows)}
