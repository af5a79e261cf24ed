"""Keeps the tables of large tokenizers, so that a folder that was saved or loaded once loads in a fraction of the time.

    digest of a folder's files and of our sources -> a file with the tokens, and the merges as ids

Reading texts of a hundred thousand tokens and looking up the merges takes most of loading. A table is found only by
the very bytes that it was made from, and holds a digest of its own content: a changed folder, another version of this
package or a damaged file finds nothing, and the folder is read as if there were no table. The MAX_KEPT tables that were
used last are kept; where nothing can be written, none.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenization.bpe import Vocabulary
from tokenization.caches import places
from tokenization.files import writing

LEAST_MERGES = 10_000  # of a tokenizer that is kept; smaller ones are read in some milliseconds
MAX_KEPT = 8  # the table of 200,000 tokens has 6 MB
SOURCES = (
    *("bpe.py", "kept_tables.py", "patterns.py", "tokenizer.py"),
    *("formats/folder.py", "formats/gpt2.py", "formats/own_files.py"),
    *("formats/oniguruma.py", "formats/tokenizer_json.py"),
)


class Table(NamedTuple):
    """What makes a tokenizer: the arguments of `Tokenizer`, with the merges as ids, and its digest."""

    vocab: Vocabulary
    merge_ids: np.ndarray  # int64, shape (merges, 3)
    special_tokens: list[str]
    pattern: str
    digest: str | None  # the tokenizer's, once it was asked for


def key_of(files: list[Path], written: Mapping[Path, str] | None = None) -> str | None:
    """Returns what the table of a tokenizer is kept by; None where one of its files cannot be read.

    files: all from which the tokenizer may be made; those that are missing count as well. written: what the caller has
    just written into some of them, and another process may have replaced since.
    """
    digest = sha256(sys.byteorder.encode())
    written = written or {}
    try:
        for path in (*files, *(Path(__file__).parent / name for name in SOURCES)):
            if path in written:
                content: bytes | None = written[path].encode()
            else:
                content = path.read_bytes() if path.is_file() else None
            digest.update(repr((path.name, content is not None and len(content))).encode())
            digest.update(content or b"")
    except OSError:
        return None
    return digest.hexdigest()


def read_table(key: str) -> Table | None:
    """Returns the table that is kept by a key; None where there is none, or it is damaged."""
    for path in paths(key):
        with suppress(OSError):
            content = path.read_bytes()
            if sha256(content[32:]).digest() == content[:32]:
                with suppress(OSError):  # somebody else may have kept it
                    os.utime(path)  # it is used
                return unpack(content[32:])
    return None


def is_kept(merge_ids: np.ndarray) -> bool:
    """Returns whether a tokenizer has so many merges that its table is kept."""
    return len(merge_ids) >= LEAST_MERGES


def write_table(key: str, table: Table) -> None:
    """Keeps a table, if it is large, and if that is possible."""
    if not is_kept(table.merge_ids):
        return
    content = pack(table)
    for path in paths(key):
        with suppress(OSError):
            with writing(path) as file:
                file.write(sha256(content).digest() + content)
            delete_oldest(path.parent)
            return


def add_digest(key: str, table: Table) -> None:
    """Adds the digest of a tokenizer to the table that is kept by a key, if that one is otherwise the same.

    A tokenizer that was changed since it was loaded must not stand for its folder.
    """
    kept = read_table(key)
    same_merges = kept and np.array_equal(kept.merge_ids, table.merge_ids)
    if kept and same_merges and (kept.vocab, kept[2:4]) == (table.vocab, table[2:4]):
        write_table(key, kept._replace(digest=table.digest))


def paths(key: str) -> Iterator[Path]:
    """Yields where a table may be, the best place first."""
    for place in places(Path(__file__).parent):
        yield place / "tables" / f"{key[:32]}.table"


def delete_oldest(folder: Path) -> None:
    """Deletes all but the MAX_KEPT tables that were used last."""
    with suppress(OSError):  # another process deletes them as well
        for path in sorted(folder.glob("*.table"), key=lambda path: path.stat().st_mtime)[:-MAX_KEPT]:
            path.unlink()


def pack(table: Table) -> bytes:
    """Writes a table as bytes: a line of JSON; ids, lengths and merges as uint32; the bytes of all tokens."""
    vocab, merge_ids, special_tokens, pattern, digest = table
    head: dict[str, Any] = {"tokens": len(vocab), "merges": len(merge_ids), "digest": digest}
    head |= {"special_tokens": special_tokens, "pattern": pattern}
    ids, lengths = np.fromiter(vocab, np.uint32), np.fromiter(map(len, vocab.values()), np.uint32)
    numbers = np.concatenate([ids, lengths, merge_ids.astype(np.uint32).ravel()])
    return json.dumps(head).encode() + b"\n" + numbers.tobytes() + b"".join(vocab.values())


def unpack(content: bytes) -> Table:
    """Reads what `pack` wrote."""
    start = content.index(b"\n") + 1
    head = json.loads(content[:start])
    num_tokens, num_merges = head["tokens"], head["merges"]
    counts = (num_tokens, num_tokens, 3 * num_merges)
    numbers = np.frombuffer(content, np.uint32, sum(counts), start)
    ids, lengths, merge_ids = np.split(numbers, np.cumsum(counts)[:2])
    text = content[start + numbers.nbytes :]
    ends = list(accumulate(lengths.tolist()))
    tokens = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    vocab = dict(zip(ids.tolist(), tokens, strict=True))
    rows = merge_ids.reshape(num_merges, 3).astype(np.int64)
    return Table(vocab, rows, head["special_tokens"], head["pattern"], head["digest"])
