"""Documents: files that hold many texts, one a record, as a stream of bytes with a mark between two of them.

    .jsonl   -> lines                -> the text of each, as UTF-8 -> BETWEEN two documents
    .parquet -> rows (parquet.py)    -'

The mark is a byte that UTF-8 never has. So the stream can be cut, counted and encoded as the text of any file is, and
yet what stands in a document cannot end it: an <|endoftext|> that is written out there is text. An empty document is
left out.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenization.errors import InputError
from tokenization.text.fields import CHATS, FieldError, find_field, json_type, remedy
from tokenization.text.packing import kind

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = ".parquet"
BETWEEN = b"\xff"
BETWEEN_CHARACTER = BETWEEN.decode(errors="surrogateescape")  # the same in a string, where no text has it either
UNLIST = "`jq -c '.[]'` writes its records, one a line"
EVERY_LINE = 'every line must be an object like {"text": "..."}'

_SURROGATES = re.compile("[\ud800-\udfff]")
_decode_json = json.JSONDecoder().decode


def holds_documents(name: str) -> bool:
    """Returns whether a file of this name is read as documents, and not as text."""
    return kind(name) in (*JSON_LINES, PARQUET)


def check_text_field(text_field: str | None, names: Iterable[str]) -> None:
    """Raises InputError for a field that is named although none of the files has records."""
    if text_field is not None and not any(map(holds_documents, names)):
        raise InputError(
            f"--text-field {text_field}: only {', '.join((*JSON_LINES, PARQUET))} files have fields, and none of these"
            " is read; leave it out"
        )


@dataclass(frozen=True)
class RecordReader:
    """Takes the text out of the records of a file.

    text_field: the field of a record that holds its text, see fields.py. errors: "strict" refuses what is not UTF-8,
    "replace" puts U+FFFD.
    """

    file: str
    text_field: str | None = None
    errors: str = "strict"

    def json_lines(self, blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Yields the documents of JSON Lines, some at a time. blocks: the file's content, cut anywhere.

        Blank lines are passed over. Raises InputError, with the number of the line, for one that has no such text.
        """
        number = 0
        for lines in cut_into_lines(blocks):
            documents = []
            for line in lines:
                number += 1
                if line.strip(b" \t\r"):  # what JSON calls white space
                    documents.append(self.text_of(line, number))
            yield documents

    def text_of(self, line: bytes, number: int) -> bytes:
        """Returns the text in a line, as UTF-8."""
        try:
            record = _decode_json(line.decode(errors=self.errors))
        except UnicodeDecodeError as error:
            raise self.not_utf8(f"line {number}", error) from None
        except (ValueError, RecursionError) as error:
            where = str(error)
            if isinstance(error, json.JSONDecodeError):
                where = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            raise self.refusal(f"line {number}", f"is not JSON ({where}); {EVERY_LINE}") from None
        if type(record) is not dict:
            todo = UNLIST if type(record) is list else EVERY_LINE
            raise self.refusal(f"line {number}", f"is {json_type(record)} and not an object; {todo}")
        try:
            path, text = find_field(record, self.text_field)
        except FieldError as error:
            raise self.refusal(f"line {number}", str(error)) from None
        name = ".".join(path)
        if type(text) is not str:
            what = f"the field {name!r} is {json_type(text)} and not a string"
            todo = "take its text out" if type(text) in (dict, list) and path[-1] not in CHATS else remedy(path[-1])
            raise self.refusal(f"line {number}", f"{what}; {todo}")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            if self.errors == "replace":
                return _SURROGATES.sub("\ufffd", text).encode()
            what = f"the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot hold"
            raise self.refusal(f"line {number}", f"the field {name!r} has {what}; use --errors replace") from None

    def valid(self, text: bytes, place: str) -> bytes:
        """Returns the text of a record as valid UTF-8. place: of the record, for the error."""
        try:
            text.decode()
        except UnicodeDecodeError as error:
            if self.errors == "replace":
                return text.decode(errors="replace").encode()
            raise self.not_utf8(place, error) from None
        return text

    def not_utf8(self, place: str, error: UnicodeDecodeError) -> InputError:
        """Returns the error for a byte of a record that is not UTF-8."""
        found = f"byte {error.start + 1} of it (0x{error.object[error.start]:02x})"
        return self.refusal(place, f"is not UTF-8 at {found}; use --errors replace")

    def refusal(self, place: str, message: str) -> InputError:
        """Returns the error for a record at this place of the file."""
        return InputError(f"{self.file}, {place}: {message}")


def cut_into_lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yields the lines without their ends, those that a block completes at a time."""
    begun: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        begun.append(first)
        if others:
            yield [b"".join(begun), *others[:-1]]
            begun = [others[-1]]
    yield [b"".join(begun)]


class DocumentStream:
    """Documents as a stream of bytes, with BETWEEN two of them."""

    def __init__(self, batches: Iterator[list[bytes]]):
        self._batches = batches
        self._waiting = memoryview(b"")
        self._separator = b""  # in front of the next document

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer with the next bytes, and returns their number, 0 at the end."""
        while not self._waiting:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            if documents := [document for document in batch if document]:
                self._waiting = memoryview(self._separator + BETWEEN.join(documents))
                self._separator = BETWEEN
        count = min(len(self._waiting), len(buffer))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count
