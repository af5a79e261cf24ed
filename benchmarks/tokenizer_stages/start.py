"""How long a library takes until its first ids are there; nothing is imported here that a library would import."""

import importlib
import os
import re
import resource
import tempfile
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizer_stages.peers import LOAD, Vocabulary

SENTENCE = "The first call of a program that encodes a few lines, and leaves."


def measure_start(vocabulary: Vocabulary, library: str, fresh: bool) -> dict[str, Any]:
    """Measures the CPU seconds of importing a library, of loading a vocabulary, and of the first call.

    fresh: whether this package has never loaded the vocabulary before, and so has no table of it.
    """
    with tempfile.TemporaryDirectory() as empty:
        if fresh:
            os.environ["TOKENIZATION_CACHE_DIR"] = empty
        row = time_start(vocabulary, library)
    return row | ({"library": f"{library}, the first time"} if fresh else {})


def time_start(vocabulary: Vocabulary, library: str) -> dict[str, Any]:
    marks = [time.process_time()]
    getattr(importlib.import_module(library), "Tokenizer", None)  # ours imports it when it is first named
    marks.append(time.process_time())
    calls = LOAD[library](vocabulary)
    marks.append(time.process_time())
    ids = calls["list"](SENTENCE)
    marks.append(time.process_time())
    steps = zip(("import", "load", "first call"), pairwise(marks), strict=True)
    row: dict[str, Any] = {step: after - before for step, (before, after) in steps}
    return row | {"process": time.process_time(), "peak": peak(), "digest": sha256(repr(ids).encode()).hexdigest()}


def peak() -> float:
    """Returns the largest size that this process has had, in MB; getrusage would count the process that started it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024 / 1e6
