"""Writes and opens token files, which training reads; token_format.py describes their format.

Ids, description and the digests of documents are written under temporary names and renamed when they are complete, the
description first: a token file never lacks it. Before that, checked_file.py has read the ids back from the file. A
folder of token files with an index (token_index.py) is opened as one.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from tokenization.errors import InputError
from tokenization.files import writing_together
from tokenization.tokens.checked_file import CheckedFile
from tokenization.tokens.document_digests import DocumentDigests, digests_path
from tokenization.tokens.token_format import (
    DTYPES,
    Description,
    check_size,
    description_path,
    token_dtype,
    verify_tokens,
)
from tokenization.tokens.token_index import read_index
from tokenization.tokens.token_set import ShardedTokens, Tokens


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
        self._digests = DocumentDigests(separator_id)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "TokenFileWriter":
        beside = [description_path(self.path), *([] if self.separator_id is None else [digests_path(self.path)])]
        for path in (self.path, *beside):
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is a folder or a device, not a file to be replaced; choose another name")
        try:
            with contextlib.ExitStack() as opened:
                *self._beside, file = opened.enter_context(writing_together(*beside, self.path))
                self._file = opened.enter_context(CheckedFile(file))
                self._open = opened.pop_all()
        except OSError as error:
            raise self._cannot_write(error) from None
        return self

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"{self.path}: cannot be written ({error.strerror}); make room or choose another place")

    def write(self, token_ids: np.ndarray) -> None:
        """Appends token ids, of shape (n,). Raises InputError for one outside the vocabulary, and for a full disk."""
        unsigned = token_ids.dtype.kind == "u"
        if token_ids.size and not ((unsigned or token_ids.min() >= 0) and token_ids.max() < self.vocab_size):
            raise InputError(f"{self.path}: a token id lies outside the vocabulary of {self.vocab_size} tokens")
        token_ids = np.ascontiguousarray(token_ids, self.dtype)
        try:
            self._file.write(token_ids.tobytes())
        except OSError as error:
            raise self._cannot_write(error) from None
        self.num_tokens += token_ids.size
        self.num_documents += self._digests.take(token_ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            with self._open:
                data_sha256 = self._file.finish()
                contents = self._describe(data_sha256).text.encode(), self._digests.content(data_sha256)
                for file, content in zip(self._beside, contents, strict=False):
                    file.write(content)
        except OSError as failure:
            raise self._cannot_write(failure) from None

    def _describe(self, data_sha256: str) -> Description:
        return Description(
            self.dtype.name,
            self.num_tokens,
            self.num_documents,
            self.num_bytes,
            self.vocab_size,
            self.tokenizer_sha256,
            data_sha256,
        )


@dataclass(frozen=True)
class TokenFile:
    """A token file, or a set of them read as one, whose size, ids and digest agree with its description."""

    path: Path
    tokens: Tokens  # (num_tokens,), read-only, on the disk
    description: Description

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> "TokenFile":
        """Opens a token file, or the folder of a token set. Raises InputError where it disagrees with its description.

        verify: read every byte, to check the digest and the largest id: of a file now, of a shard of a set when it is
        first used; otherwise only sizes and descriptions are checked.
        """
        path = Path(path)
        if path.is_dir():
            index = read_index(path)
            return cls(path, ShardedTokens(path, index, verify), index.description)
        if not path.is_file():
            raise InputError(
                f"{path}: no such token file; make it with `tokenization encode TEXT --tokenizer DIR --output {path}`"
            )
        description = check_size(path)
        if verify:
            verify_tokens(path, description)
        tokens = np.memmap(path, DTYPES[description.dtype], mode="r")
        return cls(path, tokens.view(np.ndarray), description)  # whose slices cost less than a memmap's

    def verify_rest(self) -> None:
        """Verifies the shards of a set that have not been used yet. Raises InputError for the first damaged one."""
        if isinstance(self.tokens, ShardedTokens):
            self.tokens.verify_rest()

    def check_tokenizer(self, tokenizer: str | os.PathLike[str], digest: str, remedy: str) -> None:
        """Raises InputError unless this tokenizer made the file. tokenizer: its name; remedy: what to do otherwise."""
        if not self.description.tokenizer_sha256:
            raise InputError(
                f"{self.path}: was adopted without a tokenizer, so nothing shows that it is {tokenizer}'s; adopt it"
                " again with --tokenizer"
            )
        if self.description.tokenizer_sha256 != digest:
            raise InputError(f"{self.path}: was encoded by another tokenizer, not {tokenizer}; {remedy}")

    def __len__(self) -> int:
        return len(self.tokens)
