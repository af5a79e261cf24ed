"""Atomic writes, for both packages: a file is there as a whole, or not at all.

    writing(path)    opens a file beside its target, flushes it to the disk, and renames it to the target
    making(path)     does the same for a new file or folder that a library writes by its path

A reader sees the old content or the new, never a mixture, no matter when the process is killed or the power fails. A
symbolic link is replaced, not followed. A temporary name holds the host, the process id and a random word. A killed
process leaves its temporary file behind; the next write of the same file deletes it, if the process has ended or has
not written for a day. Process ids of other hosts cannot be looked up, and one of this host may have been given to
another process since, so that for these the day alone decides.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from tokenization.errors import InputError
from tokenization.systems import flush, is_alive

HOST = re.sub(r"[^0-9A-Za-z-]", "-", socket.gethostname())[:40]
ABANDONED_SECONDS = 24 * 60 * 60  # without a write, whoever the writer is


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a binary file that replaces `path` when the block ends without an exception.

    Missing folders are made. After an exception the old file is unchanged and nothing else is left. Raises OSError
    with the name of the target, and not the temporary one.
    """
    with writing_together(path) as (file,):
        yield file


@contextlib.contextmanager
def writing_together(*names: str | os.PathLike[str]) -> Iterator[list[BinaryIO]]:
    """Opens several files as `writing` does; none is replaced before all are on the disk, and then in this order."""
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
            file.close()  # Windows does not rename an open file
        for path, temporary in zip(paths, temporaries, strict=True):
            os.replace(temporary, path)
        for folder in dict.fromkeys(path.parent for path in paths):
            flush(folder)
    except OSError as error:
        raise of_file(error, paths[-1], temporaries) from None
    finally:
        for file in files:
            with contextlib.suppress(OSError):  # a full disk fails once more
                file.close()
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink()
        delete_empty(new_folders)


@contextlib.contextmanager
def making(name: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path for a new file or folder, which is moved to `name` when the block ends.

    Its permissions follow the umask, whatever the library that writes it sets.
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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces a file's content by the text, as UTF-8."""
    write_texts({Path(path): text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Replaces several files, {path: text}; none before all are on the disk."""
    with writing_together(*texts) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text.encode())


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- folders and errors ----------------------------------------------------------------------------------------------


def missing_folders(paths: list[Path]) -> list[Path]:
    """Lists the folders that do not exist yet above these paths, innermost first."""
    parents = (parent for path in paths for parent in path.parents)
    return [folder for folder in dict.fromkeys(parents) if not os.path.lexists(folder)]


def delete_empty(folders: list[Path]) -> None:
    """Deletes those of the folders that are empty: what they were made for could not be written."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def of_file(error: OSError, path: Path, temporaries: list[Path]) -> OSError:
    """Returns the error with the name of the target: a failed write has no file name, or a temporary one."""
    ours = error.filename is None or any(str(error.filename).startswith(str(temporary)) for temporary in temporaries)
    return OSError(error.errno, error.strerror, str(path)) if ours and error.errno is not None else error


# --- temporary names -------------------------------------------------------------------------------------------------


def stem(path: Path) -> str:
    """Returns the beginning of the temporary names of a path; a long name is cut, to leave room for the rest."""
    return f".{os.fsencode(path.name)[:100].decode(errors='ignore')}."


def temporary_name(path: Path) -> Path:
    """Returns a name beside the path that no other process or thread uses."""
    return path.with_name(f"{stem(path)}{HOST}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def is_being_written(path: Path) -> bool:
    """Tells whether a path is a temporary name of another process that is alive, here, and has written lately."""
    match = re.fullmatch(r"\..*\.([0-9A-Za-z-]*)\.([0-9]+)\.[0-9a-f]{8}\.tmp", path.name)
    if match is None or match[1] != HOST or int(match[2]) == os.getpid() or not is_alive(int(match[2])):
        return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime < ABANDONED_SECONDS
    return False


def delete_leftovers(path: Path) -> None:
    """Deletes the temporary files and folders that killed processes left of this path."""
    pattern = re.compile(re.escape(stem(path)) + r"([0-9A-Za-z-]*)\.([0-9]+)\.[0-9a-f]{8}\.tmp")
    with os.scandir(path.parent) as entries:
        leftovers = [(entry, match) for entry in entries if (match := pattern.fullmatch(entry.name))]
    for entry, match in leftovers:
        with contextlib.suppress(OSError):  # another process deletes them, too; another user's are left
            ended = match[1] == HOST and not is_alive(int(match[2]))
            if not ended and time.time() - entry.stat(follow_symlinks=False).st_mtime < ABANDONED_SECONDS:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)
