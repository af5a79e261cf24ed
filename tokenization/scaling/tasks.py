"""Tasks: from files to one file in the work folder, each done once, wherever and however often it is started.

    CountGroup     text files of a group -> a counts file
    AddCounts      counts files          -> their sum
    EncodeGroup    text files of a group -> a token file, a shard of a token set

The output is renamed when it is complete. Then a record follows, .tasks/NAME.json: the digest of all that the output
follows from, and the output's own digest. A task whose record and output agree is not done again. Two hosts that do the
same task write the same bytes; what a host with another plan has written agrees with no record of this one.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tokenization.encoding import EncodingReport, NoText, encode_files
from tokenization.errors import InputError
from tokenization.files import write_text
from tokenization.scaling.counts_file import Counts, add_up, read_counts
from tokenization.scaling.plan import Group
from tokenization.text.corpus import Corpus
from tokenization.text.documents import holds_documents
from tokenization.tokenizer import Tokenizer
from tokenization.tokens.token_file import TokenFile
from tokenization.training import TrainingReport, count_files

RECORDS = ".tasks"


class Result(NamedTuple):
    """What became of a task."""

    name: str  # of its output
    state: str  # "kept": was done before; "made"; "mended": was damaged or missing, and is made again
    output: str | None  # the output's digest; None where there is nothing to write
    report: Any = None  # how it was made, a TrainingReport or an EncodingReport
    counts: tuple[Any, ModuleType] | None = None  # of a CountGroup that keeps what the kernels have counted


class Record(NamedTuple):
    """What the folder says of a task that is done."""

    task: str  # the digest of all that its output follows from
    output: str | None  # as in Result


@dataclass(frozen=True)
class Reading:
    """How text files are read."""

    num_processes: int | None = None
    errors: str = "strict"
    text_field: str | None = None
    progress: bool = False
    text_bytes: int = 0  # of all files together, or as many as make the kernels worthwhile

    def field_of(self, group: Group) -> str | None:
        """Returns the field that holds the text; None for a group without records, which has no fields."""
        return self.text_field if any(holds_documents(file.name) for file in group.files) else None


def record_path(folder: Path, name: str) -> Path:
    """Returns the path of the record of a task, by its output's name."""
    return folder / RECORDS / f"{name}.json"


def read_record(folder: Path, name: str) -> Record | None:
    """Returns the record of a task, or None where it is not done or the record is damaged."""
    try:
        return Record(**json.loads(record_path(folder, name).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def is_done(folder: Path, name: str, digest: str) -> bool:
    """Returns whether a task is recorded as done and its output is there; what it holds is not read."""
    record = read_record(folder, name)
    return record is not None and record.task == digest and (record.output is None or (folder / name).is_file())


def do_once(
    folder: Path, name: str, digest: str, make: Callable[[Path], str | None], check: Callable[[Path], str]
) -> Result:
    """Makes an output unless it is there.

    digest: of all that the output follows from. make: writes it, and returns its own digest; check: verifies it and
    returns the same, or raises InputError.
    """
    state, record = "made", read_record(folder, name)
    if record and record.task == digest:
        with suppress(InputError):
            if record.output is None or check(folder / name) == record.output:
                return Result(name, "kept", record.output)
        state = "mended"
    output = make(folder / name)
    with suppress(FileNotFoundError):  # another process completes the job at this moment, and deletes all records
        write_text(record_path(folder, name), json.dumps(Record(digest, output)._asdict()) + "\n")
    return Result(name, state, output)


def forget_all(folder: Path) -> None:
    """Deletes the records of all tasks."""
    shutil.rmtree(folder / RECORDS, ignore_errors=True)


# --- counting --------------------------------------------------------------------------------------------------------


class Sum(NamedTuple):
    """Counts files that one task adds up."""

    name: str
    parts: tuple[str, ...]
    digest: str  # of those of the parts

    def __str__(self) -> str:
        """The name, for messages."""
        return self.name


@dataclass(frozen=True)
class CountGroup:
    """Counts the pre-tokens in the files of a group."""

    folder: Path
    count: int  # of groups
    special_tokens: tuple[str, ...]
    pattern: str
    reading: Reading = field(default_factory=Reading)
    keeps: bool = False  # what the kernels have counted, in memory as well

    def __call__(self, group: Group) -> Result:
        report, kept = TrainingReport(), []

        def make(path: Path) -> str:
            about = self.reading
            title = f"counting {group.number + 1} of {self.count}" if about.progress else ""
            corpus = Corpus(group.files, about.errors, title, about.field_of(group))
            processes, size = about.num_processes, about.text_bytes
            counts, native = count_files(corpus, self.special_tokens, self.pattern, processes, report, size)
            output = Counts.of(counts, native, report.text_bytes).write(path)
            group.check_unchanged()
            if native and self.keeps:
                kept.append((counts, native))
            return output

        result = do_once(self.folder, group.name, group.digest, make, counts_sha256)
        return result._replace(report=report, counts=kept[0] if kept else None)


@dataclass(frozen=True)
class AddCounts:
    """Adds counts files up. Raises InputError for one that is damaged or not what its record says."""

    folder: Path

    def __call__(self, task: Sum) -> Result:
        def make(path: Path) -> str:
            return add_up(map(self.read, task.parts)).write(path)

        return do_once(self.folder, task.name, task.digest, make, counts_sha256)

    def read(self, name: str) -> Counts:
        """Returns the counts of a file that is recorded as done."""
        counts, digest = read_counts(self.folder / name)
        record = read_record(self.folder, name)
        if record is None or record.output != digest:
            raise InputError(f"{self.folder / name}: another command has replaced it meanwhile; run this one again")
        return counts


def counts_sha256(path: Path) -> str:
    """Verifies a counts file and returns its digest. Raises InputError where it is damaged."""
    return read_counts(path)[1]


# --- encoding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodeGroup:
    """Encodes the files of a group into a shard; where they hold no text, there is none."""

    tokenizer: Tokenizer
    folder: Path
    count: int  # of groups
    reading: Reading = field(default_factory=Reading)

    def __call__(self, group: Group) -> Result:
        report = EncodingReport()

        def make(path: Path) -> str | None:
            about, output = self.reading, None
            title = f"encoding {group.number + 1} of {self.count}" if about.progress else ""
            with suppress(NoText):
                output = encode_files(
                    self.tokenizer,
                    group.files,
                    path,
                    about.num_processes,
                    about.errors,
                    title,
                    report,
                    about.field_of(group),
                    group.followed,
                    about.text_bytes,
                ).description.data_sha256
            group.check_unchanged()
            return output

        return do_once(self.folder, group.name, group.digest, make, shard_sha256)._replace(report=report)


def shard_sha256(path: Path) -> str:
    """Verifies a shard and returns the digest of its data. Raises InputError where it is damaged."""
    return TokenFile.open(path).description.data_sha256
