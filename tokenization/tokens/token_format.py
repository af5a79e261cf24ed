"""What a token file is made of: its description, and the check of its ids.

    train.bin       the token ids one after another, little-endian uint16, or uint32 where the vocabulary has more
                    than 65,536 ids; nothing else, so that any tool can map it into memory
    train.bin.json  dtype, tokens, documents, bytes of text that the tokens decode to, <|endoftext|> among it, wherever
                    it came from; vocabulary size, the digests of tokenizer and data

token_file.py writes and opens such files, token_set.py whole folders of them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from tokenization.errors import InputError

DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
SCAN_TOKENS = 1 << 20


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


def check_size(path: Path) -> Description:
    """Reads the description of a token file. Raises InputError where it is not the description of a file this long."""
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
    return description


def verify_tokens(path: Path, description: Description, pass_on: Callable[[memoryview], object] | None = None) -> None:
    """Raises InputError where the ids or the digest do not agree with the description.

    pass_on: is called with the data, some at a time.
    """
    largest, data_sha256 = scan(path, DTYPES[description.dtype], pass_on)
    if largest >= description.vocab_size:
        raise InputError(
            f"{path}: token id {largest} lies outside its vocabulary of {description.vocab_size} tokens;"
            " encode the text again"
        )
    if data_sha256 != description.data_sha256:
        raise InputError(
            f"{path}: has changed since it was made, by the digest in {description_path(path).name};"
            " encode the text again"
        )


def scan(path: Path, dtype: np.dtype, pass_on: Callable[[memoryview], object] | None = None) -> tuple[int, str]:
    """Returns the largest id and the SHA-256, without a map, whose pages would count as this process's memory."""
    largest, sha256 = 0, hashlib.sha256()
    with open(path, "rb") as file:
        while (token_ids := np.fromfile(file, dtype, SCAN_TOKENS)).size:
            largest = max(largest, int(token_ids.max()))
            sha256.update(token_ids.data)
            if pass_on is not None:
                pass_on(token_ids.data)
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
        text = beside.read_text(encoding="utf-8")
        content = json.loads(text)
        has_digest = content.pop("description_sha256", None) is not None  # older files have none
        description = Description(**content)
        if any(type(getattr(description, entry.name)) is not entry.type for entry in fields(Description)):
            raise TypeError
    except FileNotFoundError:
        raise InputError(f"{path}: is not a token file, for {beside} is missing; {remedy}") from None
    except OSError as error:
        raise InputError(f"{beside}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{beside}: is not the description of a token file; {remedy}") from None
    if has_digest and text != description.text:
        raise InputError(f"{beside}: has changed since it was written, according to its own digest; {remedy}")
    if description.dtype not in DTYPES:
        raise InputError(f"{beside}: dtype is {description.dtype!r}, not {' or '.join(DTYPES)}; {remedy}")
    return description
