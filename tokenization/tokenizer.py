"""Text to token ids and back, with a vocabulary and merges from bpe.py or from files (handout, section 2).

encode:  text -> special tokens and pre-tokens -> bytes -> merges, the oldest first -> ids
decode:  ids -> bytes -> text; what is not UTF-8 becomes U+FFFD
"""

import codecs
import hashlib
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tokenization import formats
from tokenization.bpe import Merges, Vocabulary
from tokenization.corpus import Corpus, available_cores, map_in_order
from tokenization.errors import InputError
from tokenization.folder import read_folder, write_folder
from tokenization.outputs import refuse_input
from tokenization.pretokenization import (
    END_OF_TEXT,
    GPT2_PATTERN,
    KERNELS_FROM_BYTES,
    Choice,
    check_pattern,
    check_special_tokens,
    cut_into_pieces,
    kernels_for,
    pretokenize,
    split_on_special_tokens,
)
from tokenization.token_file import TokenFile, TokenFileWriter, description_path, token_dtype
from tokenization.tokenizer_json import TokenizerParts

MAX_CACHED_PRETOKENS = 1 << 18
Ranks = dict[tuple[int, int], tuple[int, int]]  # (left id, right id) -> (rank, merged id)


@dataclass
class EncodingReport:
    """Which code turned files into ids."""

    path: str = ""  # and why
    compile_seconds: float = 0.0


class Tokenizer:
    """vocab: {id: bytes}; merges: pairs of byte strings in order of creation; special_tokens: never split.

    Where special tokens overlap, the longest wins. One that the vocabulary lacks is appended to it.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        merges: Merges,
        special_tokens: Sequence[str] | None = None,
        pattern: str = GPT2_PATTERN,
    ):
        self.vocab = dict(vocab)
        self.merges = list(merges)
        check_special_tokens(special_tokens or [])
        self.special_tokens = list(dict.fromkeys(special_tokens or []))
        self.pattern = pattern
        check_pattern(pattern)
        ids = {token: token_id for token_id, token in self.vocab.items()}
        for special in self.special_tokens:
            if special.encode() not in ids:
                ids[special.encode()] = new_id = max(self.vocab, default=-1) + 1
                self.vocab[new_id] = special.encode()
        self.vocab_size = max(self.vocab, default=-1) + 1  # ids lie below this
        self._special_ids = {special: ids[special.encode()] for special in self.special_tokens}
        self._byte_ids = [ids.get(bytes([value]), -1) for value in range(256)]
        self._ranks: Ranks = {}
        for rank, (left, right) in enumerate(self.merges):
            for token in (left, right, left + right):
                if token not in ids:
                    raise InputError(f"merge {rank + 1}, {left!r} with {right!r}: {token!r} is not in the vocabulary")
            self._ranks.setdefault((ids[left], ids[right]), (rank, ids[left + right]))
        self._cache: dict[str, list[int]] = {}
        self._encoder: Any = None  # native.Encoder, once a text was large enough for it

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}  # its memory is this process's

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | os.PathLike[str],
        merges_filepath: str | os.PathLike[str],
        special_tokens: Sequence[str] | None = None,
    ) -> "Tokenizer":
        """vocab.json and merges.txt in GPT-2's format, its own two files among them."""
        vocab = formats.read_vocabulary(vocab_filepath, special_tokens or ())
        return cls(vocab, formats.read_merges(merges_filepath), special_tokens)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """A folder that `save` wrote, one with Hugging Face's tokenizer.json, or one with GPT-2's two files."""
        return cls(*read_folder(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        write_folder(folder, TokenizerParts(self.vocab, self.merges, self.special_tokens, self.pattern))

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the ids; token files and runs remember it."""
        vocab = sorted((token_id, token.hex()) for token_id, token in self.vocab.items())
        merges = [(left.hex(), right.hex()) for left, right in self.merges]
        content = json.dumps([vocab, merges, sorted(self.special_tokens), self.pattern])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def end_of_text_id(self) -> int | None:
        return self._special_ids.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises InputError for a lone surrogate: UTF-8 cannot hold it, so it has no bytes."""
        if len(text) >= KERNELS_FROM_BYTES and (token_ids := self._encode_large(text)) is not None:
            return token_ids
        to_utf8(text)
        return self._encode_plainly(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes, of UTF-8 the same as `encode` gives; a byte that is not UTF-8 is split as a sign is."""
        return self._encode_plainly(data.decode(errors="surrogateescape"))

    def _encode_plainly(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for index, part in enumerate(split_on_special_tokens(text, self.special_tokens)):
            if index % 2:
                token_ids.append(self._special_ids[part])
            else:
                for pretoken in pretokenize(part, self.pattern):
                    token_ids += self._cache.get(pretoken) or self._encode_pretoken(pretoken)
        return token_ids

    def _encode_large(self, text: str) -> list[int] | None:
        """`encode` through the kernels; None where they cannot be had, or to have a missing byte named."""
        native = self.code_for(len(text)).native
        if native is None:
            return None
        token_ids = self._kernel_encoder(native).encode(native.Window.of_bytes(to_utf8(text)))
        return None if token_ids is None else token_ids.tolist()

    def code_for(self, num_bytes: int) -> Choice:
        """Which code encodes a text of this size: the kernels, loaded or compiled by now, or plain Python; and why."""
        choice = kernels_for(self.pattern, num_bytes, "encoding")
        if choice.native and not choice.native.can_encode(self.vocab_size, len(self.merges)):
            return Choice(None, "plain Python (too many tokens for the kernels)", choice.seconds)
        return choice

    def _kernel_encoder(self, native: ModuleType) -> Any:
        if self._encoder is None:
            dtype = token_dtype(self.vocab_size)
            self._encoder = native.Encoder(self._byte_ids, self._ranks, self._special_ids, dtype)
        return self._encoder

    def _encode_pretoken(self, pretoken: str) -> list[int]:
        data = pretoken.encode(errors="surrogateescape")
        token_ids = [self._byte_ids[value] for value in data]
        if -1 in token_ids:
            missing = data[token_ids.index(-1)]
            raise InputError(f"byte 0x{missing:02x} of {pretoken!r} has no token in this vocabulary")
        token_ids = merge_by_rank(token_ids, self._ranks)
        if len(self._cache) < MAX_CACHED_PRETOKENS and len(pretoken) < 64:
            self._cache[pretoken] = token_ids
        return token_ids

    def encode_iterable(self, strings: Iterable[str]) -> Iterator[int]:
        """The ids of all the strings joined, one by one, without ever holding them all."""
        for piece in cut_into_pieces(strings, self.special_tokens, self.pattern):
            yield from self.encode(piece)

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(self.decode_iterable(token_ids))

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """What `encode_bytes` was given."""
        return b"".join(map(self._token_bytes, token_ids))

    def decode_iterable(self, token_ids: Iterable[int]) -> Iterator[str]:
        """The same text bit by bit: a character comes as soon as all its bytes have."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in token_ids:
            yield decoder.decode(self._token_bytes(token_id))
        yield decoder.decode(b"", final=True)

    def _token_bytes(self, token_id: int) -> bytes:
        token = self.vocab.get(token_id)
        if token is None:
            raise InputError(f"token id {token_id} is not in the vocabulary, whose ids end at {self.vocab_size - 1}")
        return token

    def encode_files(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        num_processes: int | None = None,
        errors: str = "strict",
        progress: bool = False,
        report: EncodingReport | None = None,
    ) -> TokenFile:
        """Text files to one token file, in parallel; the same bytes for any number of processes.

        Each file is a document or several of them: where one does not end with <|endoftext|> and another follows,
        that token is put between them, if the vocabulary has it. report: filled in.
        """
        corpus = Corpus(inputs, errors, "encoding" if progress else "")
        for path in (Path(output), description_path(output)):
            refuse_input(path, corpus.files)
        choice = self.code_for(corpus.file_bytes)
        if report is not None:
            report.path, report.compile_seconds = choice.reason, choice.seconds
        current_file, in_document, separator_id = 0, False, self.end_of_text_id
        with closing(corpus), TokenFileWriter(output, self.vocab_size, self.digest, separator_id) as writer:
            for piece in self._encode_corpus(corpus, num_processes or available_cores(), choice.native):
                if piece.file != current_file and in_document:
                    if separator_id is None:
                        writer.num_documents += 1  # and nothing marks its end
                    else:
                        writer.write(np.array([separator_id], writer.dtype))
                    in_document = False
                current_file = piece.file
                writer.write(piece.token_ids)
                writer.num_bytes += piece.num_bytes
                in_document = piece.in_document or (in_document and not piece.ends_document)
            if not writer.num_tokens:
                raise InputError(f"{corpus.name}: no text to encode; the input is empty")
            writer.num_documents += in_document  # one that no separator closes
        return TokenFile.open(output)

    def _encode_corpus(self, corpus: Corpus, num_processes: int, native: ModuleType | None) -> Iterator["EncodedPiece"]:
        separator = END_OF_TEXT if self.end_of_text_id is not None else None
        dtype = token_dtype(self.vocab_size)
        if native:
            for window, token_ids in self._kernel_encoder(native).encode_corpus(corpus, num_processes):
                text = window.text_behind(separator)
                if token_ids is None:  # a byte has no token: the reference says which
                    token_ids = np.array(self.encode(window.text), dtype)
                yield EncodedPiece(window.number, token_ids, window.length, *text)
            return
        pieces = (
            (number, piece)
            for number, file in enumerate(corpus.files)
            for piece in cut_into_pieces(corpus.blocks(file), self.special_tokens, self.pattern)
        )
        encoded = map_in_order(_encode_piece, pieces, num_processes, _start_encoding, (self, dtype))
        for (number, piece), token_ids in encoded:
            _, found, rest = piece.rpartition(separator) if separator else ("", "", piece)
            yield EncodedPiece(number, token_ids, len(piece.encode()), bool(found), bool(rest.strip()))


class EncodedPiece(NamedTuple):
    """The ids of a piece of a file, and what a count of documents must know of its text."""

    file: int  # its number
    token_ids: np.ndarray
    num_bytes: int  # of its text
    ends_document: bool  # whether a separator is in it
    in_document: bool  # whether there is text behind the last one


def to_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot hold; replace it first"
        ) from None


def merge_by_rank(token_ids: list[int], ranks: Ranks) -> list[int]:
    """Applies merges to one pre-token: always the oldest that fits, of equals the leftmost; n log n in its length.

    The tokens form a linked list, and the heap holds the pairs that could merge. A pair whose tokens have changed
    since it was pushed is stale, and is passed over.
    """
    token_ids = list(token_ids)
    end = len(token_ids)
    following, preceding = list(range(1, end + 1)), list(range(-1, end - 1))
    heap: list[tuple[int, int, int, int, int]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right < end and (merge := ranks.get((token_ids[left], token_ids[right]))):
            heapq.heappush(heap, (merge[0], left, token_ids[left], token_ids[right], merge[1]))

    for left in range(end - 1):
        push(left, left + 1)
    while heap:
        _, left, left_id, right_id, merged_id = heapq.heappop(heap)
        right = following[left]
        if token_ids[left] != left_id or right == end or token_ids[right] != right_id:
            continue
        token_ids[left], token_ids[right] = merged_id, -1  # -1: no longer in the list
        following[left] = following[right]
        if following[left] < end:
            preceding[following[left]] = left
        push(preceding[left], left)
        push(left, following[left])
    return [token_id for token_id in token_ids if token_id >= 0]


_encoder: tuple[Tokenizer, np.dtype] | None = None  # in each encoding process


def _start_encoding(tokenizer: Tokenizer, dtype: np.dtype) -> None:
    global _encoder
    _encoder = (tokenizer, dtype)


def _encode_piece(numbered_piece: tuple[int, str]) -> np.ndarray:
    assert _encoder is not None
    tokenizer, dtype = _encoder
    return np.array(tokenizer.encode(numbered_piece[1]), dtype)
