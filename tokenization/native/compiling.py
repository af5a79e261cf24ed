"""Compiles kernels with Numba and keeps the machine code in a folder named by a digest of this package's sources.

Numba's own cache watches the file that holds a function, not the files of the functions that it calls: after a change
to a callee it would go on serving the old code. With the digest in the path, any change to any source of the package
starts an empty cache. Folders of former sources are deleted once no process has used them for a day.
"""

import functools
import os
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

PREFIX = "kernels-"
UNUSED_SECONDS = 24 * 3600  # after which the cache of other sources is deleted

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def sources_digest() -> str:
    """Returns a digest of the names and contents of all sources in this package."""
    digest = sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:16]


@functools.cache
def cache_folder() -> str:
    """Returns the folder that caches the kernels of these very sources; "" where no place can be written.

    It lies where Numba would cache: in NUMBA_CACHE_DIR, beside the sources, or in the user's cache.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return ""
    try:
        probe: Any = numba.njit(cache=True)(sources_digest)  # never called
        place = Path(probe.stats.cache_path)
        folder = place / (PREFIX + sources_digest())
        mark_used(folder)
    except (RuntimeError, OSError):  # a read-only installation and an unwritable home; another user's folder
        return ""
    delete_unused(place)
    return str(folder)


def mark_used(folder: Path) -> None:
    """Dates the folder to now, which keeps other processes from deleting it; makes it where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)


def delete_unused(place: Path) -> None:
    """Deletes the caches of other sources that no process has used for UNUSED_SECONDS."""
    for folder in place.glob(PREFIX + "*"):
        try:
            unused = time.time() - folder.stat().st_mtime > UNUSED_SECONDS
        except OSError:  # another process has just deleted it
            continue
        if unused:
            shutil.rmtree(folder, ignore_errors=True)


def compiled(function: Kernel) -> Kernel:
    """Marks a function to be compiled at its first call; without a cache folder its machine code stays in memory."""
    usual = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    folder = cache_folder()
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
    try:
        dispatcher: Any = numba.njit(cache=bool(folder), nogil=True, error_model="numpy")(function)
        return cast(Kernel, dispatcher)
    finally:
        numba.config.CACHE_DIR = usual  # type: ignore[attr-defined]


def compile_now(kernel: Any) -> None:
    """Compiles a kernel, whose arguments are all int64, or loads it from the cache."""
    if folder := cache_folder():
        mark_used(Path(folder))
        Path(kernel.stats.cache_path).mkdir(parents=True, exist_ok=True)  # Numba expects the folder of the import
    kernel.compile((numba.int64,) * kernel.py_func.__code__.co_argcount)


def address_of_code(kernel: Any) -> int:
    """Compiles or loads a kernel that returns an int64, and returns the address at which C could call it."""
    compile_now(kernel)
    arguments = (numba.int64,) * kernel.py_func.__code__.co_argcount
    code = kernel.get_compile_result(numba.int64(*arguments))
    return int(code.library.get_pointer_to_function(code.fndesc.llvm_cfunc_wrapper_name))
