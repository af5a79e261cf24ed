"""Turns what was kept of the documents into findings: how many documents each concerns, and which."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tokenization.checking.examining import Documents, examine_training, examine_validation
from tokenization.checking.oddities import INCOMPRESSIBLE, REPETITIVE, SIGNS
from tokenization.checking.signatures import near_pairs
from tokenization.checking.spans import SpanIndex, look_up
from tokenization.errors import InputError
from tokenization.text.corpus import Corpus
from tokenization.text.documents import check_text_field
from tokenization.text.places import Place
from tokenization.text.text_files import TextFiles

TITLES = {  # of findings: what it says of a document
    "duplicate": "the same as an earlier document",
    "near_duplicate": "nearly the same as an earlier one",
    "whole_in_training": "whole in training",
    "near_training": "nearly the same as one in training",
    "part_in_training": "a long part in training",
    "repetitive": "very repetitive",
    "incompressible": "hardly compressible",
    **{name: f"has {what}" for name, (_, what) in SIGNS.items()},
}
NEVER_TOLERATED = ("whole_in_training",)
About = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is looked for, and how the files are read."""

    run_words: int = 50  # that training and validation must share in a row to be found
    similarity: float = 0.8  # of nearly equal documents: the Jaccard index of their runs of 5 words
    num_processes: int = 1
    errors: str = "strict"
    text_field: str | None = None
    progress: bool = False


@dataclass(frozen=True)
class Text:
    """The documents of training or of validation."""

    name: str  # "training" or "validation"
    files: Sequence[Place]
    documents: Documents

    def __len__(self) -> int:
        return len(self.documents.sizes)

    def place(self, number: int) -> About:
        """Returns where a document stands."""
        about = self.documents
        place = {"file": str(self.files[about.files[number]]), "document": int(about.numbers[number])}
        return place | ({"line": int(about.lines[number])} if about.lines[number] else {})

    def excerpt(self, number: int) -> About:
        """Returns what is shown of a document."""
        return {"excerpt": bytes(self.documents.excerpts[number]).decode()}


class Finding(NamedTuple):
    """The documents of a text that something was found in."""

    name: str  # in TITLES
    text: Text
    numbers: Sequence[int] | np.ndarray  # of the documents, those first that are best as examples
    more: Callable[[int], About] = lambda number: {}  # what else there is to say of one

    @property
    def share(self) -> float:
        """The share of the text's documents."""
        return len(self.numbers) / len(self.text)

    def examples(self, most: int) -> list[About]:
        """Returns where some of the documents stand, and what is there."""
        text, numbers = self.text, [int(number) for number in self.numbers[:most]]
        return [text.place(number) | text.excerpt(number) | self.more(number) for number in numbers]


def check_texts(
    train: Sequence[str | os.PathLike[str]], valid: Sequence[str | os.PathLike[str]], settings: Settings
) -> tuple[list[Text], list[Finding]]:
    """Reads the validation documents, if any, and then those for training; returns both, training first, and findings.

    Raises InputError for a file that cannot be read, and for a text without documents.
    """
    files = {name: TextFiles(inputs).files for name, inputs in (("training", train), ("validation", valid)) if inputs}
    check_text_field(settings.text_field, (file.name for places in files.values() for file in places))

    def corpus(name: str) -> Corpus:
        title = f"reading {name}" if settings.progress else ""
        return Corpus(files[name], settings.errors, title, settings.text_field)

    how = settings.run_words, settings.num_processes
    documents, spans = examine_validation(corpus("validation") if valid else None, *how)
    validation = [Text("validation", files["validation"], documents)] if valid else []
    documents, excerpts = examine_training(corpus("training"), spans, *how)
    training = Text("training", files["training"], documents)
    for text in (training, *validation):
        if not len(text):
            raise InputError(f"{text.files[0]}: has no document that is not blank; there is nothing to check")
    texts = [training, *validation]
    findings = [*in_each(texts), *near_duplicates(texts, settings.similarity)]
    for text in validation:
        findings += in_both(training, text, spans, excerpts)
    return texts, findings


def in_each(texts: Sequence[Text]) -> Iterator[Finding]:
    """Yields what is found in a text by itself."""
    for text in texts:
        yield duplicates(text)
        yield from oddities(text)


def duplicates(text: Text) -> Finding:
    """Finds the documents that an earlier one of the text is equal to, but for white space at the ends."""
    _, first, group = np.unique(text.documents.digests, return_index=True, return_inverse=True)
    first = first[group]
    again = np.flatnonzero(first != np.arange(len(text)))
    return Finding("duplicate", text, again, lambda number: {"same_as": text.place(first[number])})


def near_duplicates(texts: Sequence[Text], similarity: float) -> Iterator[Finding]:
    """Finds documents that an earlier one of the text, or one of training, is nearly equal to and none is equal to."""
    digests = np.concatenate([text.documents.digests for text in texts])
    _, first = np.unique(digests, return_index=True)
    first.sort()
    signatures = np.concatenate([text.documents.signatures for text in texts])[first]
    earlier, later = (first[numbers] for numbers in near_pairs(signatures, similarity))
    lengths = [len(text) for text in texts]
    owners, numbers = np.repeat(np.arange(len(texts)), lengths), np.concatenate([*map(np.arange, lengths)])
    kinds = (("near_duplicate", 0, 0), ("near_duplicate", 1, 1), ("near_training", 1, 0))
    for name, own, other in kinds if len(texts) == 2 else kinds[:1]:
        chosen = (owners[later] == own) & (owners[earlier] == other)
        found, one = np.unique(numbers[later[chosen]], return_index=True)
        near = dict(zip(found.tolist(), numbers[earlier[chosen]][one].tolist(), strict=True))
        yield Finding(name, texts[own], list(near), partial(near_to, texts[other], near))


def near_to(text: Text, near: Mapping[int, int], number: int) -> About:
    """Returns which document of a text another one is nearly equal to."""
    return {"similar_to": text.place(near[number])}


def oddities(text: Text) -> Iterator[Finding]:
    """Yields what single documents have; the most repetitive and the least compressible ones come first."""
    ratios, signs = text.documents.ratios, text.documents.signs
    order = np.argsort(ratios, kind="stable")
    order = order[ratios[order] > 0]

    def ratio(number: int) -> About:
        return {"compression": round(float(ratios[number]), 2)}

    yield Finding("repetitive", text, order[ratios[order] >= REPETITIVE][::-1], ratio)
    yield Finding("incompressible", text, order[ratios[order] <= INCOMPRESSIBLE], ratio)
    for bit, name in enumerate(SIGNS):
        yield Finding(name, text, np.flatnonzero(signs >> bit & 1))


def in_both(training: Text, validation: Text, spans: SpanIndex, excerpts: Mapping[int, bytes]) -> Iterator[Finding]:
    """Yields what validation shares with training.

    excerpts: of the training documents that have a run of validation's, by their numbers.
    """
    known, first = np.unique(training.documents.digests, return_index=True)
    found, places = look_up(validation.documents.digests, known)
    same = dict(zip(found.tolist(), first[places].tolist(), strict=True))
    yield Finding("whole_in_training", validation, found, lambda number: {"same_as": training.place(same[number])})
    covered = {number: cover for number, cover in spans.covered().items() if number not in same}

    def shared(number: int) -> About:
        cover = covered[number]
        about = {"shared_words": cover.words, "longest_words": cover.longest, "also_in": training.place(cover.training)}
        return about | {"excerpt": excerpts[cover.training].decode()}

    longest_first = sorted(covered, key=lambda number: (-covered[number].longest, number))
    yield Finding("part_in_training", validation, longest_first, shared)
