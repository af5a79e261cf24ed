"""A run is one folder, sufficient by itself, with one writer at a time:

    config.yaml  the whole configuration           last.ckpt      the newest state, to go on from
    tokenizer/   a copy of the tokenizer           best.ckpt      the state of the lowest validation loss
    events.*     what TensorBoard shows            step-N.ckpt    states that are kept, if one asks for them

While a run writes to it, .lock in it says which process of which host that is. This file finds the checkpoint to go on
from, says what would be different then, and clears away what a killed run left half-written.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm.checkpoint import CONFIG, LAST, TOKENIZER, read_manifest, verify
from tokenization import InputError
from tokenization.files import delete_empty, file_sha256, missing_folders, of_file, writing

LOCK = ".lock"
OWN_FILES = ("*.ckpt", "events.*", CONFIG, TOKENIZER, LOCK, "diverged.json")


# --- one writer ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Holds the folder for this process; InputError where another run has it.

    The kernel gives the lock back when its process ends in whatever way, so that one that is left over on this host
    counts for nothing. A lock of another host may be a living one that this file system does not tell us about.
    """
    path, here = Path(folder) / LOCK, socket.gethostname()
    new_folders = missing_folders([path])
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, owner = _take(path)
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


def _take(path: Path) -> tuple[int, dict[str, Any]]:
    """A descriptor that holds the lock, and what a former owner left in the file."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise InputError(f"{path}: is a link, which no run makes; delete it") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers forked later do not share it
        except (BlockingIOError, PermissionError):
            owner = _owner(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{path.parent}: another run writes to it, process {owner.get('pid', '?')} of host"
                f" {owner.get('host', '?')}; wait for its end, or name another folder with --trainer.default_root_dir"
            ) from None
        # Whoever gave the lock back has deleted its file: a lock on a deleted file keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, _owner(descriptor)
        os.close(descriptor)


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return owner if isinstance(owner, dict) else {"host": "?", "pid": "?"}
    except ValueError:  # empty: taken just now, and not yet signed
        return {}


def refuse_names_of_runs(outputs: Iterable[Path], runs: Iterable[Path]) -> None:
    """A page or an export may lie in a run's folder, but not under a name that the run would take for its own."""
    folders = [run.resolve() for run in runs]
    for path in outputs:
        if path.resolve().parent in folders and any(path.match(pattern) for pattern in OWN_FILES):
            raise InputError(f"{path}: would be taken for the run's own {path.name}; choose another name")


def sweep(folder: str | os.PathLike) -> list[Path]:
    """Deletes what killed runs left half-written, and says what it was. For the holder of the lock."""
    folder = Path(folder)
    left_over = [*folder.glob(".*.ckpt.*.tmp"), *folder.glob(f"{TOKENIZER}/.*.tmp")]
    for path in left_over:
        path.unlink()
    return left_over


# --- going on --------------------------------------------------------------------------------------------------------


def find_newest(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The checkpoint of the highest step that verifies, or None where there is none at all; and why, a line each."""
    paths, steps, reasons = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.name != LAST), {}, []
    for path in paths:
        try:
            steps[path] = read_manifest(path)["step"]
        except InputError as error:
            reasons.append(f"passed over: {error}")
    for path in sorted(steps, key=lambda path: -steps[path]):  # stable: last.ckpt comes before others of its step
        try:
            verify(path)
        except InputError as error:
            reasons.append(f"passed over: {error}")
        else:
            return path, [*reasons, f"{path}: step {steps[path]}, the newest of {len(paths)} that verifies"]
    if paths:
        raise InputError(f"{folder}: none of its {len(paths)} checkpoints verifies; {reasons[0]}")
    return None, [f"{folder}: holds no checkpoint; a new run begins"]


def make_last(path: str | os.PathLike) -> None:
    """The newest checkpoint is last.ckpt, too: the run may have been killed after best.ckpt, and before it."""
    path = Path(path)
    last = path.with_name(LAST)
    if path.name == LAST or (last.exists() and file_sha256(last) == file_sha256(path)):
        return
    with writing(last) as file, open(path, "rb") as content:
        shutil.copyfileobj(content, file)


def describe(path: str | os.PathLike) -> Iterator[str]:
    """What `lm verify` says of a checkpoint, or of all in a folder; InputError for the first that does not verify."""
    path = Path(path)
    for file in (sorted(path.glob("*.ckpt")) if path.is_dir() else []) or [path]:
        manifest = verify(file)
        config = file.parent / CONFIG
        same = config.is_file() and file_sha256(config) == manifest.get("config_sha256")
        yield f"{file}: whole, step {manifest['step']}, {file.stat().st_size:,} bytes"
        for name in ("tokenizer_sha256", "train_sha256", "val_sha256", "config_sha256"):
            if manifest.get(name) is not None:
                yield f"  {name:18}{manifest[name]}"
        if manifest.get("train_sha256") is None:
            yield "  weights and a tokenizer alone, as `lm import` writes them: no training text is recorded"
        yield f"  {CONFIG} is {'the one it was saved under' if same else 'another than it was saved under'}"
