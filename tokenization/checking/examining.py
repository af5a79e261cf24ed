"""Examines documents, in parallel, and keeps what the findings need: a few numbers and an excerpt of each."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from tokenization.checking.oddities import compression, signs_of
from tokenization.checking.reading import Batch, batches
from tokenization.checking.signatures import signatures_of
from tokenization.checking.spans import SpanIndex, look_up
from tokenization.checking.words import HashedWords, words_of
from tokenization.errors import printable
from tokenization.text.corpus import Corpus, map_in_order

EXCERPT = 60  # characters
EXCERPT_BYTES = 100
BEFORE = 20  # characters of an excerpt in front of the sign that it shows
NONE = np.empty(0, np.int64)


class Documents(NamedTuple):
    """What is kept of n documents: an array for each, (n,), but for the signatures."""

    files: np.ndarray  # int32, the number of each one's file
    numbers: np.ndarray  # int64, in the file, from 1
    lines: np.ndarray  # int64, from 1; 0 of records
    sizes: np.ndarray  # int64, bytes
    digests: np.ndarray  # uint64, of the text without white space at its ends
    ratios: np.ndarray  # float64, see `compression`
    signs: np.ndarray  # uint8, see `signs_of`
    excerpts: np.ndarray  # UTF-8: the beginning, or where the first sign is
    signatures: np.ndarray  # (n, SIGNATURE) uint16, see `signatures_of`


class WordRuns(NamedTuple):
    """Runs of words: all of a validation batch; of a training batch, those that validation has."""

    values: np.ndarray  # (runs,) uint64 hashes; of training, int64 places in the known hashes
    documents: np.ndarray  # (runs,) int64, the document of each
    excerpts: dict[int, bytes]  # of training, by document: where its first such run begins


class Examiner:
    """Examines batches of documents. run_words: of a run. known: sorted hashes of runs to find; None takes all."""

    def __init__(self, run_words: int, known: np.ndarray | None):
        self._run_words, self._known = run_words, known

    def examine(self, batch: Batch) -> tuple[Documents, WordRuns]:
        """Returns what is kept of a batch."""
        stripped = [text.strip().encode() for text in batch.texts]
        signs = [signs_of(text) for text in batch.texts]
        shown = [excerpt(text, place) for text, (_, place) in zip(batch.texts, signs, strict=True)]
        words = [words_of(text) for text in batch.texts]
        hashed = HashedWords(words)
        documents = Documents(
            np.array(batch.files, np.int32),
            np.array(batch.numbers, np.int64),
            np.array(batch.lines, np.int64),
            np.array([len(text) for text in stripped], np.int64),
            np.array([digest(text) for text in stripped], np.uint64),
            np.array([compression(text) for text in stripped]),
            np.array([bits for bits, _ in signs], np.uint8),
            np.array(shown, f"S{EXCERPT_BYTES}"),
            signatures_of(hashed),
        )
        return documents, self._find_runs(words, hashed)

    def _find_runs(self, words: Sequence[Sequence[bytes]], hashed: HashedWords) -> WordRuns:
        if self._known is not None and not len(self._known):
            return WordRuns(NONE, NONE, {})
        runs = hashed.runs(self._run_words)
        if self._known is None:
            return WordRuns(runs.hashes, runs.documents, {})
        found, places = look_up(runs.hashes, self._known)
        owners, first = np.unique(runs.documents[found], return_index=True)
        starts = np.cumsum([0, *map(len, words)])
        excerpts = {
            int(owner): excerpt(b" ".join(words[owner][place - starts[owner] :][:EXCERPT]).decode())
            for owner, place in zip(owners, runs.places[found][first], strict=True)
        }
        return WordRuns(places, runs.documents[found], excerpts)


def examine_validation(corpus: Corpus | None, run_words: int, num_processes: int) -> tuple[Documents, SpanIndex]:
    """Reads the validation documents, if there are any, and makes the index to look their runs of words up in."""
    parts, hashes, owners, done = [nothing()], [np.empty(0, np.uint64)], [NONE], 0
    for part, runs in examined(corpus, run_words, num_processes, None) if corpus is not None else ():
        parts.append(part)
        hashes.append(runs.values)
        owners.append(runs.documents + done)
        done += len(part.sizes)
    return joined(parts), SpanIndex(np.concatenate(hashes), np.concatenate(owners), run_words)


def examine_training(
    corpus: Corpus, spans: SpanIndex, run_words: int, num_processes: int
) -> tuple[Documents, dict[int, bytes]]:
    """Reads the training documents, and marks in the index the runs that they have.

    Returns the documents, and an excerpt of each that has such a run, by its number.
    """
    parts, excerpts, done = [nothing()], dict[int, bytes](), 0
    for part, runs in examined(corpus, run_words, num_processes, spans.known):
        parts.append(part)
        spans.see(runs.values, runs.documents + done)
        excerpts |= {owner + done: shown for owner, shown in runs.excerpts.items()}
        done += len(part.sizes)
    return joined(parts), excerpts


def examined(
    corpus: Corpus, run_words: int, num_processes: int, known: np.ndarray | None
) -> Iterator[tuple[Documents, WordRuns]]:
    """Yields what is kept of each batch, in the order of the documents."""
    with closing(corpus):
        for _, result in map_in_order(_examine, batches(corpus), num_processes, _start_examining, (run_words, known)):
            yield result


_examiner: Examiner | None = None  # in each process


def _start_examining(run_words: int, known: np.ndarray | None) -> None:
    global _examiner
    _examiner = Examiner(run_words, known)


def _examine(batch: Batch) -> tuple[Documents, WordRuns]:
    assert _examiner is not None
    return _examiner.examine(batch)


def nothing() -> Documents:
    """Returns what is kept of no documents."""
    return Examiner(1, np.empty(0)).examine(Batch([], [], [], []))[0]


def joined(parts: Sequence[Documents]) -> Documents:
    """Returns the documents of all parts."""
    return Documents(*map(np.concatenate, zip(*parts, strict=True)))


def digest(text: bytes) -> int:
    """Returns 64 bits that tell a text from others."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def excerpt(text: str, sign: int = 0) -> bytes:
    """Returns a short, printable part of a text on one line: around a sign, or its beginning."""
    shown = text.lstrip()[: 2 * EXCERPT] if sign == 0 else text[max(0, sign - BEFORE) : sign + EXCERPT]
    data = printable(" ".join(re.split("[ \n\r\t]+", shown)).strip())[:EXCERPT].encode()[:EXCERPT_BYTES]
    return data.decode(errors="ignore").encode()
