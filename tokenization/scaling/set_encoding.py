"""Encodes files into a token set, a shard for each group of files, so that an interrupted command can go on.

    inputs -> groups of consecutive files, of about shard_bytes each -> a token file each -> index.json, written last

A file is never cut, and the shards one after another are, byte for byte, the one token file of all inputs. Each shard
follows from its inputs, the tokenizer and the settings alone. The folder of the set is the work folder, too: plan.json
and the records of tasks.py are deleted in the end.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.encoding import EncodingReport
from tokenization.errors import InputError
from tokenization.scaling.engines import Engine, Threads
from tokenization.scaling.plan import GROUP_BYTES, Plan, read_plan
from tokenization.scaling.tasks import EncodeGroup, Reading, forget_all, is_done, read_record
from tokenization.scaling.work import Work
from tokenization.systems import flush
from tokenization.text.text_files import TextFiles, list_briefly
from tokenization.tokens.document_digests import SUFFIX
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_format import check_size, is_token_file
from tokenization.tokens.token_index import INDEX, PLAN, Index, holds_index, read_index, write_index

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer


class SetEncoding(Work):
    """The encoding of files into a folder: which shards there will be, and which are done already.

    Raises InputError where the folder holds anything but an encoding that was interrupted; see Work.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        inputs: Sequence[str | os.PathLike[str]],
        folder: Path,
        shard_bytes: int = GROUP_BYTES,
        reading: Reading | None = None,
        engine: Engine | None = None,
    ):
        if (folder / INDEX).exists():
            raise InputError(
                f"{folder}: holds a token set already; choose another folder, or replace it with --overwrite"
            )
        self.tokenizer, reading = tokenizer, reading or Reading()
        settings = {"tokenizer": tokenizer.digest, "errors": reading.errors, "text_field": reading.text_field}
        plan = Plan.of("encoding", TextFiles(inputs).files, shard_bytes, settings, ".bin")
        super().__init__(plan, folder, reading, engine or Threads())

    def run(self, report: EncodingReport | None = None) -> TokenFile | None:
        """Encodes what is not done yet, writes the index, and opens the set; after a failure, what is done stays.

        Returns None, without an index, if the engine takes only a part of the shards. report: filled in.
        """
        self.begin()
        try:
            encode = EncodeGroup(self.tokenizer, self.folder, len(self.plan.groups), self.reading)
            results = self.run_tasks(encode, self.plan.groups, "encoding")
            for result in results:
                if report is not None and result.state == "kept":
                    report.kept = True
                elif report is not None:
                    report.path = result.report.path
                    report.seconds |= result.report.seconds
            if not self.engine.takes_all:
                return None
            self._close_last(encode, {result.name for result in results if result.output})
        finally:
            self.end()
        complete(self.folder, {result.name for result in results if result.state != "kept"})
        return TokenFile.open(self.folder)

    def _close_last(self, encode: EncodeGroup, shards: set[str]) -> None:
        """Encodes the last shard once more, if the files behind it hold no text, from which it was to be separated."""
        written = [group for group in self.plan.groups if group.name in shards]
        if not written:
            first = self.plan.groups[0].files[0]
            raise InputError(f"{first}: no text to encode; the input is empty, and so are all others")
        if written[-1].followed:
            self.plan = self.plan.ending_with(written[-1])
            self.plan.write(self.folder)
            encode(self.plan.groups[written[-1].number])


def complete(folder: Path, fresh: Collection[str] = ()) -> Index:
    """Writes the index of a set whose shards are all done, and deletes the plan. Another process may do the same.

    fresh: the names of the shards that this command has written, which are not verified once more. Raises InputError
    where shards are missing, or are not those that were recorded as done.
    """
    try:
        check_shards(folder)
    except InputError:
        if not (folder / PLAN).exists() and holds_index(folder):
            forget_all(folder)  # the records of tasks that ended after it was complete
            return read_index(folder)
        raise
    index = write_index(folder, fresh)
    (folder / PLAN).unlink(missing_ok=True)
    forget_all(folder)
    return index


def check_shards(folder: Path) -> None:
    """Raises InputError unless the shards of a folder's plan are all done, and those that are recorded."""
    plan = read_plan(folder, "encoding")
    groups = plan["groups"] if plan else {}
    if missing := [name for name, group in groups.items() if not is_done(folder, name, group["digest"])]:
        names = list_briefly(list(map(Path, missing)))
        raise InputError(
            f"{folder}: {len(missing):,} of {len(groups):,} shards are not done ({names});"
            " run their parts again, or the same `tokenization encode` command without --part"
        )
    records = {name: record for name in groups if (record := read_record(folder, name)) and record.output}
    for name, record in records.items():
        if check_size(folder / name).data_sha256 != record.output:
            raise InputError(f"{folder / name}: another command has replaced it meanwhile; run this one again")
    if not records or groups[list(records)[-1]]["followed"]:
        raise InputError(
            f"{folder}: the last files hold no text; complete the set with the same `tokenization encode` command,"
            " without --part"
        )
    if others := sorted(path.name for path in folder.glob("[!.]*.bin") if path.name not in records):
        raise InputError(f"{folder / others[0]}: is not a shard of this set; move it away")


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
            raise InputError(f"{path}: is not part of the token set to be replaced; move it away")
    shutil.rmtree(old, ignore_errors=True)
    if (new / INDEX).exists():  # complete, but perhaps of other inputs
        shutil.rmtree(new)
    yield new
    os.rename(folder, old)
    os.rename(new, folder)
    flush(folder.parent)
    shutil.rmtree(old)
