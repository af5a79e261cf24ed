"""The plan of a work: groups of consecutive input files, and a digest of all that each group's result follows from.

    inputs -> groups of about group_bytes each -> plan.json in the work folder

A plan follows from the files' names, sizes and versions, and from the settings, so that every host makes the same one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenization.errors import InputError
from tokenization.files import write_text
from tokenization.text.places import Place, Url, size_of, version_of
from tokenization.tokens.token_index import PLAN

GROUP_BYTES = 1 << 30


class Source(NamedTuple):
    """An input file as it was when the plan was made."""

    place: Place
    size: int
    version: int | str  # when it changed, in nanoseconds; of a URL what its server says, or ""

    @classmethod
    def of(cls, place: Place) -> "Source":
        """Looks at a file; at a URL's anew, whatever is known of it."""
        place = Url(str(place)) if isinstance(place, Url) else place
        return cls(place, size_of(place), version_of(place))

    @property
    def entry(self) -> list[int | str]:
        """What the plan says of the file; its name does not depend on the current folder."""
        name = str(self.place) if isinstance(self.place, Url) else os.path.abspath(self.place)
        return [name, self.size, self.version]


class Group(NamedTuple):
    """Consecutive files that one task takes."""

    number: int
    name: str  # of the result in the work folder
    sources: tuple[Source, ...]
    followed: bool  # whether another group follows
    digest: str  # of all that the result follows from

    def __str__(self) -> str:
        """The group's name and files, for messages."""
        others = f" and {len(self.sources) - 1:,} more" if len(self.sources) > 1 else ""
        return f"{self.name} of {self.sources[0].place}{others}"

    @classmethod
    def of(cls, number: int, name: str, sources: Sequence[Source], followed: bool, about: Any) -> "Group":
        """Makes a group. about: what its result follows from, too."""
        digest = digest_of([about, [source.entry for source in sources], followed])
        return cls(number, name, tuple(sources), followed, digest)

    @property
    def files(self) -> list[Place]:
        """The files themselves."""
        return [source.place for source in self.sources]

    def check_unchanged(self) -> None:
        """Raises InputError where a file is not what it was when the plan was made."""
        for source in self.sources:
            if Source.of(source.place) != source:
                raise InputError(f"{source.place}: has changed since the command began; run it again")


@dataclass(frozen=True)
class Plan:
    """The groups of a job, and the settings that its results depend on.

    work: "encoding" or "counting".
    """

    work: str
    settings: Mapping[str, Any]
    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls, work: str, files: Sequence[Place], group_bytes: int, settings: Mapping[str, Any], suffix: str
    ) -> "Plan":
        """Makes the plan. suffix: of the names of the results."""
        cut = cut_into_groups([Source.of(file) for file in files], group_bytes)
        last = len(cut) - 1
        digits = max(5, len(str(len(cut))))  # so that their order is that of their names
        groups = (
            Group.of(number, f"{number:0{digits}}{suffix}", sources, number < last, [work, settings])
            for number, sources in enumerate(cut)
        )
        return cls(work, settings, tuple(groups))

    def ending_with(self, last: Group) -> "Plan":
        """Returns the plan with a group that is not followed by any text."""
        about = [self.work, self.settings]
        ending = Group.of(last.number, last.name, last.sources, False, about)
        return replace(self, groups=tuple(ending if group == last else group for group in self.groups))

    @property
    def text(self) -> str:
        """The plan as JSON."""
        groups = {
            group.name: {
                "digest": group.digest,
                "followed": group.followed,
                "files": [source.entry for source in group.sources],
            }
            for group in self.groups
        }
        return json.dumps({"work": self.work, "settings": self.settings, "groups": groups}, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Writes plan.json, unless it is there already."""
        path = folder / PLAN
        with suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == self.text:
                return
        write_text(path, self.text)

    def difference(self, before: Mapping[str, Any]) -> str:
        """Says in a few words how the plan differs from one that was read; "" where it does not."""
        groups = json.loads(self.text)["groups"]
        if groups == before["groups"]:
            return ""
        here, there = (
            {name: about for entry in plan.values() for name, *about in entry["files"]}
            for plan in (groups, before["groups"])
        )
        for name in here.keys() | there.keys():
            if name not in here or name not in there:
                return f"{name} is {'new' if name in here else 'no longer among the inputs'}"
        changed = [name for name, about in here.items() if about != there[name]]
        return f"{changed[0]} has changed" if changed else "settings have changed"


def cut_into_groups(files: Sequence[Source], group_bytes: int) -> list[list[Source]]:
    """Cuts the files into groups of consecutive ones: a group ends before a file with which it would be too large.

    Empty files, in which there is nothing to read, are left out; if all are empty, one stays, to be refused.
    """
    full = [file for file in files if file.size or isinstance(file.place, Url) or not file.place.is_file()]
    groups: list[list[Source]] = []
    room = 0
    for file in full or files[:1]:
        if not groups or file.size > room:
            groups.append([])
            room = group_bytes
        groups[-1].append(file)
        room -= file.size
    return groups


def digest_of(about: Any) -> str:
    """Returns the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def read_plan(folder: Path, work: str) -> dict[str, Any] | None:
    """Returns the plan that a folder holds, as JSON has it, or None.

    Raises InputError for a plan that is damaged or of another job, and where the folder holds other files without one.
    """
    path = folder / PLAN
    try:
        plan: dict[str, Any] = json.loads(path.read_bytes())
        for name, entry in plan["groups"].items():
            if name != Path(name).name or name.startswith(".") or type(entry["digest"]) is not str:
                raise ValueError
            for _name, _size, _version in entry["files"]:
                pass
        if plan["work"] != work:
            raise ValueError
    except FileNotFoundError:
        holds_others = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
        if path.exists():  # another host has written it meanwhile, and what it has listed with it
            return read_plan(folder, work)
        if holds_others:
            raise InputError(f"{folder}: holds other files; choose a new folder, or an empty one") from None
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            f"{path}: is not the plan of an interrupted {work}; delete the folder, and start again"
        ) from None
    return plan
