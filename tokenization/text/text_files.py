"""Finding text files: those that the inputs name, and those in folders.

Nothing is left out silently: every file that is passed over has a reason. What a file holds is recognition.py's.
"""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from tokenization.errors import InputError
from tokenization.text.documents import JSON_LINES, PARQUET
from tokenization.text.packing import kind
from tokenization.text.places import Place, Url, find, is_url, normalized

TEXT_KINDS = (".txt", ".md", *JSON_LINES, PARQUET)  # in a folder; a file named by itself is read whatever its suffix


class TextFiles:
    """The text files that the inputs name, in a fixed order, each name once, and the files that are passed over.

    inputs: files, folders and globs, as paths or URLs. Folders are searched for TEXT_KINDS, compressed or not, through
    links to folders as well. A file with two names is read under both, as two documents; `summary` says so. Raises
    InputError where there is no text.
    """

    def __init__(self, inputs: Sequence[str | os.PathLike[str]]):
        self.files: list[Place] = []
        self.passed_over: dict[str, dict[Place, None]] = {}  # by the reason, each path once
        self.second_names: list[Path] = []
        self.num_inputs = len(inputs)
        self._names: set[Place] = set()
        self._files: set[tuple[int, int]] = set()  # by inode and device
        for name in map(normalized, map(str, inputs)):
            path = Path(name)
            if not name:  # from an unset shell variable; a Path of it would be the current folder
                raise InputError("the name of a text file is empty; give a file, a folder or a glob")
            if is_url(name):
                self._add_url(name)
            elif path.is_dir():
                self._add_folder(str(path), sorted(self._walk(path)))
            elif path.exists():
                self._add(path)
            else:
                self._add_glob(name)
        if not self.files:
            raise InputError("no text was named; give a file, a folder or a glob")

    def _pass_over(self, reason: str, path: Place) -> None:
        self.passed_over.setdefault(reason, {})[path] = None

    def _add(self, path: Place) -> None:
        if path in self._names:
            return
        self._names.add(path)
        self.files.append(path)
        if isinstance(path, Url):
            return
        if (file := os.stat(path)[1:3]) in self._files:
            self.second_names.append(path)
        self._files.add(file)

    def _add_glob(self, name: str) -> None:
        found = sorted(path for path in map(Path, glob.glob(name, recursive=True)) if path.is_file() or path.is_dir())
        if "**" in name:  # which has matched the files in folders as well
            found = [path for path in found if path.is_file()]
        if not found:
            cut = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", name)  # Path("s3://bucket") is s3:/bucket
            remedy = "; if it is a URL, it needs ://, which a Path makes :/, so give a string" if cut else ""
            raise InputError(f"{name}: no such file, folder or pattern{remedy}")
        for path in found:
            if path.is_dir():
                if not self._add_those_of_folder(sorted(self._walk(path))):
                    self._pass_over("a folder without text", path)
            elif belongs_to_tokenizer(path):
                self._pass_over("part of a tokenizer", path)
            else:
                self._add(path)

    def _add_folder(self, folder: str, files: Sequence[Place]) -> None:
        if not self._add_those_of_folder(files):
            raise InputError(f"{folder}: no {', '.join(TEXT_KINDS)} file in this folder; name the files")

    def _add_url(self, url: str) -> None:
        files, is_folder = find(url)
        if is_folder:
            self._add_folder(url, files)
        else:
            for file in files:
                self._add(file)

    def _add_those_of_folder(self, files: Sequence[Place]) -> int:
        """Adds the files that are text, and returns how many they are."""
        found = 0
        for file in files:
            if not has_text_name(file):
                self._pass_over(f"no {', '.join(TEXT_KINDS)}; name a file to have it read", file)
            elif is_about_others(file):
                self._pass_over("about the other files; name it to have it read", file)
            elif isinstance(file, Path) and belongs_to_tokenizer(file):
                self._pass_over("part of a tokenizer", file)
            elif isinstance(file, Path) and not file.is_file():
                self._pass_over("not a file", file)
            else:
                found += 1
                self._add(file)
        return found

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yields every file below a folder; each folder is entered once, so that links that lead back end."""

        def refuse(error: OSError) -> None:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None

        entered = {os.stat(folder)[1:3]}
        for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            new = []
            for inner in sorted(folders):
                if (key := os.stat(Path(root, inner))[1:3]) not in entered:
                    entered.add(key)
                    new.append(inner)
                else:
                    self._pass_over("another name of a folder already read", Path(root, inner))
            folders[:] = new
            yield from (Path(root, name) for name in names)

    def summary(self) -> str:
        """Says in one line how many files are read, and which are passed over, and why."""
        reasons = [
            f"{len(paths):,} ({reason}): {list_briefly(list(paths))}" for reason, paths in self.passed_over.items()
        ]
        read = "1 file" if len(self.files) == 1 else f"{len(self.files):,} files"
        if again := self.second_names:
            read += f", {len(again):,} once more under another name: {list_briefly(again)}"
        return f"reading {read}" + (f"; skipping {', and '.join(reasons)}" if reasons else "")


def has_text_name(path: Place) -> bool:
    """Returns whether the file would be read as part of a folder."""
    return kind(path.name) in TEXT_KINDS


def is_about_others(path: Place) -> bool:
    """Returns whether the file is a README.md, which as a rule describes the texts beside it."""
    return path.name.lower() == "readme.md"


def belongs_to_tokenizer(path: Path) -> bool:
    """Returns whether the file is the merges.txt of a tokenizer, and not text."""
    return path.name == "merges.txt" and path.with_name("vocab.json").exists()


def list_briefly(paths: Sequence[Place], at_most: int = 8) -> str:
    """Lists the names; where there are many, one of each suffix: "c.md and 20 more .md, d.jsonl"."""
    if len(paths) <= at_most:
        return ", ".join(path.name for path in paths)
    kinds: dict[str, list[Place]] = {}
    for path in paths:
        kinds.setdefault(path.suffix.lower(), []).append(path)
    names = [
        same[0].name + (f" and {len(same) - 1:,} more {suffix}".rstrip() if len(same) > 1 else "")
        for suffix, same in kinds.items()
    ]
    return ", ".join(names[:at_most]) + (", ..." if len(names) > at_most else "")


def reads(inputs: Sequence[str | os.PathLike[str]], path: Path) -> str | None:
    """Returns the folder or glob among the inputs that would include a new file of this name, or None."""
    for name in map(normalized, map(str, inputs)):
        above, is_text = path.resolve().parents, has_text_name(path) and not is_about_others(path)
        if Path(name).exists():
            if Path(name).is_dir() and Path(name).resolve() in above and is_text:
                return name
            continue
        pattern = os.path.abspath(name)
        if is_match(PurePath(os.path.abspath(path)).parts, PurePath(pattern).parts) or (
            is_text and any(is_match(each.parts, PurePath(pattern).parts) for each in above)
        ):
            return name
    return None


def is_match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's parts match a glob's, in which ** stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(is_match(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and is_match(parts[1:], pattern[1:])


def refuse_read_back(inputs: Sequence[str | os.PathLike[str]], path: Path, output: str | os.PathLike[str] = "") -> None:
    """Raises InputError where a new file would be text of the inputs the next time. output: its name in the message."""
    if (name := reads(inputs, path)) is not None:
        raise InputError(
            f"{output or path}: would from then on be read as text of {name}; choose another place or name"
        )
