"""Guards a run's folder, which is self-contained and has one writer at a time:

    config.yaml  the whole configuration           last.ckpt      the newest state, to resume from
    tokenizer/   a copy of the tokenizer           best.ckpt      the state of the lowest validation loss
    events.*     TensorBoard's curves              step-N.ckpt    states kept on request

    diverged.json  how a run of `lm sweep` diverged

While a run writes to it, its .lock names the process and the host. This file takes the lock, refuses other commands'
outputs under a run's own names, and deletes what a killed run left half-written. It imports neither torch nor
Lightning, so that a command can read a folder without them.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenization import InputError
from tokenization.files import delete_empty, missing_folders, of_file

LAST, BEST, TOKENIZER, CONFIG = "last.ckpt", "best.ckpt", "tokenizer", "config.yaml"
DIVERGED, LOCK = "diverged.json", ".lock"
OWN_FILES = ("*.ckpt", "events.*", CONFIG, TOKENIZER, LOCK, DIVERGED)


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Locks the folder for this process; InputError if another run holds it.

    The kernel releases the lock however its process ends, so a leftover lock file of this host means nothing. One of
    another host may belong to a live process: some file systems do not share locks between hosts.
    """
    path, here = Path(folder) / LOCK, socket.gethostname()
    new_folders = missing_folders([path])
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, owner = _acquire(path)
    if owner and owner.get("host") != here:
        os.close(descriptor)
        raise InputError(
            f"{folder}: is locked by process {owner.get('pid')} of host {owner.get('host')}; if that run is over,"
            f" delete {path}"
        )
    try:
        if owner:
            print(f"{path}: was left by process {owner.get('pid')}, which has ended; it is taken over")
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"host": here, "pid": os.getpid()}).encode(), 0)
        except OSError as error:
            raise of_file(error, path, []) from None
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        delete_empty(new_folders)


def _acquire(path: Path) -> tuple[int, dict[str, Any]]:
    """Returns a descriptor that holds the lock, and what a previous owner left in the file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise InputError(f"{path}: is a symbolic link, which no run creates; delete it") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers forked later do not share it
        except (BlockingIOError, PermissionError):
            owner = _owner(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: another run is writing to it, process {owner.get('pid', '?')} of host"
                f" {owner.get('host', '?')}; wait for it to end, or name another folder with --trainer.default_root_dir"
            ) from None
        # Whoever releases the lock deletes its file, and a lock on a deleted file keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, _owner(descriptor)
        os.close(descriptor)


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return owner if isinstance(owner, dict) else {"host": "?", "pid": "?"}
    except ValueError:  # empty: just taken, not yet signed
        return {}


def refuse_names_of_runs(outputs: Iterable[Path], runs: Iterable[Path]) -> None:
    """Raises InputError for an output in a run's folder under a name that the run uses itself."""
    folders = [run.resolve() for run in runs]
    for path in outputs:
        if path.resolve().parent in folders and any(path.match(pattern) for pattern in OWN_FILES):
            raise InputError(f"{path}: would be taken for the run's own {path.name}; choose another name")


def delete_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Deletes what killed runs left half-written, and returns the paths. The caller must hold the run's lock."""
    folder = Path(folder)
    leftovers = [*folder.glob(".*.ckpt.*.tmp"), *folder.glob(f"{TOKENIZER}/.*.tmp")]
    for path in leftovers:
        path.unlink()
    return leftovers
