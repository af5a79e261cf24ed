"""Counts the pre-tokens of files in groups, so that an interrupted command can go on.

    inputs -> groups -> a counts file each -> their sums, FAN_IN at a time -> one counts file

That file follows from the text and from how it is split, and not from the engine or the groups. The work folder is
kept: another vocabulary of the same text is learnt from it without counting.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenization.errors import InputError
from tokenization.scaling.counts_file import FORMAT, Counts, for_learning
from tokenization.scaling.engines import Engine, Threads
from tokenization.scaling.plan import GROUP_BYTES, Plan, digest_of
from tokenization.scaling.tasks import AddCounts, CountGroup, Reading, Result, Sum, read_record
from tokenization.scaling.work import Work
from tokenization.text.places import Place
from tokenization.training import TrainingReport

FAN_IN = 16


class GroupCounting(Work):
    """The counting of files into a work folder: which groups there are, and which are done already.

    Raises InputError where the folder holds anything but the results of such a job; see Work.
    """

    def __init__(
        self,
        files: Sequence[Place],
        special_tokens: Sequence[str],
        pattern: str,
        folder: Path,
        group_bytes: int = GROUP_BYTES,
        reading: Reading | None = None,
        engine: Engine | None = None,
    ):
        reading = reading or Reading()
        self.special_tokens, self.pattern = tuple(special_tokens), pattern
        settings = {
            "special_tokens": list(special_tokens),
            "pattern": pattern,
            "errors": reading.errors,
            "text_field": reading.text_field,
            "format": FORMAT,  # of the counts files
        }
        plan = Plan.of("counting", files, group_bytes, settings, ".counts")
        super().__init__(plan, folder, reading, engine or Threads())

    def run(self, report: TrainingReport | None = None) -> tuple[Any, ModuleType | None] | None:
        """Counts what is not done yet, and returns the sum; None if the engine takes only a part of the groups.

        report: filled in. After a failure, what is done stays. Returns a native.Table and the module with the kernels,
        or a Counter and None. A single group that the kernels have just counted is not read from its file.
        """
        report = report if report is not None else TrainingReport()
        start = time.perf_counter()
        self.begin()
        try:
            groups = len(self.plan.groups)
            keeps = groups == 1 and isinstance(self.engine, Threads)
            task = CountGroup(self.folder, groups, self.special_tokens, self.pattern, self.reading, keeps)
            results = self.run_tasks(task, self.plan.groups, "counting")
        finally:
            self.end()
        counted = time.perf_counter()
        if not self.engine.takes_all:
            return None
        counts = self._sum(results[0], report)
        if not report.pretokens:
            raise InputError(f"{self.plan.groups[0].files[0]}: no text to learn from; the input is empty")
        made = [result.report.path for result in results if result.state != "kept"]
        report.path = made[-1] if made else "an earlier command, which counted"
        report.seconds |= {"counting": counted - start, "adding": time.perf_counter() - counted}
        return counts

    def _sum(self, first: Result, report: TrainingReport) -> tuple[Any, ModuleType | None]:
        """Returns the sum; fills in the report. first: of the groups."""
        if first.counts:
            report.text_bytes, report.pretokens = first.report.text_bytes, first.report.pretokens
            report.unique_pretokens = first.report.unique_pretokens
            return first.counts
        counts = self._add_up()
        report.text_bytes, report.pretokens = counts.text_bytes, counts.total
        report.unique_pretokens = len(counts.rows)
        return for_learning(counts)

    def _add_up(self) -> Counts:
        add = AddCounts(self.folder)
        names, level = [group.name for group in self.plan.groups], 0
        while len(names) > 1:
            level += 1
            sums = []
            for number, first in enumerate(range(0, len(names), FAN_IN)):
                parts = tuple(names[first : first + FAN_IN])
                records = [read_record(self.folder, name) for name in parts]
                digest = digest_of([record and record.output for record in records])
                sums.append(Sum(f"sum-{level}-{number:05}.counts", parts, digest))
            self.run_tasks(add, sums, "adding")
            names = [task.name for task in sums]
        return add.read(names[0])
