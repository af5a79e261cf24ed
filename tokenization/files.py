"""Files that are whole or not there: how both packages write.

    writing(path)    the file is written beside its target, flushed to the disk, and then takes its name
    making(path)     the same for a new file or folder that a library writes by its path

Whoever reads sees the old content or the new, never a part of either, whenever the process or the power ends. Nothing
is written through a link: the new file takes the link's place. A temporary name says which process of which host
writes there; what a killed process has left is deleted by the next one that writes the same file.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenization.errors import InputError

HOST = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname())[:40]
FOREIGN_SECONDS = 24 * 60 * 60  # another host's process counts as ended when it has not written for so long


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that stands under its name when the block ends well; until then, and otherwise, what stood there stays."""
    with writing_together(path) as (file,):
        yield file


@contextlib.contextmanager
def writing_together(*names: str | os.PathLike) -> Iterator[list[BinaryIO]]:
    """Files that are all whole before the first takes its name; they take them in this order."""
    paths = [Path(name) for name in names]
    temporaries = [temporary_name(path) for path in paths]
    files: list[BinaryIO] = []
    new_folders = missing_folders(paths)
    try:
        for path, temporary in zip(paths, temporaries, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            delete_leftovers(path)
            files.append(open(temporary, "xb"))  # noqa: SIM115
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        for path, temporary in zip(paths, temporaries, strict=True):
            os.replace(temporary, path)
        for folder in dict.fromkeys(path.parent for path in paths):
            flush(folder)
    except OSError as error:
        raise of_file(error, paths[-1], temporaries) from None
    finally:
        for file in files:
            with contextlib.suppress(OSError):  # a full disk says so again
                file.close()
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink()
        delete_empty(new_folders)


@contextlib.contextmanager
def making(name: str | os.PathLike) -> Iterator[Path]:
    """Where a new file or folder is to be written; when the block ends well, it is moved to its name.

    It has the rights that the umask leaves, whatever the library that writes it thinks of them.
    """
    path = Path(name)
    folder, new_folders = temporary_name(path), missing_folders([path])
    made = folder / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_leftovers(path)
        folder.mkdir()
        yield made
        rights = folder.stat().st_mode
        for entry in [made, *made.rglob("*")]:
            entry.chmod(rights if entry.is_dir() else rights & 0o666)
            flush(entry)
        os.rename(made, path)
        flush(path.parent)
    except OSError as error:
        raise of_file(error, path, [folder, made]) from None
    except InputError as error:
        raise InputError(str(error).replace(str(made), str(path))) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        delete_empty(new_folders)


def missing_folders(paths: list[Path]) -> list[Path]:
    """Those that are still to be made for the paths, the innermost first."""
    parents = (parent for path in paths for parent in path.parents)
    return [folder for folder in dict.fromkeys(parents) if not os.path.lexists(folder)]


def delete_empty(folders: list[Path]) -> None:
    """Those that were made for what could not be written; the others are not empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def of_file(error: OSError, path: Path, temporaries: list[Path]) -> OSError:
    """The same error with the name that was asked for: a failed write names no file, or a temporary one."""
    ours = error.filename is None or any(str(error.filename).startswith(str(temporary)) for temporary in temporaries)
    return OSError(error.errno, error.strerror, str(path)) if ours and error.errno is not None else error


def flush(path: Path) -> None:
    """Has the disk keep a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- temporary names -------------------------------------------------------------------------------------------------


def stem(path: Path) -> str:
    """The beginning of a temporary name, which must not become too long for a name."""
    return f".{os.fsencode(path.name)[:100].decode(errors='ignore')}."


def temporary_name(path: Path) -> Path:
    return path.with_name(f"{stem(path)}{HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def delete_leftovers(path: Path) -> None:
    """Deletes what processes that have ended left of this file or folder."""
    pattern = re.compile(re.escape(stem(path)) + r"([0-9A-Za-z-]*)\.(\d+)\.[0-9a-f]{8}\.tmp")
    with os.scandir(path.parent) as entries:
        leftovers = [(entry, match) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for entry, match in leftovers:
        with contextlib.suppress(FileNotFoundError):  # another process deletes them, too
            seconds = time.time() - entry.stat(follow_symlinks=False).st_mtime
            if is_alive(int(match[2])) if match[1] == HOST else seconds < FOREIGN_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # it is somebody else's
        return True
    return True
