"""Does a job: follows a plan, runs its tasks by an engine, and keeps their results in the work folder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tokenization.errors import InputError
from tokenization.files import delete_empty, missing_folders
from tokenization.kernels import KERNELS_FROM_BYTES
from tokenization.scaling.engines import Engine
from tokenization.scaling.plan import Plan, read_plan
from tokenization.scaling.tasks import RECORDS, Reading, Result, forget_all, is_done, record_path
from tokenization.text.corpus import Corpus
from tokenization.text.documents import check_text_field
from tokenization.text.places import Place
from tokenization.tokens.token_index import PLAN

Item = TypeVar("Item")


class Work:
    """What is planned and done in a folder: the base of GroupCounting and SetEncoding.

    done: the names of the groups' results that are there. outdated: those that an earlier plan has left, and which are
    made anew. mended: those that were recorded as done, and yet damaged or missing.

    Raises InputError where the folder holds anything else; and, if the engine takes only a part of the tasks, where it
    holds another plan, for the other parts may be following that.
    """

    def __init__(self, plan: Plan, folder: Path, reading: Reading, engine: Engine):
        self.plan, self.folder, self.engine = plan, folder, engine
        self.reading = replace(reading, num_processes=reading.num_processes or 1) if engine.shows_tasks else reading
        files = [file for group in plan.groups for file in group.files]
        check_text_field(reading.text_field, (file.name for file in files))
        before = read_plan(folder, plan.work)
        self._differs = plan.difference(before) if before else ""
        if self._differs and not engine.takes_all:
            raise InputError(
                f"{folder / PLAN}: is of other inputs or settings ({self._differs}); choose another folder, or delete"
                " this one"
            )
        self.done = [group.name for group in plan.groups if is_done(folder, group.name, group.digest)]
        there = before["groups"] if before and self._differs else {}
        self.outdated = [name for name in there if name not in self.done and (folder / name).exists()]
        self.mended: list[str] = []
        self._new_folders: list[Path] = []
        self._files: list[Place] = files

    def begin(self) -> None:
        """Writes the plan; what an earlier one has left is deleted."""
        if self._differs:
            for record in (self.folder / RECORDS).glob("*.json"):
                if record.stem not in self.done:
                    record.unlink()
            for name in self.outdated:
                for path in (self.folder / name, *self.folder.glob(f"{name}.*")):
                    path.unlink(missing_ok=True)
        self._new_folders = missing_folders([record_path(self.folder, "")])
        try:
            (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
            self.plan.write(self.folder)
        except BaseException:
            delete_empty(self._new_folders)
            raise
        size = Corpus(self._files).text_bytes(KERNELS_FROM_BYTES)
        progress = self.reading.progress and not self.engine.shows_tasks
        self.reading = replace(self.reading, text_bytes=size, progress=progress)

    def run_tasks(self, function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
        """Runs the tasks, or this part of them, and keeps account of what is done."""
        results = []
        for result in self.engine.map(function, items, title):
            results.append(result)
            if result.name not in self.done:
                self.done.append(result.name)
            if result.state == "mended":
                self.mended.append(result.name)
        return results

    def end(self) -> None:
        """Deletes what `begin` made, if nothing else has come to it, from this process or another.

        Of several parts none deletes anything: another may be reading its first files, and leave no trace of that yet.
        So the folder of parts that have failed is for the same inputs and settings alone, or to be deleted by hand.
        """
        if not self.engine.takes_all:
            return
        entries = {path.name for path in self.folder.iterdir()}
        if entries <= {PLAN, RECORDS}:
            forget_all(self.folder)
            (self.folder / PLAN).unlink(missing_ok=True)
            delete_empty(self._new_folders)
