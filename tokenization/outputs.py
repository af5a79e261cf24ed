"""Checking outputs before a command begins to work, so that no file is lost and no work is wasted.

An output is refused where it is one of the inputs, under whatever name, or a link; where a file of another kind exists;
and where nothing can be written. A file of its own kind is replaced only on request.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenization.errors import InputError


def check_file(
    path: Path,
    inputs: Iterable[str | os.PathLike[str]],
    kind: str,
    is_kind: Callable[[Path], bool],
    overwrite: bool | None = None,
) -> None:
    """Raises InputError where a file must not or cannot be written. inputs: files, and folders with all their files.

    kind: for example "a token file"; is_kind: whether an existing file is of this kind. overwrite: the value of
    --overwrite; None where a command replaces files of its own kind without it.
    """
    refuse_link(path)
    if path.exists():
        if not path.is_file():
            raise InputError(f"{path}: is a folder or a device, not a file to be replaced; choose another name")
        refuse_input(path, inputs)
        if not is_kind(path):
            raise InputError(f"{path}: exists, and is not {kind}; choose another name, or delete it")
        if overwrite is False:
            raise InputError(f"{path}: exists already; choose another name, or replace it with --overwrite")
    check_place(path, path.parent)


def check_new(path: Path) -> None:
    """Raises InputError where a new file or folder exists already or cannot be made."""
    refuse_link(path)
    if path.exists():
        raise InputError(f"{path}: exists already; name a new one, or delete it")
    check_place(path, path.parent)


def check_folder(path: Path, inputs: Iterable[str | os.PathLike[str]] = (), names: Sequence[str] = ()) -> None:
    """Raises InputError where files of these names must not or cannot be written into a folder, which may exist."""
    if path.is_symlink() and not path.exists():
        refuse_link(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: cannot be written: it is a file, not a folder; choose another name")
    for file in (path / name for name in names):
        refuse_link(file)
        if file.exists():
            if not file.is_file():
                raise InputError(f"{file}: is a folder or a device, not a file to be replaced; choose another folder")
            refuse_input(file, inputs)
    check_place(path, path)


def check_place(path: Path, folder: Path) -> None:
    """Raises InputError where no file can be made in the folder, or in the innermost existing one above it."""
    folder = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if os.path.isfile(folder) else error.strerror
        raise InputError(
            f"{path}: cannot be written: nothing can be created in {folder} ({reason}); choose another place"
        ) from None


def refuse_link(path: Path) -> None:
    """Raises InputError for a link: replacing it would lose the link, and following it the other file."""
    if path.is_symlink():
        raise InputError(f"{path}: is a link to {os.readlink(path)}; name that file itself, or delete the link")


def refuse_input(path: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raises InputError where the path is one of the inputs, or another name of one."""
    if not path.exists():
        return
    about = path.stat()
    for entry in map(Path, inputs):
        for file in entry.rglob("*") if entry.is_dir() else [entry]:
            if file.exists() and os.path.samestat(about, file.stat()):
                name = "one of the inputs" if file == path else f"the input {file} under another name"
                raise InputError(f"{path}: is {name}; choose another output")
