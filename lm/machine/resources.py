"""Measures and sets what a process uses of the machine: memory, cores, processor seconds, number formats.

Every training step allocates and frees the same large tensors. glibc returns each to the system when it is freed, and
the next step pays for fresh pages, zeroed one by one. With glibc told to keep them, a step of the handout's base model
took half as long.
"""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

from tokenization import systems

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and numbers from <malloc.h>


def keep_large_blocks() -> None:
    """Makes malloc keep large blocks, in huge pages where the system has them. Call it before importing torch.

    Does nothing unless the C library is glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads this at its first allocation
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def granted_cores(quota: str | os.PathLike[str] = "/sys/fs/cgroup/cpu.max") -> int:
    """Returns how many physical cores this process may use, by its CPU set and its container's quota.

    A container may show 64 cores and grant 2; with a thread for each core shown, training all but stops.
    """
    import torch

    cores = systems.available_cores()
    processor = torch.cpu.get_capabilities()
    logical, physical = processor.get("num_logical_cores"), processor.get("num_physical_cores")
    if logical and physical and logical > physical:  # two threads of a core share its multipliers
        cores = max(1, cores * physical // logical)
    try:
        granted, period = Path(quota).read_text(encoding="utf-8").split()
        return cores if granted == "max" else min(cores, max(1, int(granted) // int(period)))
    except (OSError, ValueError):  # no such file, or another format: no known quota
        return cores


def use_granted_cores() -> None:
    """Limits torch to one thread per granted core, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and granted_cores() < torch.get_num_threads():
        torch.set_num_threads(granted_cores())


@functools.cache
def has_amx() -> bool:
    """Tells whether this processor multiplies matrices of bfloat16 by AMX."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def native_precision(accelerator: str) -> str:
    """Returns "bf16-mixed" if the device multiplies bfloat16 natively, else "32-true"."""
    import torch

    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        processor = torch.cpu.get_capabilities()
        native = bool(processor.get("avx512_bf16") or processor.get("amx_bf16"))
    return "bf16-mixed" if native else "32-true"


def _status(name: str) -> int:
    """Returns the bytes under this name in Linux's /proc/self/status; 0 on other systems."""
    try:
        return int(Path("/proc/self/status").read_text(encoding="utf-8").partition(f"{name}:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def held_memory() -> int:
    """Returns the bytes of memory that this process holds; 0 if unknown."""
    return _status("VmRSS")


def peak_memory(device_type: str = "cpu") -> int:
    """Returns the most bytes that this process has held: of GPU memory on "cuda", else of main memory; 0 if unknown."""
    import torch

    if device_type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or systems.peak_memory()[0] or 0


def children_seconds() -> float:
    """Returns the processor seconds of all processes that this one has started and that have ended, as compilers do."""
    times = os.times()
    return times.children_user + times.children_system


def available_memory(folder: str | os.PathLike[str] = "/sys/fs/cgroup") -> int | None:
    """Returns the bytes that the machine and the container can still give a process; None if unknown."""
    amounts = []
    with contextlib.suppress(OSError, IndexError):
        meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
        amounts.append(int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # without a limit, the file says "max"
        limit, used = (int(Path(folder, f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        stat = Path(folder, "memory.stat").read_text(encoding="utf-8").split()
        reclaimable = int(stat[stat.index("inactive_file") + 1])
        amounts.append(limit - used + reclaimable)
    return min(amounts, default=None)
