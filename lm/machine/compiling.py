"""Compiles a model by torch.compile where that works, and runs it uncompiled where it does not.

    delete truncated libraries  ->  delete files that fail to load  ->  use an empty cache  ->  run uncompiled

Inductor caches compiled code in a folder that all runs share, and trusts what it finds there. A compilation that is
killed may leave half a library, on which every later run of the same model would fail or even crash.
"""

import contextlib
import logging
import os
import re
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from lm.durations import format_duration
from lm.machine.operators import sources_digest
from lm.machine.torch_inside import (
    Graph,
    cpp_compiler,
    empty_inductor_folder,
    forget_compiled,
    inductor_folder,
    run_inductor,
)
from tokenization.systems import is_flocked

ELF, ELF_64_LITTLE = b"\x7fELF", b"\x02\x01"
HEADER = struct.Struct("<40x Q 10x H H 2x")  # the table of sections: its offset, the size of an entry, their number


def why_not_compiled(device_type: str) -> str:
    """Returns one line on why torch.compile cannot be used here; "" if it can.

    The test is a kernel that GCC has miscompiled; see gcc_without_ipa_cp in torch_inside.py.
    """
    numbers = torch.arange(64 * 64, device=device_type) % 251  # bfloat16 holds them exactly
    inputs = [x.view(64, 64).bfloat16() for x in (numbers, -numbers)]
    announce("checking torch.compile: some 20 s the first time, a few s after that")
    try:
        with quiet():
            found = torch.compile(two_transposes, backend=compile_graph, dynamic=False)(*inputs)
    except Exception as error:  # no compiler, no headers, no room for temporary files: all the same to us
        return f"torch.compile does not work here ({in_a_line(error)}); on a CPU it needs g++ or clang"
    if all(map(torch.equal, found, two_transposes(*inputs))):
        return ""
    return f"torch.compile gives wrong numbers here ({compiler_version() if device_type == 'cpu' else device_type})"


def two_transposes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Transposes two matrices: (m, n) of any dtype -> (n, m) in float32."""
    return a.t().float().contiguous(), b.t().float().contiguous()


def compiler_version() -> str:
    """Returns the C++ compiler and its version, as "g++ 12.2.0"."""
    said = subprocess.run([cpp_compiler(), "--version"], capture_output=True, text=True).stdout
    version = re.search(r"[0-9]+(\.[0-9]+)+", said)
    return " ".join([Path(cpp_compiler()).name, *([version[0]] if version else [])])


def compile_or_run(graph: Graph, inputs: list[Any]) -> Graph:
    """Compiles a graph by Inductor, for torch.compile(backend=...); if that fails, says so and returns the graph."""
    announce("compiling the model: some 30 s for a new shape, a few s after that")
    start = time.monotonic()
    try:
        with quiet():
            compiled = compile_graph(graph, inputs)
        announce(f"compiled in {format_duration(time.monotonic() - start)}")
        return compiled
    except Exception as error:
        warn(f"torch.compile does not work for this model ({in_a_line(error)}); training goes on without it")
        return graph


def compile_graph(graph: Graph, inputs: list[Any]) -> Graph:
    """Compiles a graph by Inductor, whatever state its cache is in."""
    tag = f"{torch.compiler.config.cache_key_tag} {sources_digest()}"
    with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
        return _compile_graph(graph, inputs)


def _compile_graph(graph: Graph, inputs: list[Any]) -> Graph:
    deleted: set[Path] = set()
    while True:
        try:
            for path in cut_off_libraries(cache_folder()):
                delete(path)
            return run_inductor(graph, inputs)
        except Exception as error:
            failure, named = error, named_files(error) - deleted
        if not named:
            break
        for path in named:
            delete(path)
        deleted |= named
        forget_compiled()
    with empty_inductor_folder():
        compiled = run_inductor(graph, inputs)
    warn(f"{cache_folder()}: torch.compile's cache cannot be used ({in_a_line(failure)}); compiled without it")
    return compiled


# --- the cache -------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or inductor_folder())


def cut_off_libraries(folder: Path) -> list[Path]:
    """Returns the truncated libraries in the cache; loading one may end the process by SIGBUS."""
    if sys.platform != "linux":
        return []
    return [path for path in folder.glob("*/*.so") if is_cut_off(path) and not is_being_written(path, folder)]


def is_cut_off(path: Path) -> bool:
    """Whether a library is truncated: an ELF file ends with the table of its sections."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or not head.startswith(ELF):
            return True
        if head[4:6] != ELF_64_LITTLE:
            return False  # another format, which this cannot judge
        offset, entry, number = HEADER.unpack(head)
        end: int = offset + entry * number
        return path.stat().st_size < end
    except OSError:
        return False


def is_being_written(path: Path, folder: Path) -> bool:
    """Whether another process holds the lock under which Inductor compiles this library."""
    lock = folder / "locks" / f"{path.name.partition('.')[0]}.lock"
    with contextlib.suppress(FileNotFoundError), open(lock, "rb") as file:
        return is_flocked(file.fileno())
    return False


def named_files(error: BaseException) -> set[Path]:
    """Returns the cache files that an error names, by path or as a module."""
    folder, message = cache_folder(), str(error)
    paths = map(Path, re.findall(re.escape(str(folder)) + r"/[^\s:'\"]+\.(?:so|py|cpp|h)\b", message))
    modules = {path for name in re.findall(r"compile_tasks\.(\w+)", message) for path in folder.glob(f"*/{name}.py")}
    return {path for path in paths if path.is_file()} | modules


def delete(path: Path) -> None:
    warn(f"{path}: torch.compile left it damaged in its cache; deleted, and compiled anew where it is needed")
    with contextlib.suppress(OSError):
        path.unlink()


# --- messages --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences torch's own report of a failure, which fills a screen."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def announce(message: str) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:
        tqdm.write(message)


def warn(message: str) -> None:
    if getattr(rank_zero_only, "rank", 0) == 0:
        tqdm.write(f"lm fit: {message}", file=sys.stderr)


def in_a_line(error: BaseException) -> str:
    return textwrap.shorten(str(error).strip().partition("\n\n")[0], 200)  # behind it, torch explains its variables
