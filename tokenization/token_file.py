"""The token file: what training reads. This file alone knows its format.

    train.bin       the token ids one after another, little-endian uint16, or uint32 where the vocabulary has more
                    than 65,536 ids; nothing else, so that any tool can map it into memory
    train.bin.json  dtype, tokens, documents, bytes of text, vocabulary size, the digests of tokenizer and data

Both are written under temporary names and renamed when they are whole; the JSON comes last and says what the other
must be.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from tokenization.errors import InputError
from tokenization.formats import write_text

DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_SCAN_TOKENS = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def description_path(path: str | os.PathLike) -> Path:
    return Path(f"{os.fspath(path)}.json")


@dataclass(frozen=True)
class Description:
    dtype: str
    tokens: int
    documents: int
    bytes: int
    vocab_size: int
    tokenizer_sha256: str
    data_sha256: str


class TokenFileWriter:
    """A context: what has been written stands under its name when the block ends well, and nowhere when it does not.

    separator_id: the token that closes a document; each one is counted.
    """

    def __init__(
        self, path: str | os.PathLike, vocab_size: int, tokenizer_sha256: str, separator_id: int | None = None
    ):
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.tokenizer_sha256 = tokenizer_sha256
        self.separator_id = separator_id
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> "TokenFileWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "wb")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); choose another place") from None
        return self

    def write(self, token_ids: np.ndarray) -> None:
        if token_ids.size and not (token_ids.min() >= 0 and token_ids.max() < self.vocab_size):
            raise InputError(f"{self.path}: a token id lies outside the vocabulary of {self.vocab_size} tokens")
        data = np.ascontiguousarray(token_ids, self.dtype).data
        self._file.write(data)
        self._sha256.update(data)
        self.num_tokens += token_ids.size
        self.num_documents += int(np.count_nonzero(token_ids == self.separator_id))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            with self._file:
                if kind is not None:
                    return
                self._file.flush()
                os.fsync(self._file.fileno())
            description = Description(
                self.dtype.name,
                self.num_tokens,
                self.num_documents,
                self.num_bytes,
                self.vocab_size,
                self.tokenizer_sha256,
                self._sha256.hexdigest(),
            )
            os.replace(self._temporary, self.path)
            write_text(description_path(self.path), json.dumps(asdict(description), indent=2) + "\n")
        finally:
            self._temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class TokenFile:
    """A token file whose size and ids agree with its description."""

    path: Path
    tokens: np.memmap  # (num_tokens,), read-only
    description: Description

    @classmethod
    def open(cls, path: str | os.PathLike) -> "TokenFile":
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"{path}: no such token file; make it with `tokenization encode TEXT --tokenizer DIR --output {path}`"
            )
        description = read_description(path)
        dtype = DTYPES[description.dtype]
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise InputError(f"{path}: {size} bytes are not a whole number of {dtype.name} ids; encode the text again")
        if size != description.tokens * dtype.itemsize:
            raise InputError(
                f"{path}: holds {size // dtype.itemsize} tokens, but {description_path(path).name} says"
                f" {description.tokens}; encode the text again"
            )
        if not size:
            raise InputError(f"{path}: is empty; encode a text that is not")
        largest = largest_id(path, dtype)
        if largest >= description.vocab_size:
            raise InputError(
                f"{path}: token id {largest} lies outside its vocabulary of {description.vocab_size} tokens;"
                " encode the text again"
            )
        return cls(path, np.memmap(path, dtype, mode="r"), description)

    def __len__(self) -> int:
        return len(self.tokens)


def largest_id(path: Path, dtype: np.dtype) -> int:
    """Read, not mapped: pages of a map that have been looked at count as this process's memory."""
    largest = 0
    with open(path, "rb") as file:
        while (token_ids := np.fromfile(file, dtype, _SCAN_TOKENS)).size:
            largest = max(largest, int(token_ids.max()))
    return largest


def read_description(path: Path) -> Description:
    beside = description_path(path)
    remedy = "make the token file with `tokenization encode`"
    try:
        description = Description(**json.loads(beside.read_text()))
    except OSError as error:
        raise InputError(f"{beside}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, TypeError):
        raise InputError(f"{beside}: is not the description of a token file; {remedy}") from None
    if description.dtype not in DTYPES:
        raise InputError(f"{beside}: dtype is {description.dtype!r}, not {' or '.join(DTYPES)}; {remedy}")
    return description
