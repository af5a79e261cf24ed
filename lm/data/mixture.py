"""Mixtures: training windows from several token files, each with a share of its own.

    "stories.bin:0.7,english.tokens:0.3"    read_sources: the paths and weights of a setting
    row r of batch i                        the source by one word that follows from (seed, i), the place by another

So a batch is a pure function of its number, as with one file. The order in which the sources are named has no effect.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import PurePath
from typing import Any

import numpy as np

from tokenization import InputError, TokenFile
from tokenization.numerals import decimal_number

MOST_SOURCES = 100  # a checkpoint lists them in its manifest
HOW = "write PATH:WEIGHT for each source, as in stories.bin:0.7,english.tokens:0.3"


@dataclass(frozen=True)
class Source:
    """A token file, and how often windows are drawn from it, relative to the others."""

    path: str
    weight: float


def read_sources(setting: str | list[dict[str, Any]]) -> list[Source]:
    """Reads data.train_path: one path, several as PATH:WEIGHT,PATH:WEIGHT, or a list of {path, weight}.

    A string is one path if there is such a file, or if no part of it ends with a number behind a colon: C:\\x.bin is.
    Raises InputError for a source without a path or a weight above 0.
    """
    if not isinstance(setting, str):
        sources = [source_of(entry) for entry in setting]
    else:
        parts = [part.strip() for part in setting.split(",")]
        forgotten = len(parts) > 1 and all(map(os.path.exists, parts))  # weights, though these are files
        if os.path.exists(setting) or not (forgotten or any(map(ends_with_number, parts))):
            return [Source(setting, 1.0)]
        for part in parts:
            if not ends_with_number(part):
                raise InputError(f"data.train_path: {part!r} has no weight; {HOW}")
        pairs = [part.rpartition(":") for part in parts]
        sources = [Source(path, decimal_number(weight.strip())) for path, _, weight in pairs]
    for source in sources:
        if not source.path.strip():
            raise InputError(f"data.train_path: the source of weight {source.weight:g} has no path; {HOW}")
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise InputError(
                f"data.train_path: the weight of {source.path} is {source.weight:g}; it must be a finite number above"
                " 0; leave a source out that is not to be read"
            )
    if not 1 <= len(sources) <= MOST_SOURCES:
        raise InputError(f"data.train_path: has {len(sources)} sources; name 1 to {MOST_SOURCES}")
    return sources


def ends_with_number(part: str) -> bool:
    """Returns whether there is a number behind the last colon, "nan" and "inf" among them."""
    try:
        decimal_number(part.rpartition(":")[2].strip())
    except ValueError:
        return False
    return ":" in part


def source_of(entry: Any) -> Source:
    """Returns the source that an entry of a list describes."""
    if not isinstance(entry, dict) or entry.keys() != {"path", "weight"} or not isinstance(entry["path"], str):
        raise InputError(f"data.train_path: {entry!r} is not a source; write {{path: stories.bin, weight: 0.7}}")
    weight = entry["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise InputError(f"data.train_path: the weight of {entry['path']} is {weight!r}; it must be a number above 0")
    return Source(entry["path"], float(weight))


class Mixture:
    """Opened sources, sorted by their digests, with the share of the windows that each gives.

    Raises InputError where two sources hold the same tokens.
    """

    def __init__(self, sources: Sequence[Source], files: Sequence[TokenFile]):
        pairs = sorted(zip(sources, files, strict=True), key=lambda pair: pair[1].description.data_sha256)
        self.paths, self.files = [source.path for source, _ in pairs], [file for _, file in pairs]
        self.digests = [file.description.data_sha256 for file in self.files]
        for number, digest in enumerate(self.digests[1:], start=1):
            if digest == self.digests[number - 1]:
                first, second = self.paths[number - 1 : number + 1]
                raise InputError(
                    f"data.train_path: {first} and {second} hold the same tokens; name them once, with the sum of their"
                    " weights"
                )
        weights = [Fraction(repr(source.weight)) for source, _ in pairs]  # of 0.7 exactly 7/10
        self.shares = [weight / sum(weights) for weight in weights]
        edges = [min(int(edge * 2**64), 2**64 - 1) for edge in accumulate(self.shares)]
        self.edges = np.array(edges[:-1], np.uint64)  # what lies below the first is the first source's, and so on
        names = [PurePath(path).name for path in self.paths]
        self.names = names if len(set(names)) == len(names) else self.paths

    @property
    def digest(self) -> str:
        """The SHA-256 of all sources' digests and shares."""
        lines = (f"{digest} {float(share)!r}\n" for digest, share in zip(self.digests, self.shares, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def draw(self, seed: int, batch_index: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each row of a batch the number of its source, int64, and a random word for its place, uint64.

        The words for the places are those of `random_starts`.
        """
        words = np.random.SeedSequence((seed, batch_index)).generate_state(2 * batch_size, np.uint64)
        return np.searchsorted(self.edges, words[batch_size:], side="right"), words[:batch_size]

    def count(self, seed: int, batches: range, batch_size: int) -> np.ndarray:
        """Returns how many windows of these batches each source gives, (sources,) int64."""
        counts = np.zeros(len(self.files), np.int64)
        for index in batches:
            counts += np.bincount(self.draw(seed, index, batch_size)[0], minlength=len(counts))
        return counts


class Drawn:
    """How many windows a run has drawn from each source until a step, counted from the batches' numbers."""

    def __init__(self, mixture: Mixture, seed: int, batch_size: int):
        self.mixture, self.seed, self.batch_size = mixture, seed, batch_size
        self.windows = np.zeros(len(mixture.files), np.int64)
        self.step: int | None = None  # counted until there

    def count_to(self, step: int, batches_per_step: int) -> None:
        """Counts on until this step; the first call only notes where counting begins."""
        if self.step is not None and step > self.step:
            batches = range(self.step * batches_per_step, step * batches_per_step)
            self.windows += self.mixture.count(self.seed, batches, self.batch_size)
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Returns the sources and counts in plain types, for a checkpoint."""
        mixture = self.mixture
        rows = zip(mixture.paths, mixture.digests, map(float, mixture.shares), self.windows.tolist(), strict=True)
        names = ("path", "data_sha256", "share", "windows")
        return {"step": self.step, "sources": [dict(zip(names, row, strict=True)) for row in rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the counts of the sources that are still there."""
        counted = {source["data_sha256"]: source["windows"] for source in state["sources"]}
        self.windows = np.array([counted.get(digest, 0) for digest in self.mixture.digests], np.int64)
        self.step = state["step"]

    def figures(self, context_length: int) -> dict[str, tuple[float, float]]:
        """Returns of each source, by name, its share of the windows so far, and the passes over it that they make."""
        tokens = np.array([len(file) for file in self.mixture.files])
        shares, passes = self.windows / max(1, self.windows.sum()), self.windows * context_length / tokens
        return dict(zip(self.mixture.names, zip(shares.tolist(), passes.tolist(), strict=True), strict=True))


def sources_of(state: dict[str, Any]) -> set[str]:
    """Returns the digests of the token files that a state of the data names, whatever their shares."""
    if "mixture" not in state:
        return {state["train_sha256"]}
    return {source["data_sha256"] for source in state["mixture"]["sources"]}


def compare_shares(old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[str]:
    """Lists the shares that differ between two states of `Drawn`, of the sources that both have."""
    before = {} if old is None else {source["data_sha256"]: source["share"] for source in old["sources"]}
    return [
        f"share of {source['path']}: {before[source['data_sha256']]:.4g} -> {source['share']:.4g}"
        for source in (new or {"sources": []})["sources"]
        if before.get(source["data_sha256"], source["share"]) != source["share"]
    ]
