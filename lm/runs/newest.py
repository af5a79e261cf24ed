"""Finds the checkpoint that a run resumes from: the newest that is whole.

A run that resumes from an older checkpoint than its newest begins a new branch: what it then saves is newer than all
that the earlier branch has saved, of whatever step.
"""

import contextlib
import os
import shutil
from pathlib import Path

from lm.runs.checkpoint import verify
from lm.runs.folder import LAST
from lm.runs.manifest import read_manifest
from tokenization import InputError
from tokenization.files import file_sha256, writing


def find_newest(folder: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint of the highest step on the newest branch that verifies; the lines say how it was chosen.

    The path is None if the folder holds no checkpoint at all; InputError if it holds some but none verifies.
    """
    paths = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.name != LAST)
    ages: dict[Path, tuple[int, int]] = {}
    reasons: list[str] = []
    for path in paths:
        try:
            ages[path] = age(path)
        except (InputError, OSError) as error:
            reasons.append(f"passed over: {in_words(error, path)}")
    for path in sorted(ages, key=ages.__getitem__, reverse=True):  # stable: last.ckpt before others of its step
        try:
            verify(path)
        except (InputError, OSError) as error:
            reasons.append(f"passed over: {in_words(error, path)}")
        else:
            return path, [*reasons, f"{path}: step {ages[path][1]:,}, the newest of {len(paths)} that verifies"]
    if paths:
        raise InputError(f"{folder}: none of its {len(paths)} checkpoints verifies; {reasons[0]}")
    return None, [f"{folder}: holds no checkpoint; a new run begins"]


def in_words(error: InputError | OSError, path: Path) -> str:
    """Returns why a checkpoint cannot be used, with its name."""
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def age(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns a checkpoint's branch and step, unverified; the larger, the newer."""
    manifest = read_manifest(path)
    branch = manifest.get("branch", 0)
    return branch if isinstance(branch, int) else 0, manifest["step"]


def branch_from(branch: int, step: int, folder: str | os.PathLike[str]) -> int:
    """Returns the branch of a run that resumes from a checkpoint of this age: a new one if newer ones are there."""
    newest = (branch, step)
    for path in Path(folder).glob("*.ckpt"):
        with contextlib.suppress(InputError, OSError):  # not a whole checkpoint
            newest = max(newest, age(path))
    return newest[0] + 1 if newest > (branch, step) else branch


def make_complete(path: str | os.PathLike[str], kept: str | None = None) -> None:
    """Makes the copies of the newest checkpoint that are missing because the run was killed between two saves.

    These are last.ckpt, which may also be an older one, and before it, as in a save, the file by the name `kept`, where
    this step is one to keep. Beside a last.ckpt of the same step, a missing one has been deleted since, and stays so.
    """
    path = Path(path)
    last = path.with_name(LAST)
    if path.name == LAST or (last.exists() and file_sha256(last) == file_sha256(path)):
        return
    if kept is not None and not path.with_name(kept).exists():
        copy(path, path.with_name(kept))
    copy(path, last)


def copy(source: Path, target: Path) -> None:
    with writing(target) as file, open(source, "rb") as content:
        shutil.copyfileobj(content, file)
