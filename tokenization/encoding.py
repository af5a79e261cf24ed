"""Encoding files of text or documents into a token file, in parallel.

    files -> chunks (cut where no pre-token crosses) -> token ids, in order -> tokens/token_file.py

Large files are encoded by the compiled kernels (native/), with the same result.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenization.errors import InputError
from tokenization.kernels import KERNELS_FROM_BYTES
from tokenization.outputs import refuse_input
from tokenization.pretokenization import END_OF_TEXT, cut_into_chunks
from tokenization.systems import available_cores
from tokenization.text.corpus import Corpus, map_in_order
from tokenization.text.documents import BETWEEN, BETWEEN_CHARACTER, check_text_field, holds_documents
from tokenization.tokens.document_digests import digests_path
from tokenization.tokens.token_file import TokenFile, TokenFileWriter
from tokenization.tokens.token_format import description_path, token_dtype

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

FIRST = 1000  # tokens, which may end within a character


class NoText(InputError):
    """There is nothing to encode in any of the files."""


@dataclass
class EncodingReport:
    """Which code encoded the files, why, and how long the kernels took until they were ready.

    path: of the files that this command encoded, if there are any.
    """

    path: str = "an earlier command"
    kept: bool = False  # whether an earlier command encoded a part of a token set
    seconds: dict[str, float] = field(default_factory=dict)  # "loading" or "compiling"; empty without kernels


class EncodedChunk(NamedTuple):
    """The ids of a chunk of a file, and what is needed to count documents."""

    file: int  # its number
    token_ids: np.ndarray
    num_bytes: int  # that its tokens decode to
    ends_document: bool  # whether it holds a separator
    in_document: bool  # whether there is text behind the last separator
    unmarked_ends: int = 0  # of documents that no token follows, for the tokenizer has no separator


def encode_files(
    tokenizer: "Tokenizer",
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    num_processes: int | None = None,
    errors: str = "strict",
    progress: str = "",
    report: EncodingReport | None = None,
    text_field: str | None = None,
    followed: bool = False,
    text_bytes: int | None = None,
) -> TokenFile:
    """Encodes text files into one token file; see `Tokenizer.encode_files`.

    progress: the title of the progress bar; none is shown for an empty one. followed: whether other files follow in
    another token file, so that a separator closes the last document, too. text_bytes: how much text there is, with that
    of other token files, which decides whether the kernels are worth loading; None is that of these files.
    """
    corpus = Corpus(inputs, errors, progress, text_field)
    check_text_field(text_field, (file.name for file in corpus.files))
    for path in (Path(output), description_path(output), digests_path(output)):
        refuse_input(path, corpus.files)
    choice = tokenizer.switch.choose(corpus.text_bytes(KERNELS_FROM_BYTES) if text_bytes is None else text_bytes)
    if report is not None:
        report.path = choice.reason
        if choice.native:
            report.seconds[choice.phase] = choice.seconds
    processes, separator_id = num_processes or available_cores(), tokenizer.end_of_text_id
    with (
        closing(corpus),
        TokenFileWriter(output, tokenizer.vocab_size, tokenizer.digest, separator_id) as writer,
    ):
        write_chunks(writer, encode_corpus(tokenizer, corpus, processes, choice.native), separator_id, followed)
        if not writer.num_tokens:
            raise NoText(f"{corpus.name}: no text to encode; the input is empty")
    return TokenFile.open(output, verify=False)


def write_chunks(
    writer: TokenFileWriter, chunks: Iterator[EncodedChunk], separator_id: int | None, followed: bool = False
) -> None:
    """Writes the ids, with a separator between files where there is none, and counts bytes and documents.

    followed: whether another file follows the last one, as in `encode_files`.
    """
    current_file, in_document = 0, False

    def close_document() -> None:
        if separator_id is None:
            writer.num_documents += 1  # and nothing marks its end
        else:
            writer.write(np.array([separator_id], writer.dtype))
            writer.num_bytes += len(END_OF_TEXT)

    for chunk in chunks:
        if chunk.file != current_file and in_document:
            close_document()
            in_document = False
        current_file = chunk.file
        writer.write(chunk.token_ids)
        writer.num_bytes += chunk.num_bytes
        writer.num_documents += chunk.unmarked_ends
        in_document = chunk.in_document or (in_document and not chunk.ends_document)
    if in_document and followed:
        close_document()
    else:
        writer.num_documents += in_document  # one that no separator closes


def encode_corpus(
    tokenizer: "Tokenizer", corpus: Corpus, num_processes: int, native: ModuleType | None
) -> Iterator[EncodedChunk]:
    """Yields the encoded chunks of all files, in order. native: the module with the kernels, or None."""
    if native:
        for window, token_ids in tokenizer.switch.encoder_of(native).encode_corpus(corpus, num_processes):
            if token_ids is None:  # a byte has no token: the plain encoder says which
                token_ids = encode_plainly(tokenizer, window.text, window.are_documents)
            data = window.buffer[: window.length].data
            yield describe_chunk(tokenizer, window.number, token_ids, data, window.are_documents)
        return
    chunks = (
        (number, are_documents, text)
        for number, file in enumerate(corpus.files)
        for are_documents in [holds_documents(file.name)]
        for boundaries in [[BETWEEN_CHARACTER] if are_documents else tokenizer.special_tokens]
        for text in cut_into_chunks(corpus.blocks(file), boundaries, tokenizer.pattern)
    )
    encoded = map_in_order(_encode_chunk, chunks, num_processes, _start_encoding, (tokenizer,))
    for (number, are_documents, text), token_ids in encoded:
        yield describe_chunk(tokenizer, number, token_ids, text.encode(errors="surrogateescape"), are_documents)


def encode_plainly(tokenizer: "Tokenizer", text: str, are_documents: bool) -> np.ndarray:
    """Returns the ids of a text, or of documents with BETWEEN_CHARACTER between them, in plain Python."""
    if not are_documents:
        token_ids = tokenizer.plain.encode(text)
    else:
        between = [] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id]
        first, *others = map(tokenizer.plain.encode_ordinary, text.split(BETWEEN_CHARACTER))
        token_ids = first + [token_id for ids in others for token_id in (*between, *ids)]
    return np.array(token_ids, token_dtype(tokenizer.vocab_size))


def describe_chunk(
    tokenizer: "Tokenizer", file: int, token_ids: np.ndarray, data: bytes | memoryview, are_documents: bool
) -> EncodedChunk:
    """Returns the chunk with what is needed to count its documents. data: its text, or documents with BETWEEN."""
    separator = tokenizer.end_of_text_id
    if are_documents:
        text = bytes(data)
        ends = text.count(BETWEEN)
        unmarked_ends, size = (ends, 0) if separator is None else (0, len(END_OF_TEXT))
        num_bytes = len(text) + (size - 1) * ends
        return EncodedChunk(file, token_ids, num_bytes, bool(ends), not text.endswith(BETWEEN), unmarked_ends)
    places = np.flatnonzero(token_ids == (-1 if separator is None else separator))
    # By the ids: in the text, the separator's letters may be a part of another special token.
    behind = token_ids[places[-1] + 1 :] if len(places) else token_ids
    return EncodedChunk(file, token_ids, len(data), len(places) > 0, has_text(tokenizer, behind))


def has_text(tokenizer: "Tokenizer", token_ids: np.ndarray) -> bool:
    """Returns whether these tokens are more than white space, which the first ones tell in most documents."""
    beginning = str(tokenizer.decode_bytes(token_ids[:FIRST]), "utf-8", "replace").replace("\ufffd", "")
    return bool(beginning.strip() or str(tokenizer.decode_bytes(token_ids), "utf-8", "replace").strip())


_encoder: "Tokenizer | None" = None  # in each encoding process


def _start_encoding(tokenizer: "Tokenizer") -> None:
    global _encoder
    _encoder = tokenizer


def _encode_chunk(chunk: tuple[int, bool, str]) -> np.ndarray:
    assert _encoder is not None
    _, are_documents, text = chunk
    return encode_plainly(_encoder, text, are_documents)
