"""Encoding files into a token set, a shard for each group of files, so that an interrupted encoding goes on.

    inputs -> groups of consecutive files, of about shard_bytes each -> a token file each -> index.json, written last

A file is never cut, and the shards one after another are, byte for byte, the one token file of all inputs. Each shard
follows from its inputs, the tokenizer and the settings alone. plan.json, which is deleted in the end, has a digest of
these for each shard: whatever is whole and has the same digest is kept when the same command runs again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenization.document_digests import SUFFIX, digests_path
from tokenization.documents import check_text_field, holds_documents
from tokenization.encoding import EncodingReport, NoText, encode_files
from tokenization.errors import InputError
from tokenization.files import delete_empty, flush, missing_folders, write_text
from tokenization.places import Place, Url, size_of
from tokenization.text_files import TextFiles
from tokenization.token_file import TokenFile
from tokenization.token_format import description_path, is_token_file
from tokenization.token_index import INDEX, PLAN, write_index

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Settings:
    """How the files are read."""

    num_processes: int | None = None
    errors: str = "strict"
    text_field: str | None = None
    progress: bool = False


class SetEncoding:
    """The encoding of files into a folder: which shards there will be, and which are done already.

    Raises InputError where the folder holds anything but an encoding that was interrupted.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        inputs: Sequence[str | os.PathLike[str]],
        folder: Path,
        shard_bytes: int = SHARD_BYTES,
        settings: Settings | None = None,
    ):
        self.tokenizer, self.folder, self.settings = tokenizer, folder, settings or Settings()
        files = TextFiles(inputs).files
        check_text_field(self.settings.text_field, (file.name for file in files))
        groups = group(files, shard_bytes)
        digits = max(5, len(str(len(groups))))  # so that their order is that of their names
        self.shards = {f"{number:0{digits}}.bin": files for number, files in enumerate(groups)}
        self.plan = {name: self._digest(name) for name in self.shards}
        before = read_plan(folder)
        self.done = [name for name in self.plan if before.get(name) == self.plan[name] and is_whole(folder / name)]
        self._not_done = [name for name in before if name not in self.done]
        self.outdated = [name for name in self._not_done if (folder / name).exists()]

    def _digest(self, name: str) -> str:
        """Returns the digest of all that a shard follows from; of its files the names, sizes and times of change."""
        files = [(place_name(file), size_of(file), changed(file)) for file in self.shards[name]]
        about = (self.tokenizer.digest, self.settings.errors, self.settings.text_field, self._is_followed(name), files)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def _is_followed(self, name: str) -> bool:
        return name != list(self.shards)[-1]

    def run(self, report: EncodingReport | None = None) -> TokenFile:
        """Encodes what is not done yet, writes the index, and opens the set. After a failure, what is done stays."""
        for name in self._not_done:
            for path in (self.folder / name, description_path(self.folder / name), digests_path(self.folder / name)):
                path.unlink(missing_ok=True)
        new_folders = missing_folders([self.folder / PLAN])
        write_text(self.folder / PLAN, json.dumps({"shards": self.plan}, indent=2) + "\n")
        try:
            for name in self.shards:
                if name not in self.done:
                    self._encode(name, report, self._is_followed(name))
                    self.done.append(name)
            self._close_last(report)
        finally:
            if not self._written():
                (self.folder / PLAN).unlink()
                delete_empty(new_folders)
        write_index(self.folder)
        (self.folder / PLAN).unlink()
        return TokenFile.open(self.folder)

    def _encode(self, name: str, report: EncodingReport | None, followed: bool) -> None:
        """Writes a shard; where its files hold no text, there is none, but InputError if there is no other either."""
        about, files = self.settings, self.shards[name]
        title = f"encoding {len(self.done) + 1} of {len(self.shards)}" if about.progress else ""
        field = about.text_field if any(holds_documents(file.name) for file in files) else None
        output = self.folder / name
        try:
            encode_files(
                self.tokenizer, files, output, about.num_processes, about.errors, title, report, field, followed
            )
        except NoText:
            if not followed and not self._written():
                raise

    def _written(self) -> list[str]:
        return [name for name in self.shards if (self.folder / name).is_file()]

    def _close_last(self, report: EncodingReport | None) -> None:
        """Encodes the last shard once more, if the files behind it hold no text, from which it was to be separated."""
        last = self._written()[-1]
        if self._is_followed(last):
            self._encode(last, report, followed=False)


def group(files: Sequence[Place], shard_bytes: int) -> list[list[Place]]:
    """Cuts the files into groups of consecutive ones: a group ends before a file with which it would be too large.

    Empty files, in which there is nothing to encode, are left out; if all are empty, one stays, to be refused.
    """
    full = [file for file in files if isinstance(file, Url) or not file.is_file() or file.stat().st_size]
    groups: list[list[Place]] = []
    room = 0
    for file in full or files[:1]:
        if not groups or size_of(file) > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(file)
        room -= size_of(file)
    return groups


def place_name(file: Place) -> str:
    """Returns the name of a file that does not depend on the current folder."""
    return str(file) if isinstance(file, Url) else os.path.abspath(file)


def changed(file: Place) -> int:
    """Returns when a file was changed, in nanoseconds; 0 of a URL, which does not always tell."""
    return 0 if isinstance(file, Url) else file.stat().st_mtime_ns


def is_whole(path: Path) -> bool:
    """Returns whether a token file is there and agrees with its digest."""
    try:
        TokenFile.open(path)
    except InputError:
        return False
    return True


def read_plan(folder: Path) -> dict[str, Any]:
    """Returns the plan that an interrupted encoding has left in a folder: a digest for each shard's name.

    Raises InputError where the folder holds anything else.
    """
    if (folder / INDEX).exists():
        raise InputError(f"{folder}: holds a token set already; choose another folder, or replace it with --overwrite")
    if not (folder / PLAN).exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"{folder}: holds other files; choose a new folder, or an empty one")
        return {}
    try:
        plan: dict[str, Any] = json.loads((folder / PLAN).read_bytes())["shards"]
        if any(name != Path(name).name or not name.endswith(".bin") for name in plan):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            f"{folder / PLAN}: is not the plan of an encoding; delete the folder, and start again"
        ) from None
    return plan


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields the folder to encode into instead of a token set, which is replaced when the block ends.

    That is a hidden one beside it, in which an interrupted encoding goes on; where there is no set, the folder itself.
    Until the end the old set stays as it is. Between two renames there is none for a moment; after a kill at that
    moment, the old one is put back here. Raises InputError where the folder holds anything else.
    """
    folder = Path(os.path.realpath(folder))
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    if not (folder / INDEX).exists():
        yield folder
        return
    for path in folder.iterdir():
        shard = path.with_suffix("") if path.suffix in (".json", SUFFIX) else path
        if not (path.name == INDEX or path.name.startswith(".") or (path.is_file() and is_token_file(shard))):
            raise InputError(f"{path}: is no part of the token set to be replaced; move it away")
    shutil.rmtree(old, ignore_errors=True)
    if (new / INDEX).exists():  # complete, but perhaps of other inputs
        shutil.rmtree(new)
    yield new
    os.rename(folder, old)
    os.rename(new, folder)
    flush(folder.parent)
    shutil.rmtree(old)
