"""Locks a run's folder for one process, on one host or several.

    .lock    {"host": "a", "pid": 7, "job": "1234"}, touched every 20 seconds while the run lives

The kernel releases a lock however its process ends, so a lock file that this host has left means nothing. Between hosts
a file system may share no locks, and some have none at all: there, whoever creates the file has the lock. An owner that
cannot be asked counts as lost once its file has not been touched for three minutes by the file system's own clock.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm.runs.folder import LOCK
from tokenization import InputError
from tokenization.files import delete_empty, missing_folders, of_file, temporary_name
from tokenization.systems import NO_FOLLOW, delete_open, is_alive, lock

HEARTBEAT_SECONDS = 20
SILENT_SECONDS = 180  # a file system over a network may show a touch a minute late
Owner = dict[str, Any]


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Locks the folder for this process; InputError if another run holds it.

    A lock that another host has left, of the same job, is waited for: the launcher has started the job again.
    """
    path, new_folders = Path(folder) / LOCK, missing_folders([Path(folder) / LOCK])
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, before = _acquire(path)
    try:
        if before:
            print(f"{path}: was left by {_in_words(before)}; it is taken over")
        job = {"job": _job()} if _job() else {}
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()} | job).encode())
        except OSError as error:
            raise of_file(error, path, []) from None
        with _heartbeat(path, descriptor):
            yield
    finally:
        delete_open(path, descriptor)
        delete_empty(new_folders)


def _job() -> str | None:
    """Returns the name by which a launcher knows this run."""
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")


def _acquire(path: Path) -> tuple[int, Owner]:
    """Returns a descriptor of the lock, held, and its previous owner, which is lost; empty if there was none."""
    lost: Owner = {}
    waiting = False
    while True:
        descriptor, created = _open(path)
        held, owner = lock(descriptor), _owner(descriptor)
        here = owner.get("host") == socket.gethostname()
        # Whoever releases the lock deletes its file, and a lock on a deleted file keeps nobody out.
        if held and not _is_there(descriptor, path):
            os.close(descriptor)
        elif (created and held is None) or (held and (here or not owner)):
            return descriptor, owner or lost
        elif held is not False and _is_lost(owner, here, descriptor, path):
            if held:
                return descriptor, owner
            lost = owner
            _remove(path, descriptor)
        else:
            os.close(descriptor)
            if here or held is False or _job() is None or owner.get("job") != _job():
                raise _refusal(path, owner, here or held is False)
            if not waiting:
                print(f"{path}: is locked by {_in_words(owner)}, of this job; waiting for a sign of life")
            waiting = True
            time.sleep(1)


def _open(path: Path) -> tuple[int, bool]:
    """Returns a descriptor of the lock file, and whether this call has created it."""
    flags = os.O_RDWR | NO_FOLLOW
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
            with contextlib.suppress(FileNotFoundError):  # released between the two calls
                return os.open(path, flags), False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: is a symbolic link, which no run creates; delete it") from None


def _is_there(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _is_lost(owner: Owner, here: bool, descriptor: int, path: Path) -> bool:
    """Whether the owner has ended on this host, or has been silent for too long."""
    if here and not is_alive(int(owner.get("pid", 0))):
        return True
    return _is_silent(os.fstat(descriptor), path)


def _is_silent(state: os.stat_result, path: Path) -> bool:
    """Whether a file beside this path was last touched too long ago: hosts' clocks differ; the file system has one."""
    probe = temporary_name(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - state.st_mtime > SILENT_SECONDS
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path, descriptor: int) -> None:
    """Removes the lock file that this descriptor has opened, unless another process does, and closes it.

    Only the process that has claimed this very file removes it: by its name alone a slow one would remove the lock that
    a faster one has created since.
    """
    judged = _identity(descriptor)
    os.close(descriptor)
    claim = path.with_name(f"{path.name}.{judged}.claim")
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):
            if _is_silent(os.stat(claim), path):  # whoever has made it was killed at this moment
                claim.unlink()
        time.sleep(0.01)
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            now = os.open(path, os.O_RDONLY)
            same = _identity(now) == judged
            os.close(now)
            if same:
                path.unlink()
    finally:
        claim.unlink(missing_ok=True)


def _identity(descriptor: int) -> str:
    """Returns what tells a lock file that nobody touches any more from any other, also from one with its inode."""
    state = os.fstat(descriptor)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return sha256(f"{state.st_ino} {state.st_mtime_ns} ".encode() + os.read(descriptor, 1000)).hexdigest()[:16]


def _owner(descriptor: int) -> Owner:
    """Returns what the owner has signed with; nothing if it has only just taken the lock."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    content = os.read(descriptor, 1000)
    try:
        owner = json.loads(content)
        return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else {"host": "?", "pid": "?"}
    except ValueError:
        return {}


def _in_words(owner: Owner) -> str:
    here = owner.get("host") == socket.gethostname()
    process = f"process {owner.get('pid', '?')}"
    return f"{process}, which has ended" if here else f"{process} of host {owner.get('host', '?')}"


def _refusal(path: Path, owner: Owner, alive: bool) -> InputError:
    process, host = owner.get("pid", "?"), owner.get("host", "?")
    if alive or not owner:
        return InputError(
            f"{path.parent}: another run is writing to it, process {process} of host {host}; wait for it to end, or"
            " name another folder with --trainer.default_root_dir"
        )
    return InputError(
        f"{path.parent}: is locked by process {process} of host {host}; if that run is over, delete {path}, or start"
        f" again when the lock has not been touched for {SILENT_SECONDS} s"
    )


@contextlib.contextmanager
def _heartbeat(path: Path, descriptor: int) -> Iterator[None]:
    """Touches the lock file now and then, by the file system's clock."""
    over = threading.Event()
    file = descriptor if os.utime in os.supports_fd else path

    def beat() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, name="heartbeat of the lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # before the descriptor stands for another file
