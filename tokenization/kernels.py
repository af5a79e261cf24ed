"""Loads the compiled kernels (native/), or says why plain Python does the work.

    kernels_for    for a large text: loads them at once, or compiles them on the first use of this installation
    load_behind    while a caller goes on in plain Python: a thread loads them, and the caller takes them when they are
                   ready
    announcing     for a command: prints that they are being compiled, which a library only logs

Importing llvmlite and compiling take locks that a forked process would find held for good, and LLVM must not be at work
while the interpreter ends. So loading goes step by step; whoever forks or exits waits for the end of a step.
"""

import atexit
import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import NamedTuple

from tokenization.patterns import parts_of
from tokenization.systems import at_fork

# Bytes of text from which the kernels save more time than it takes until they are ready:
LOADED_FROM_BYTES = 30_000  # where this process has loaded them already
CACHED_FROM_BYTES = 500_000  # where their machine code lies in the cache
KERNELS_FROM_BYTES = 4_000_000  # where they must be compiled
# Characters encoded in plain Python after which a program will encode more, so that the kernels are worth loading:
BEHIND_FROM_CHARACTERS = 1_000_000
LOADED_BEHIND_FROM_CHARACTERS = 30_000  # where only a tokenizer's tables must be made

# These have something done before and after each fork. If the thread imported them while a fork waits for it, the fork
# would do the second without the first.
HOOKED = ("concurrent.futures.thread", "logging")


class Choice(NamedTuple):
    """The code that does the work, and the reason for it."""

    native: ModuleType | None  # the module with the kernels; None for plain Python
    reason: str
    seconds: float = 0.0  # spent on loading or compiling the kernels
    phase: str = "loading"  # or "compiling", where the cache lacked any of them


def have_kernels(pattern: str) -> bool:
    """Returns whether the kernels know the pattern."""
    return parts_of(pattern) is not None


def kernels_for(pattern: str, num_bytes: int, work: str) -> Choice:
    """Chooses the compiled kernels where they save time and can be loaded.

    work: "training" and "encoding"; "merging" and "pieces" are the same under any pattern, from pre-tokens.
    """
    if work in ("training", "encoding") and not have_kernels(pattern):
        return Choice(None, "plain Python (the kernels do not know the pattern)")
    if not worth_waiting(pattern, num_bytes, work):
        enough = CACHED_FROM_BYTES if num_bytes < CACHED_FROM_BYTES else KERNELS_FROM_BYTES
        return Choice(None, f"plain Python (less than {enough / 1e6:g} MB)")
    start, loaded = time.perf_counter(), are_loaded(pattern, work)
    native, reason, phase = load_kernels(work, pattern)
    return Choice(native, reason, time.perf_counter() - start if native else 0.0, "loading" if loaded else phase)


def worth_waiting(pattern: str, num_bytes: int, work: str) -> bool:
    """Returns whether the kernels save more time with so many bytes of text than it takes until they are ready."""
    if num_bytes >= KERNELS_FROM_BYTES:
        return True
    if are_loaded(pattern, work):
        return num_bytes >= LOADED_FROM_BYTES
    return num_bytes >= CACHED_FROM_BYTES and are_cached(pattern, work)


def are_loaded(pattern: str, work: str) -> bool:
    """Returns whether this process has loaded the kernels for a pattern and a work."""
    return (work, pattern) in _loaded


def are_cached(pattern: str, work: str) -> bool:
    """Returns whether the cache has machine code of the kernels; false where they cannot be used at all."""
    try:
        with step():
            native = importlib.import_module("tokenization.native")
        return bool(native.are_cached(work, pattern))
    except Exception:  # as in load_kernels, which will say why
        return False


_loaded: set[tuple[str, str]] = set()  # what load_kernels has loaded: work, pattern


@functools.cache
def load_kernels(work: str, pattern: str) -> tuple[ModuleType | None, str, str]:
    """Returns the module with the kernels for this work, or None where they fail; the reason; and Choice.phase."""
    phase = "loading"
    try:
        with step():
            native = importlib.import_module("tokenization.native")
        if not native.are_cached(work, pattern):
            phase = "compiling"
            _log_compiling(bool(native.cache_folder()))
        native.compile_kernels(work, pattern, step)
        _loaded.add((work, pattern))
    except ModuleNotFoundError as error:
        return None, f"plain Python ({error.name} is not installed)", phase
    except Exception as error:  # whatever LLVM raises: the work can be done without them
        reason = f"the kernels cannot be compiled: {' '.join(str(error).split()) or repr(error)}"
        return None, f"plain Python ({reason})", phase
    return native, "compiled kernels", phase


@functools.cache  # once per process, whatever is missing
def _log_compiling(kept: bool) -> None:
    import logging

    line = "compiling the tokenizer's kernels, about 2 s" + (", once" if kept else "; no folder can keep them")
    logging.getLogger(__name__).info(line)


@contextmanager
def announcing() -> Iterator[None]:
    """Prints on stderr, within the block, when kernels must be compiled."""
    import logging

    logger, printer = logging.getLogger(__name__), logging.StreamHandler()
    level = logger.level
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.setLevel(level)


# --- in a thread -----------------------------------------------------------------------------------------------------

_stepping = threading.RLock()
_ending = False
_loader: threading.Thread | None = None


def load_behind(load: Callable[[], object]) -> None:
    """Calls `load` in a thread, unless another such thread is at work: then the caller asks again later."""
    global _loader

    def run() -> None:
        with suppress(Exception):  # the caller has plain Python to go on with
            load()

    if _ending or (_loader is not None and _loader.is_alive()):
        return
    for module in HOOKED:
        importlib.import_module(module)
    _loader = threading.Thread(target=run, name="loading kernels", daemon=True)
    with suppress(RuntimeError):  # no more threads can be had, or the interpreter ends
        _loader.start()


@contextmanager
def step() -> Iterator[None]:
    """Keeps this process from forking and from ending within the block."""
    with _stepping:
        if _ending:
            raise RuntimeError("the interpreter is ending")
        yield
    time.sleep(0.001)  # whoever waits for the lock would never get it from a thread that takes it again at once


def _end() -> None:
    global _ending
    _ending = True
    with _stepping:
        pass


def _forget_threads() -> None:
    """Gives a forked process, in which no thread but the forking one goes on, a lock of its own."""
    global _stepping, _loader
    _stepping, _loader = threading.RLock(), None


atexit.register(_end)
at_fork(before=lambda: _stepping.acquire(), after_in_parent=lambda: _stepping.release(), after_in_child=_forget_threads)
