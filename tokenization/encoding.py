"""Encoding text files into a token file, in parallel.

    files -> chunks (cut where no pre-token crosses) -> token ids, in order -> token_file.py

Large files are encoded by the compiled kernels (native/), with the same result.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenization.corpus import Corpus, available_cores, map_in_order
from tokenization.errors import InputError
from tokenization.kernels import KERNELS_FROM_BYTES
from tokenization.outputs import refuse_input
from tokenization.pretokenization import END_OF_TEXT, cut_into_chunks
from tokenization.token_file import TokenFile, TokenFileWriter, description_path, token_dtype

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer


@dataclass
class EncodingReport:
    """Which code encoded the files, why, and how long loading or compiling it took."""

    path: str = ""
    compile_seconds: float = 0.0


class EncodedChunk(NamedTuple):
    """The ids of a chunk of a file, and what is needed to count documents."""

    file: int  # its number
    token_ids: np.ndarray
    num_bytes: int  # of its text
    ends_document: bool  # whether it holds a separator
    in_document: bool  # whether there is text behind the last separator


def encode_files(
    tokenizer: "Tokenizer",
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    num_processes: int | None = None,
    errors: str = "strict",
    progress: bool = False,
    report: EncodingReport | None = None,
) -> TokenFile:
    """Encode text files into one token file; see `Tokenizer.encode_files`."""
    corpus = Corpus(inputs, errors, "encoding" if progress else "")
    for path in (Path(output), description_path(output)):
        refuse_input(path, corpus.files)
    choice = tokenizer.switch.choose(corpus.text_bytes(KERNELS_FROM_BYTES))
    if report is not None:
        report.path, report.compile_seconds = choice.reason, choice.seconds
    processes, separator_id = num_processes or available_cores(), tokenizer.end_of_text_id
    with (
        closing(corpus),
        TokenFileWriter(output, tokenizer.vocab_size, tokenizer.digest, separator_id) as writer,
    ):
        write_chunks(writer, encode_corpus(tokenizer, corpus, processes, choice.native), separator_id)
        if not writer.num_tokens:
            raise InputError(f"{corpus.name}: no text to encode; the input is empty")
    return TokenFile.open(output)


def write_chunks(writer: TokenFileWriter, chunks: Iterator[EncodedChunk], separator_id: int | None) -> None:
    """Write the ids, with a separator between files where there is none, and count bytes and documents."""
    current_file, in_document = 0, False
    for chunk in chunks:
        if chunk.file != current_file and in_document:
            if separator_id is None:
                writer.num_documents += 1  # and nothing marks its end
            else:
                writer.write(np.array([separator_id], writer.dtype))
            in_document = False
        current_file = chunk.file
        writer.write(chunk.token_ids)
        writer.num_bytes += chunk.num_bytes
        in_document = chunk.in_document or (in_document and not chunk.ends_document)
    writer.num_documents += in_document  # one that no separator closes


def encode_corpus(
    tokenizer: "Tokenizer", corpus: Corpus, num_processes: int, native: ModuleType | None
) -> Iterator[EncodedChunk]:
    """Yield the encoded chunks of all files, in order. native: the module with the kernels, or None."""
    separator = END_OF_TEXT if tokenizer.end_of_text_id is not None else None
    dtype = token_dtype(tokenizer.vocab_size)
    if native:
        for window, token_ids in tokenizer.switch.encoder_of(native).encode_corpus(corpus, num_processes):
            if token_ids is None:  # a byte has no token: the plain encoder says which
                token_ids = np.array(tokenizer.encode_plainly(window.text), dtype)
            yield EncodedChunk(window.number, token_ids, window.length, *window.text_behind(separator))
        return
    chunks = (
        (number, chunk)
        for number, file in enumerate(corpus.files)
        for chunk in cut_into_chunks(corpus.blocks(file), tokenizer.special_tokens, tokenizer.pattern)
    )
    encoded = map_in_order(_encode_chunk, chunks, num_processes, _start_encoding, (tokenizer, dtype))
    for (number, chunk), token_ids in encoded:
        _, found, rest = chunk.rpartition(separator) if separator else ("", "", chunk)
        yield EncodedChunk(number, token_ids, len(chunk.encode()), bool(found), bool(rest.strip()))


_encoder: "tuple[Tokenizer, np.dtype] | None" = None  # in each encoding process


def _start_encoding(tokenizer: "Tokenizer", dtype: np.dtype) -> None:
    global _encoder
    _encoder = (tokenizer, dtype)


def _encode_chunk(numbered_chunk: tuple[int, str]) -> np.ndarray:
    assert _encoder is not None
    tokenizer, dtype = _encoder
    return np.array(tokenizer.encode_plainly(numbered_chunk[1]), dtype)
