"""Reads documents with their places: the file, the number in it, and the line of a text file."""

from collections.abc import Iterator
from typing import NamedTuple

from tokenization.samples import split_documents
from tokenization.text.corpus import Corpus
from tokenization.text.documents import holds_documents

BATCH_CHARACTERS = 1 << 20


class Batch(NamedTuple):
    """Some documents in their order, none of them blank."""

    texts: list[str]
    files: list[int]  # the number of each one's file
    numbers: list[int]  # its own number in the file, from 1
    lines: list[int]  # where it begins, from 1; 0 of a record


def batches(corpus: Corpus) -> Iterator[Batch]:
    """Yields the documents of all files, about BATCH_CHARACTERS at a time."""
    batch, size = Batch([], [], [], []), 0
    for file, place in enumerate(corpus.files):
        is_record, number, line = holds_documents(place.name), 0, 1
        for text in split_documents(corpus, place):
            if body := text.lstrip():
                number += 1
                begins = 0 if is_record else line + text.count("\n", 0, len(text) - len(body))
                batch.texts.append(text)
                batch.files.append(file)
                batch.numbers.append(number)
                batch.lines.append(begins)
                size += len(text)
            if not is_record:
                line += text.count("\n")
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = Batch([], [], [], []), 0
    if batch.texts:
        yield batch
