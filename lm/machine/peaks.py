"""Finds a device's peak FLOP/s, the denominator of MFU.

GPUs have data sheets. Processors are measured by matrix products. Other programs, heat and the clock only ever lower a
measurement, so the highest reading of a processor counts and is kept from run to run; training that computes faster
sets a new one.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from lm.machine.devices import wait_for
from lm.machine.readings import keep, processor, recall

# Dense half-precision matrix products, in FLOP/s, from NVIDIA's data sheets. The first name that fits counts.
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}
SMALL = 256  # for a dtype that the processor emulates
PLAUSIBLE = 1e17  # FLOP/s; no device computes more


class Peak(NamedTuple):
    """One device's peak FLOP/s, the source of that figure, and the FLOP/s it reaches right now."""

    flops: float
    source: str
    now: float


def peak_flops(device_type: str, precision: str) -> Peak:
    """Returns the peak in Lightning's precision: from a data sheet, or the highest reading, including this one."""
    import torch

    dtype = dtype_of(precision)
    if device_type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name()
        for key, peak in GPU_PEAKS.items():
            if f" {key} " in f" {name.replace('-', ' ')} ":
                return Peak(peak, f"data sheet of {name}", peak)
    best, size, now = measure(device_type, dtype)
    return record_peak(device_type, precision, best, f"{size} x {size}")._replace(now=now)


def record_peak(device_type: str, precision: str, flops: float, how: str) -> Peak:
    """Keeps a reading if it is the highest so far, and returns the highest. how: what was computed, in a few words."""
    dtype = str(dtype_of(precision)).removeprefix("torch.")
    name = _reading_name(device_type, dtype)
    reading: dict[str, Any] = {"flops": flops, "how": f"{how} in {dtype}", "when": time.strftime("%Y-%m-%d %H:%M")}
    before = recall(name)
    if _is_peak(before) and before["flops"] >= flops:
        reading = before
    else:
        keep(name, reading)
    return Peak(reading["flops"], f"measured on {reading['when']}, {reading['how']}", flops)


def dtype_of(precision: str) -> Any:
    """Returns the dtype of the matrix products in Lightning's precision."""
    import torch

    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0], torch.float32)


def _reading_name(device_type: str, dtype: str) -> str:
    import torch

    if device_type == "cuda":
        return f"peak of {torch.cuda.get_device_name()}, {dtype}"
    return f"peak of {processor()}, {torch.get_num_threads()} threads, {dtype}"


def _is_peak(reading: Any) -> bool:
    return (
        isinstance(reading, dict)
        and all(isinstance(reading.get(key), str) for key in ("how", "when"))
        and isinstance(reading.get("flops"), float)
        and 0 < reading["flops"] < PLAUSIBLE
    )


@lru_cache
def measure(device_type: str, dtype: Any, seconds: float = 0.5) -> tuple[float, int, float]:
    """Times products of square matrices, once per process.

    Returns the FLOP/s of the fastest, its size, and the FLOP/s over all of them, which other programs lower.
    """
    products = time_products(device_type, dtype, SMALL)
    next(products)  # starts threads, and may compile a kernel
    best, best_size = max(islice(products, 3)), SMALL
    work, taken = 2.0 * SMALL**3, 2 * SMALL**3 / best
    for size in SIZES.get(device_type, SIZES["cpu"]):
        if 2 * size**3 / best > seconds:  # a processor that emulates the dtype would take minutes
            break
        begin = time.perf_counter()
        for flops in time_products(device_type, dtype, size):
            work, taken = work + 2 * size**3, taken + 2 * size**3 / flops
            if flops > best:
                best, best_size = flops, size
            if time.perf_counter() > begin + seconds / 3:
                break
    return best, best_size, work / taken


def time_products(device_type: str, dtype: Any, size: int) -> Iterator[float]:
    """Yields the FLOP/s of one product after another."""
    import torch

    generator = torch.Generator().manual_seed(0)  # its own: a run's random numbers must not change
    a, b = (torch.randn(size, size, generator=generator).to(device_type, dtype) for _ in range(2))
    while True:
        wait_for(device_type)
        start = time.perf_counter()
        a @ b
        wait_for(device_type)
        yield 2 * size**3 / (time.perf_counter() - start)
