"""What operating systems do differently, for both packages: no other file calls what only some of them have.

POSIX has locks, forks and signals that Windows lacks, and only Linux tells which cores a process may use. On Windows an
open file can be neither deleted nor replaced, and a folder cannot be flushed. tests/test_systems.py runs both packages
without what Windows lacks. What is only read from Linux's /proc or /sys is not here: elsewhere there is no such file.
"""

import contextlib
import errno
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # makes os.open refuse a symbolic link
SIGUSR1: signal.Signals | None = getattr(signal, "SIGUSR1", None)
UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system without locks


# --- the processor and memory ----------------------------------------------------------------------------------------


def own_cores() -> set[int] | None:
    """Returns the numbers of the cores that this process may use; None on macOS and Windows, which do not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(own_cores() or ()) or os.cpu_count() or 1


def ticks_per_second() -> int:
    """Returns how often the clocks in Linux's /proc tick."""
    return os.sysconf("SC_CLK_TCK")


def peak_memory() -> tuple[int | None, int | None]:
    """Returns the largest resident size of this process and of its largest ended child, in bytes; None on Windows."""
    if resource is None:
        return None, None
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own * unit, child * unit


def huge_pages(size: int) -> mmap.mmap | None:
    """Maps this many bytes of zeros, in huge pages if the kernel has any; None where it cannot be asked for them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


# --- files -----------------------------------------------------------------------------------------------------------


def flush(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete_open(path: Path, descriptor: int) -> None:
    """Deletes a file, if it is still there, and closes it: on POSIX in this order, so that its lock covers both."""
    if WINDOWS:
        os.close(descriptor)
    path.unlink(missing_ok=True)
    if not WINDOWS:
        os.close(descriptor)


def lock(descriptor: int) -> bool | None:
    """Locks an open file until it is closed or this process ends, and returns whether that has worked.

    Returns None where the system or the file system has no locks. Workers forked later do not share the lock.
    """
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        return None
    return True


def is_flocked(descriptor: int) -> bool:
    """Whether another process holds flock's lock of an open file; if none does, this one has it until it closes it.

    False on Windows, and where the file system has no locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in UNLOCKABLE
    return False


def open_files() -> int:
    """Returns how many files a process may have open."""
    return 512 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


# --- processes and signals -------------------------------------------------------------------------------------------


def is_alive(process: int) -> bool:
    """Returns whether this host has a process of this id, of any user; on Windows, where nobody tells, True."""
    if WINDOWS:  # where os.kill(process, 0) would send it a Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; or more than any process id
        return True
    return True


def at_fork(**calls: Callable[[], Any]) -> None:
    """Registers what is called at each fork: before, after_in_parent, after_in_child. Windows has no forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**calls)


def call_on_signals(loop: "AbstractEventLoop", signums: Iterable[int], call: Callable[[], Any]) -> None:
    """Makes an event loop call this when one of the signals arrives."""
    for signum in signums:
        try:
            loop.add_signal_handler(signum, call)
        except NotImplementedError:  # Windows
            signal.signal(signum, lambda *_: loop.call_soon_threadsafe(call))


# --- the terminal ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def keys_ignored() -> Iterator[None]:
    """Neither shows what is typed meanwhile nor leaves it to be read later; Ctrl-C still works. Not on Windows."""
    if termios is None or not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    usual = termios.tcgetattr(terminal)
    silent = [*usual]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcflush(terminal, termios.TCIFLUSH)  # drops what was typed
        termios.tcsetattr(terminal, termios.TCSANOW, usual)
