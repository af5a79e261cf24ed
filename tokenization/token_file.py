"""The token file, which training reads: its format, its writer, and its checks.

    train.bin       the token ids one after another, little-endian uint16, or uint32 where the vocabulary has more
                    than 65,536 ids; nothing else, so that any tool can map it into memory
    train.bin.json  dtype, tokens, documents, bytes of text, vocabulary size, the digests of tokenizer and data

Both are written under temporary names and renamed when they are complete, the JSON first: a token file never lacks its
description.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import numpy as np

from tokenization.errors import InputError
from tokenization.files import writing_together

DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_SCAN_TOKENS = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of the ids of a vocabulary of this size."""
    return DTYPES["uint16" if vocab_size <= 1 << 16 else "uint32"]


def description_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of the JSON file beside a token file."""
    return Path(f"{os.fspath(path)}.json")


@dataclass(frozen=True)
class Description:
    """What the JSON file says about its token file."""

    dtype: str
    tokens: int
    documents: int
    bytes: int
    vocab_size: int
    tokenizer_sha256: str
    data_sha256: str

    @property
    def text(self) -> str:
        """The description as JSON, with a digest of itself, so that a changed value is noticed."""
        values = asdict(self)
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        return json.dumps(values | {"description_sha256": digest}, indent=2) + "\n"


class TokenFileWriter:
    """A context manager that writes a token file, which appears when the block ends without an exception.

    separator_id: the token that closes a document; each one is counted. Raises InputError where nothing can be
    written.
    """

    def __init__(
        self, path: str | os.PathLike[str], vocab_size: int, tokenizer_sha256: str, separator_id: int | None = None
    ):
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.tokenizer_sha256 = tokenizer_sha256
        self.separator_id = separator_id
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "TokenFileWriter":
        for path in (self.path, description_path(self.path)):
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is a folder or a device, not a file to be replaced; choose another name")
        try:
            files = self._open.enter_context(writing_together(description_path(self.path), self.path))
        except OSError as error:
            raise self._cannot_write(error) from None
        self._beside, self._file = files
        return self

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot be written ({error.strerror}); make room or choose another place")

    def write(self, token_ids: np.ndarray) -> None:
        """Appends token ids, of shape (n,). Raises InputError for one outside the vocabulary, and for a full disk."""
        if token_ids.size and not (token_ids.min() >= 0 and token_ids.max() < self.vocab_size):
            raise InputError(f"{self.path}: a token id lies outside the vocabulary of {self.vocab_size} tokens")
        data = np.ascontiguousarray(token_ids, self.dtype).data
        try:
            self._file.write(data)
        except OSError as error:
            raise self._cannot_write(error) from None
        self._sha256.update(data)
        self.num_tokens += token_ids.size
        self.num_documents += int(np.count_nonzero(token_ids == self.separator_id))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            with self._open:
                self._beside.write(self._describe().text.encode())
        except OSError as failure:
            raise self._cannot_write(failure) from None

    def _describe(self) -> Description:
        return Description(
            self.dtype.name,
            self.num_tokens,
            self.num_documents,
            self.num_bytes,
            self.vocab_size,
            self.tokenizer_sha256,
            self._sha256.hexdigest(),
        )


@dataclass(frozen=True)
class TokenFile:
    """A token file whose size, ids and digest agree with its description."""

    path: Path
    tokens: np.memmap  # (num_tokens,), read-only
    description: Description

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> "TokenFile":
        """Maps a token file into memory. Raises InputError where it does not agree with its description.

        verify: read every byte, to check the digest and the largest id; otherwise only size and dtype are checked.
        """
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
            raise InputError(f"{path}: is empty; encode a text that is not empty")
        if verify:
            verify_tokens(path, description)
        return cls(path, np.memmap(path, dtype, mode="r"), description)

    def __len__(self) -> int:
        return len(self.tokens)


def verify_tokens(path: Path, description: Description) -> None:
    """Raises InputError where the ids or the digest do not agree with the description."""
    largest, data_sha256 = scan(path, DTYPES[description.dtype])
    if largest >= description.vocab_size:
        raise InputError(
            f"{path}: token id {largest} lies outside its vocabulary of {description.vocab_size} tokens;"
            " encode the text again"
        )
    if data_sha256 != description.data_sha256:
        raise InputError(
            f"{path}: has changed since it was made, says the digest in {description_path(path).name};"
            " encode the text again"
        )


def scan(path: Path, dtype: np.dtype) -> tuple[int, str]:
    """Returns the largest id and the SHA-256, without a map, whose pages would count as this process's memory."""
    largest, sha256 = 0, hashlib.sha256()
    with open(path, "rb") as file:
        while (token_ids := np.fromfile(file, dtype, _SCAN_TOKENS)).size:
            largest = max(largest, int(token_ids.max()))
            sha256.update(token_ids.data)
    return largest, sha256.hexdigest()


def is_token_file(path: Path) -> bool:
    """Returns whether the JSON beside it describes a token file; where a writer was killed, it may stand alone."""
    try:
        read_description(path)
    except InputError:
        return False
    return True


def read_description(path: Path) -> Description:
    """Reads the JSON beside a token file. Raises InputError where it is missing, damaged or another program's."""
    beside = description_path(path)
    remedy = "make the token file with `tokenization encode`"
    try:
        text = beside.read_text()
        content = json.loads(text)
        has_digest = content.pop("description_sha256", None) is not None  # older files have none
        description = Description(**content)
        if any(type(getattr(description, entry.name)) is not entry.type for entry in fields(Description)):
            raise TypeError
    except OSError as error:
        raise InputError(f"{beside}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{beside}: is not the description of a token file; {remedy}") from None
    if has_digest and text != description.text:
        raise InputError(f"{beside}: has changed since it was written, says its own digest; {remedy}")
    if description.dtype not in DTYPES:
        raise InputError(f"{beside}: dtype is {description.dtype!r}, not {' or '.join(DTYPES)}; {remedy}")
    return description
