"""Compressed files: which kinds are read (their names tell), and how a file is opened as a stream of its content."""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from tokenization.errors import InputError

LONGEST_WINDOW = 31  # the logarithm of its bytes, as `zstd --long=31` makes them; readers stop at 27 unless told
OPENERS: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".zst": lambda raw: zstd.ZstdFile(raw, options={zstd.DecompressionParameter.window_log_max: LONGEST_WINDOW}),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, zstd.ZstdError, lzma.LZMAError)  # what reading a damaged one raises


def packing(name: str) -> str:
    """Returns the suffix that says how a file is compressed, in small letters: ".gz"; "" for none."""
    suffix = PurePath(name).suffix.lower()
    return suffix if suffix in OPENERS else ""


def kind(name: str) -> str:
    """Returns the suffix that says what a file holds, in small letters: ".jsonl" for a.JSONL and a.jsonl.gz alike."""
    return PurePath(name.lower().removesuffix(packing(name))).suffix


def unpack(name: str, raw: Any) -> Any:
    """Returns a stream of the content of an open file, which is the file itself where it is not compressed."""
    return OPENERS.get(packing(name), lambda raw: raw)(raw)


def damaged(name: str, reason: object) -> InputError:
    """Returns the error for a compressed file that ends early or has changed."""
    return InputError(f"{name}: damaged {packing(name) or kind(name)} file ({reason}); copy or download it again")
