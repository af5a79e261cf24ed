"""Finds the checkpoint that a run resumes from: the newest that is whole."""

import os
import shutil
from pathlib import Path

from lm.runs.checkpoint import verify
from lm.runs.folder import LAST
from lm.runs.manifest import read_manifest
from tokenization import InputError
from tokenization.files import file_sha256, writing


def find_newest(folder: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """Finds the checkpoint of the highest step that verifies; the lines say how it was chosen.

    The path is None if the folder holds no checkpoint at all; InputError if it holds some but none verifies.
    """
    paths = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.name != LAST)
    steps: dict[Path, int] = {}
    reasons: list[str] = []
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
