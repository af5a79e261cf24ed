"""An open file as a stream of the bytes of its text, whatever it holds and however it is compressed.

file -> unpack -> a byte order mark is dropped                     text
               -> lines              -> DocumentStream             documents, see documents.py
     -> rows of Parquet              -> DocumentStream
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from tokenization.errors import InputError
from tokenization.text.documents import PARQUET, DocumentStream, RecordReader, holds_documents
from tokenization.text.packing import DAMAGED, damaged, kind, unpack
from tokenization.text.parquet import ParquetRows
from tokenization.text.places import Place
from tokenization.text.recognition import MARK, check_is_text

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 4096  # enough to show what a file is


@dataclass
class OpenText:
    """A file that is open for reading its text."""

    readinto: Callable[[memoryview], int]  # fills a buffer with the next bytes; returns their number, 0 at the end
    position: Callable[[], int]  # how many bytes of the file are read
    skipped: int = 0  # bytes in front of the text


class Counted:
    """An open file that counts the bytes that are read from it, as not every file can tell."""

    def __init__(self, raw: Any):
        self._raw, self._count = raw, 0

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes."""
        data: bytes = self._raw.read(size)
        self._count += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer with the next bytes, and returns their number."""
        count: int = self._raw.readinto(buffer)
        self._count += count
        return count

    def position(self) -> int:
        """Returns how many bytes were read."""
        return self._count


class TextStream:
    """The beginning of a text, which was read already, and the rest of it."""

    def __init__(self, head: bytes, rest: Any):
        self._head, self._rest = memoryview(head), rest

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer with the next bytes, and returns their number, 0 at the end."""
        if not self._head:
            count: int = self._rest.readinto(buffer)
            return count
        count = min(len(self._head), len(buffer))
        buffer[:count], self._head = self._head[:count], self._head[count:]
        return count


@contextmanager
def open_text(file: Place, text_field: str | None, errors: str) -> Iterator[OpenText]:
    """Opens a file for reading its text as bytes. text_field, errors: of documents, see RecordReader.

    Raises InputError for a file that cannot be read, is damaged or is no text; while it is read as well.
    """
    try:
        with file.open("rb") as raw:
            yield start_reading(file, raw, RecordReader(str(file), text_field, errors))
    except DAMAGED as error:
        raise damaged(str(file), error) from None
    except OSError as error:
        if error.errno is None:  # bzip2's
            raise damaged(str(file), error) from None
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def start_reading(file: Place, raw: Any, reader: RecordReader) -> OpenText:
    """Returns the text of an open file, or its documents with BETWEEN in between."""
    if kind(file.name) == PARQUET:
        rows = ParquetRows(raw, reader)
        return OpenText(DocumentStream(rows.batches()).readinto, rows.position)
    counted = Counted(raw)
    stream = unpack(file.name, counted)
    head = stream.read(HEAD_BYTES)
    check_is_text(file, head)
    skipped = len(MARK) if head.startswith(MARK) else 0
    if not holds_documents(file.name):
        return OpenText(TextStream(head[skipped:], stream).readinto, counted.position, skipped)
    blocks = chain([head[skipped:]], iter(partial(stream.read, BLOCK_BYTES), b""))
    return OpenText(DocumentStream(reader.json_lines(blocks)).readinto, counted.position)
