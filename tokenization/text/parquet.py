"""Parquet files as documents: one column holds their texts, one a row, and a few rows are read at a time.

pyarrow reads the format. It is an extra, not a dependency: it takes 170 MB, more than all else that the tokenizer needs
except LLVM, and most texts are not Parquet.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tokenization.errors import InputError
from tokenization.text.documents import RecordReader
from tokenization.text.fields import FieldError, Kind, find_field, remedy
from tokenization.text.packing import packing

MAGIC = b"PAR1"
STRINGS = ("string", "large_string", "binary", "large_binary")  # as pyarrow calls them
ARROW = Kind(
    "column",
    lambda kind: {field.name: field.type for field in kind} if hasattr(kind, "get_field_index") else None,
    lambda kind: f"holds {kind}",
)
ROWS_AT_ONCE = 256
BUFFER_BYTES = 1 << 20  # of a column that are read at once, however large its row group is


class ParquetRows:
    """The texts of an open Parquet file."""

    def __init__(self, raw: Any, reader: RecordReader):
        self._reader, self._rows_read = reader, 0
        if packing(reader.file):
            raise InputError(f"{reader.file}: Parquet in a {packing(reader.file)} file is not read; decompress it")
        if not raw.seekable():
            raise InputError(
                f"{reader.file}: Parquet is read from its end, and this can be read in order only; copy it"
            )
        if raw.read(len(MAGIC)) != MAGIC:
            raise InputError(
                f"{reader.file}: is named .parquet, but is not a Parquet file; give it the name of what it is"
            )
        self._size: int = raw.seek(0, 2)
        parquet, self._arrow = import_pyarrow(reader.file)
        with self._named_errors():
            self._file = parquet.ParquetFile(raw, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
        self._num_rows: int = self._file.metadata.num_rows

    def position(self) -> int:
        """Returns how many bytes of the file are read, judged by the rows."""
        return self._size * self._rows_read // self._num_rows if self._num_rows else self._size

    def batches(self) -> Iterator[list[bytes]]:
        """Yields the documents, some at a time. Raises InputError, with the row's number, for a row without one."""
        path = self._path()
        name = ".".join(path)
        batches = self._file.iter_batches(ROWS_AT_ONCE, columns=[name], use_threads=False)
        while True:
            with self._named_errors():
                batch = next(batches, None)
            if batch is None:
                return
            values = batch.column(batch.schema.names.index(path[0]))
            for key in path[1:]:
                values = values.flatten()[values.type.get_field_index(key)]  # null where the whole struct is
            if self._arrow.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            yield self._texts(name, values.cast(self._arrow.large_binary()).to_pylist())
            self._rows_read += len(batch)

    def _path(self) -> list[str]:
        """Returns the column of the texts, and the fields of structs that lead to them.

        Raises InputError where there is none, or it holds no strings.
        """
        schema, types = self._file.schema_arrow, self._arrow.types
        columns = {name: schema.field(schema.names.index(name)).type for name in schema.names}
        try:
            path, kind = find_field(columns, self._reader.text_field, ARROW)
        except FieldError as error:
            raise InputError(f"{self._reader.file}: {error}") from None
        strings = kind.value_type if types.is_dictionary(kind) else kind
        if not any(getattr(types, f"is_{name}")(strings) for name in STRINGS):
            what = f"the column {'.'.join(path)!r} holds {kind} and no strings"
            raise InputError(f"{self._reader.file}: {what}; {remedy(path[-1])}")
        return path

    def _texts(self, name: str, values: list[bytes | None]) -> list[bytes]:
        texts = []
        for number, value in enumerate(values, start=self._rows_read + 1):
            if value is None:
                what = f"the field {name!r} is null and not a string"
                raise self._reader.refusal(f"row {number}", f"{what}; leave such rows out")
            texts.append(self._reader.valid(value, f"row {number}"))
        return texts

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raises InputError for what pyarrow finds damaged; errors of the system are left to the caller."""
        try:
            yield
        except (self._arrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            behind = f", behind row {self._rows_read}" if self._rows_read else ""
            unknown = isinstance(error, self._arrow.ArrowNotImplementedError)
            what = "Parquet that pyarrow cannot read" if unknown else "damaged Parquet file"
            remedy = "write it anew" if unknown else "copy or download it again"
            raise InputError(
                f"{self._reader.file}{behind}: {what} ({' '.join(str(error).split())}); {remedy}"
            ) from None


def import_pyarrow(file: str) -> tuple[Any, Any]:
    """Returns pyarrow's modules for Parquet and for everything else. Raises InputError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        how = "`pip install pyarrow`, or `pip install -e '.[parquet]'` here"
        raise InputError(f"{file}: Parquet is read by pyarrow, which is not installed; {how}") from None
    return pyarrow.parquet, pyarrow


def decompressed_size(file: Any) -> int:
    """Returns how many bytes the columns have, decompressed; 0 where that cannot be read."""
    with suppress(Exception), file.open("rb") as raw:
        metadata = import_pyarrow(str(file))[0].ParquetFile(raw).metadata
        return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    return 0
