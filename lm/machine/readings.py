"""Keeps measurements of this machine from one run to the next.

A small JSON file in the user's cache maps names to readings: {"peak of ...": {"flops": 2.3e12, ...}}. It is a
convenience: a damaged file counts as empty, and if none can be written, every run measures for itself.
"""

import contextlib
import json
import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm.machine.identity import cpu_facts, cpu_model
from lm.strict_json import to_json
from tokenization.files import write_text

MODEL = ("model name", "model", "cpu family", "stepping", "CPU implementer", "CPU part", "CPU variant")


def readings_path() -> Path:
    """Returns $XDG_CACHE_HOME/text-to-lm/readings.json; RuntimeError if the user has no home directory."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "text-to-lm" / "readings.json"


def _read_all() -> dict[str, Any]:
    try:
        readings = json.loads(readings_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return readings if isinstance(readings, dict) else {}


def recall(name: str) -> Any:
    """Returns the reading kept under this name, unchecked; None if there is none."""
    return _read_all().get(name)


def keep(name: str, reading: Any) -> bool:
    """Keeps a reading beside those of other names, and returns whether that succeeded."""
    with contextlib.suppress(OSError, RuntimeError):
        path = readings_path()
        text = to_json(_read_all() | {name: reading}, indent=1)
        write_text(path, text)
        return True
    return False


@lru_cache
def processor() -> str:
    """Names the processor by its model and instruction sets, so that equal names mean equal speed."""
    import torch

    facts: dict[str, Any] = {name: value for name, value in torch.cpu.get_capabilities().items() if value is True}
    facts |= {name: value for name, value in cpu_facts().items() if name in MODEL}
    digest = zlib.crc32(to_json(facts, sort_keys=True).encode())
    return f"{cpu_model()} ({digest:08x})"
