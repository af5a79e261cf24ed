"""What a file's name and first bytes say about it: text, or something that would be learnt from as if it were text.

A file that is not text is refused by name, with what to do, and not guessed at.
"""

import codecs
import json
import re

from tokenization.errors import InputError
from tokenization.text.documents import JSON_LINES, UNLIST
from tokenization.text.fields import TEXT_FIELDS
from tokenization.text.packing import kind
from tokenization.text.places import Place

MARK = codecs.BOM_UTF8
OTHER_MARKS = {  # UTF-32's before UTF-16's, which begins like it
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
NOT_TEXT = (  # how the file begins, what it is, what to do
    (rb"BZh[1-9](1AY&SY|\x17rE8P)", "compressed by bzip2, but not named .bz2", "give it a name that ends with .bz2"),
    (rb"\xfd7zXZ\0", "compressed by xz, but not named .xz", "give it a name that ends with .xz"),
    (rb"\x04\x22\x4d\x18", "compressed by lz4, which is not read", "decompress it with unlz4"),
    (rb"\x1f\x8b", "compressed by gzip, but not named .gz", "give it a name that ends with .gz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd, but not named .zst", "give it a name that ends with .zst"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, which is not read", "unpack it with unzip"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive, which is not read", "unpack it"),
    (rb"Rar!\x1a\x07", "a rar archive, which is not read", "unpack it"),
    (rb"(?s).{257}ustar", "a tar archive, which is not read", "unpack it with tar"),
    (rb"WARC/\d\.\d\r?\n", "a web archive, which is not read", "write its texts to a .jsonl file"),
    (rb"PAR1\x15", "a Parquet file, but not named .parquet", "give it a name that ends with .parquet"),
    (rb"%PDF-\d", "a PDF, which is not read", "write its text to a .txt file"),
)
LINES_REMEDY = "give it a name that ends with .jsonl"
AS_IT_IS = "to have it read as it is, give it a name that ends with .txt"
TABLE = (rb"", "a table, whose separators would be text", "write its text to a .jsonl or .parquet file")
LIST = (rb"\s*\[", "a JSON list, which is not read", f"{UNLIST}, for a .jsonl file")
RECORDS = {  # by the name: how the file begins, what it is, what to do
    ".json": (LIST, (rb"\s*\{", "JSON, which is not read", f"if each line is a record, {LINES_REMEDY}")),
    ".csv": (TABLE,),
    ".tsv": (TABLE,),
}


def check_is_text(file: Place, head: bytes) -> None:
    """Raises InputError for records, other encodings, compressed and binary files, whatever --errors is.

    head: the beginning of the file, decompressed. A NUL is valid UTF-8 and does not by itself show a binary file.
    """
    for mark, encoding in OTHER_MARKS.items():
        if head.startswith(mark):
            raise InputError(f"{file}: is {encoding}, by its byte order mark; convert it to UTF-8")
    for beginning, what, remedy in NOT_TEXT:
        if re.match(beginning, head):
            raise InputError(f"{file}: is {what}; {remedy}")
    if wide := encoding_by_nuls(head):
        raise InputError(f"{file}: is {wide}, or no text at all, by its NUL bytes; convert it to UTF-8")
    if 0 in head:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            raise InputError(f"{file}: is a binary file; write its text to a .txt file") from None
    check_is_no_record(file, head.removeprefix(MARK))


def encoding_by_nuls(head: bytes) -> str | None:
    """Returns the encoding whose characters have a NUL at the same place again and again, if there is one."""
    columns = [head[start::4].count(0) for start in range(4)]
    if len(head) < 16 or min(columns) > 0:
        return None
    if max(min(columns[:2]), min(columns[2:])) >= len(head) // 4:
        return "UTF-32"
    even, odd = columns[0] + columns[2], columns[1] + columns[3]
    return "UTF-16" if min(even, odd) == 0 and max(even, odd) > len(head) // 4 else None


def check_is_no_record(file: Place, head: bytes) -> None:
    """Raises InputError for a file whose texts stand in records, unless its name says so: its syntax would be text."""
    suffix = kind(file.name)
    for beginning, what, remedy in RECORDS.get(suffix, ()):
        if re.match(beginning, head):
            raise InputError(f"{file}: is {what}; {remedy}; {AS_IT_IS}")
    if suffix not in JSON_LINES and is_json_lines(head):
        raise InputError(f"{file}: begins with a JSON record, but is not named .jsonl; {LINES_REMEDY}")


def is_json_lines(head: bytes) -> bool:
    """Returns whether the first line is a JSON object with a field for text, as far as the head shows it."""
    line, end, _ = head.partition(b"\n")
    if not line.startswith(b"{"):
        return False
    if end:
        try:
            return has_text(json.loads(line))
        except (ValueError, RecursionError):
            return False
    fields = "|".join(TEXT_FIELDS).encode()
    return re.match(rb'\{\s*"', line) is not None and re.search(rb'"(%b)"\s*:\s*"' % fields, line) is not None


def has_text(value: object) -> bool:
    """Returns whether a value of JSON has a field for text at any depth, as the messages of a chat do."""
    if isinstance(value, dict):
        return any(type(value.get(name)) is str for name in TEXT_FIELDS) or any(map(has_text, value.values()))
    return isinstance(value, list) and any(map(has_text, value))
