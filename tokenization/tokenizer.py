"""The tokenizer: text to token ids and back, by a vocabulary and its merges (handout, section 2).

    encode    text -> special tokens and pre-tokens -> bytes -> merges, the oldest first -> ids
    decode    ids -> bytes -> text; what is not UTF-8 becomes U+FFFD

Vocabulary and merges come from training.py, or from files: formats/, interchange.py. plain_encoding.py says what
encoding is, and switching.py replaces it by compiled kernels. Whole files are encoded by encoding.py. What only some
calls need is imported by them, so that a program that encodes a line starts soon.
"""

import functools
import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tokenization.bpe import Merges, Vocabulary, find_merge_ids
from tokenization.decoding import Decoder
from tokenization.errors import InputError
from tokenization.formats import gpt2
from tokenization.formats.folder import read_folder, tokenizer_files, write_folder
from tokenization.kept_tables import Table, add_digest, is_kept, key_of, read_table, write_table
from tokenization.patterns import parts_of
from tokenization.plain_encoding import PlainEncoder
from tokenization.pretokenization import (
    END_OF_TEXT,
    GPT2_PATTERN,
    PATTERNS,
    check_pattern,
    check_special_tokens,
    cut_into_chunks,
    group_texts,
)
from tokenization.switching import EncoderSwitch
from tokenization.tokens.token_format import token_dtype

if TYPE_CHECKING:
    from tokenization.encoding import EncodingReport
    from tokenization.tokens.token_file import TokenFile

PIECE_CHARACTERS = 1 << 16  # of a long text or a stream, encoded at once


class Tokenizer:
    """A byte-level BPE tokenizer.

    vocab: {id: bytes}. merges: pairs of byte strings, in order of creation. special_tokens: never split; where two of
    them overlap, the longer one wins; one that the vocabulary lacks is appended to it. pattern: a regular expression
    that splits text before any merge. merge_ids: the ids of each merge, (left, right, merged), int64, shape (merges,
    3), where they are known and merges is None. Raises InputError where these do not fit together.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        merges: Merges | None,
        special_tokens: Sequence[str] | None = None,
        pattern: str = GPT2_PATTERN,
        merge_ids: np.ndarray | None = None,
    ):
        self.vocab = dict(vocab)
        check_special_tokens(special_tokens or [])
        self.special_tokens = list(dict.fromkeys(special_tokens or []))
        self.pattern = pattern
        check_pattern(pattern)
        wanted = {bytes([value]) for value in range(256)} | {special.encode() for special in self.special_tokens}
        ids = {token: token_id for token_id, token in vocab.items() if merges is not None or token in wanted}
        for special in self.special_tokens:
            if special.encode() not in ids:
                ids[special.encode()] = new_id = max(self.vocab, default=-1) + 1
                self.vocab[new_id] = special.encode()
        self.vocab_size = max(self.vocab, default=-1) + 1  # ids lie below this
        self._decoder = Decoder(self.vocab, self.vocab_size)
        self._special_ids = {special: ids[special.encode()] for special in self.special_tokens}
        self._byte_ids = [ids.get(bytes([value]), -1) for value in range(256)]
        self._merge_ids = find_merge_ids(merges or [], ids) if merge_ids is None else merge_ids
        self.plain = PlainEncoder(self._byte_ids, self._merge_ids, self._special_ids, pattern)
        self._table_key: str | None = None  # of a folder whose tables may be kept
        self.switch = EncoderSwitch(
            pattern,
            self.vocab_size,
            self._byte_ids,
            self._merge_ids,
            self._special_ids,
            self._decoder,
        )

    def __len__(self) -> int:
        """Returns the number of tokens, special tokens among them; `vocab_size` is larger where ids are left out."""
        return len(self.vocab)

    def __repr__(self) -> str:
        names = {pattern: name for name, pattern in PATTERNS.items()}
        pattern = names.get(self.pattern) or reprlib.repr(self.pattern)
        special_tokens = reprlib.repr(self.special_tokens)
        return f"<Tokenizer: {len(self):,} tokens, special {special_tokens}, pattern {pattern}>"

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | os.PathLike[str],
        merges_filepath: str | os.PathLike[str],
        special_tokens: Sequence[str] | None = None,
    ) -> "Tokenizer":
        """Reads a vocab.json and a merges.txt in GPT-2's format, such as GPT-2's own.

        Raises InputError where the merges do not make every token: the file is cut, or a special token is not named.
        <|endoftext|> need not be named, and is an ordinary token then.
        """
        check_special_tokens(special_tokens or [])
        vocab = gpt2.read_vocabulary(vocab_filepath, special_tokens or ())
        merges = gpt2.read_merges(merges_filepath)
        unmerged = [*(special_tokens or ()), END_OF_TEXT]
        gpt2.check_merges(vocab_filepath, merges_filepath, vocab, merges, unmerged, "special_tokens")
        return cls(vocab, merges, special_tokens)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """Reads a folder that `save` wrote, one with Hugging Face's tokenizer.json, or one with GPT-2's two files.

        Raises InputError where it is damaged, or would give other ids here than with its own library.
        """
        files = tokenizer_files(folder)
        key = key_of(files)
        if key and (kept := read_table(key)):
            tokenizer = cls(kept.vocab, None, kept.special_tokens, kept.pattern, kept.merge_ids)
            if kept.digest:
                tokenizer.digest = kept.digest
            tokenizer._table_key = key
            return tokenizer
        tokenizer = cls(*read_folder(folder))
        if key and key == key_of(files):
            tokenizer._table_key = key
            write_table(key, tokenizer._table(None))
        return tokenizer

    def _table(self, digest: str | None) -> Table:
        return Table(self.vocab, self._merge_ids, self.special_tokens, self.pattern, digest)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes vocab.json, merges.txt and tokenizer_config.json into a folder; all of them or none."""
        written = write_folder(folder, self.vocab, self._merge_ids, self.special_tokens, self.pattern)
        loadable = -1 not in self._byte_ids
        if loadable and is_kept(self._merge_ids) and (key := key_of(tokenizer_files(folder), written)):
            write_table(key, self._table(None))

    @cached_property
    def merges(self) -> Merges:
        """The merges, pairs of byte strings in order of creation; made when they are first asked for."""
        lefts, rights, _ = self._merge_ids.T.tolist()
        token_of = self.vocab.__getitem__
        return list(zip(map(token_of, lefts), map(token_of, rights), strict=True))

    @property
    def num_merges(self) -> int:
        """The number of merges."""
        return len(self._merge_ids)

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that decides the ids, which token files and runs record."""
        vocab = {token_id: token.hex() for token_id, token in self.vocab.items()}
        merges = [(vocab[left], vocab[right]) for left, right in self._merge_ids[:, :2].tolist()]
        content = json.dumps([sorted(vocab.items()), merges, sorted(self.special_tokens), self.pattern])
        digest = hashlib.sha256(content.encode()).hexdigest()
        if self._table_key:
            add_digest(self._table_key, self._table(digest))
        return digest

    @property
    def end_of_text_id(self) -> int | None:
        """The id of <|endoftext|>, or None where it is no special token."""
        return self._special_ids.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a string. Raises InputError for a lone surrogate, which UTF-8 cannot hold."""
        data = to_utf8(text)
        if (encoder := self.switch.encoder or self.switch.encoder_for(len(data))) is not None:
            token_ids: list[int] | None = encoder.encode_text(data)
            if token_ids is not None:
                return token_ids
        return list(chain.from_iterable(map(self._encode_piece, self._pieces([text]))))

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """Returns the token ids of a string as an array: uint16, or uint32 where the vocabulary needs it."""
        data = to_utf8(text)
        if (encoder := self.switch.encoder or self.switch.encoder_for(len(data))) is not None:
            token_ids: np.ndarray | None = encoder.encode_to_array(data)
            if token_ids is not None:
                return token_ids
        return np.array(self.encode(text), token_dtype(self.vocab_size))

    def encode_batch(self, texts: Iterable[str], num_threads: int | None = None) -> list[list[int]]:
        """Returns the token ids of each string.

        num_threads: None is one per core; plain Python uses one, until the kernels are loaded.
        """
        if isinstance(texts, str):
            raise InputError("texts is a string; it must be a list of them")
        from concurrent.futures import ThreadPoolExecutor

        from tokenization.systems import available_cores

        groups = list(group_texts(texts, PIECE_CHARACTERS))
        threads = min(num_threads or available_cores(), len(groups))
        if threads < 2 or self.switch.encoder_for(sum(len(text) for group in groups for text in group)) is None:
            return list(chain.from_iterable(map(self._encode_group, groups)))
        with ThreadPoolExecutor(threads) as pool:
            return list(chain.from_iterable(pool.map(self._encode_group, groups)))

    def _encode_group(self, texts: list[str]) -> list[list[int]]:
        if (encoder := self.switch.encoder) is not None:
            token_ids: list[list[int]] | None = encoder.encode_texts(list(map(to_utf8, texts)))
            if token_ids is not None:
                return token_ids
        return list(map(self.encode, texts))

    def encode_iterable(self, strings: Iterable[str]) -> Iterator[int]:
        """Yields the token ids of all the strings joined, without holding them all at once."""
        return chain.from_iterable(map(self._encode_piece, self._pieces(strings)))

    def _pieces(self, texts: Iterable[str]) -> Iterator[str]:
        """Yields the joined texts in pieces that can be encoded one by one."""
        size = PIECE_CHARACTERS
        blocks = (text[start : start + size] for text in texts for start in range(0, len(text), size))
        return cut_into_chunks(blocks, self.special_tokens, self.pattern, size, self._cut_word)

    def _cut_word(self, text: str) -> int:
        """Returns where a text that goes on can be cut within an endless word; 0 if nowhere, and by plain Python."""
        data = to_utf8(text)
        if (encoder := self.switch.encoder_for(len(data))) is None or not parts_of(self.pattern):
            return 0
        place: int = encoder.cutter.certain_cut(data, self._sorted_tokens, self.plain.ranks)
        return len(data[:place].decode())

    @cached_property
    def _sorted_tokens(self) -> list[bytes]:
        return sorted(self.vocab.values())

    def _encode_piece(self, text: str) -> list[int]:
        """Encodes by the kernels once they are loaded, and plainly until then, or where a byte has no token."""
        data = to_utf8(text)
        if (encoder := self.switch.encoder) is not None:
            token_ids: list[int] | None = encoder.encode_text(data)
            if token_ids is not None:
                return token_ids
        self.switch.count_plain(len(text))
        return self.plain.encode(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Returns the token ids of any bytes, and of UTF-8 those that `encode` gives.

        A byte that is not UTF-8 is split off as a punctuation mark is.
        """
        return self.plain.encode(data.decode(errors="surrogateescape"))

    def decode(self, token_ids: Iterable[int]) -> str:
        """Returns the text of token ids, with U+FFFD for what is not UTF-8. Raises InputError for an unknown id."""
        text = self._decoder.decode(token_ids)
        if self._decoder.native is None:
            self.switch.count_plain(len(text))
        return text

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """Returns the text of each sequence of token ids, as `decode` does."""
        return list(map(self.decode, batch))

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """Returns the bytes of token ids, as `encode_bytes` was given them."""
        return bytes(self._decoder.decode_bytes(token_ids))

    def decode_iterable(self, token_ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of token ids as it grows: a character as soon as all its bytes are there."""
        return self._decoder.decode_iterable(token_ids)

    def encode_files(
        self,
        inputs: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        num_processes: int | None = None,
        errors: str = "strict",
        progress: bool = False,
        report: "EncodingReport | None" = None,
        text_field: str | None = None,
    ) -> "TokenFile":
        """Encodes files into one token file, in parallel; the same bytes for any number of processes.

        A file of text is one document or several: where one does not end with <|endoftext|> and another follows, that
        token is put between them, if the vocabulary has it. In JSON Lines and Parquet each record is a document, whose
        text is its text_field (None: "text", or else "content"); special tokens that are written out there are text.
        errors: "strict" or "replace", for bytes that are not UTF-8. report: filled in. Raises InputError for unreadable
        or empty text, and an output that cannot be written.
        """
        from tokenization.encoding import encode_files

        title = "encoding" if progress else ""
        return encode_files(self, inputs, output, num_processes, errors, title, report, text_field)


def to_utf8(text: str) -> bytes:
    """Returns the text as UTF-8. Raises InputError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot hold; replace it first"
        ) from None
