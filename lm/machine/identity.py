"""Names the machine and the code that compute a run, so that its figures can be compared with another's."""

import contextlib
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lm.machine.resources import granted_cores
from tokenization.version import own_version

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]  # of a clone; a wheel's files lie in site-packages
GIT_SECONDS = 5.0  # longer than `git describe` takes, even where the disk is slow


@lru_cache
def cpu_facts() -> dict[str, str]:
    """Returns what /proc/cpuinfo says of the first processor; nothing where there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        lines = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in lines}
    return {}


def cpu_model() -> str:
    """Returns the processor's name, or that of its architecture."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def machine_in_words(device: "torch.device", processes: int = 1) -> str:
    """Names the hardware that computes: "AMD EPYC 7B13, 2 cores", "2 x NVIDIA H100 80GB HBM3"."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return name if processes == 1 else f"{processes} x {name}"
    cores = granted_cores()
    words = f"{cpu_model()}, {cores} core{'s' if cores > 1 else ''}"
    if device.type != "cpu":
        words += f", its {device.type} device"
    return words if processes == 1 else f"{words}, {processes} processes"


def code_in_words() -> str:
    """Returns the version and, in a clone, the commit: "0.2.0, commit 6f48e9afc43f, changed since"."""
    version = own_version()
    if not (ROOT / ".git").exists():
        return version
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, or one that distrusts the folder's owner
        return version
    commit, dirty, _ = done.stdout.strip().partition("-dirty")
    return f"{version}, commit {commit}{', changed since' if dirty else ''}"
