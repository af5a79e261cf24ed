"""The tokenizer: text to token ids and back, by a vocabulary and its merges (handout, section 2).

    encode    text -> special tokens and pre-tokens -> bytes -> merges, the oldest first -> ids
    decode    ids -> bytes -> text; what is not UTF-8 becomes U+FFFD

Vocabulary and merges come from training.py, or from files: folder.py, interchange.py. Whole files are encoded by
encoding.py.
"""

import codecs
import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from tokenization import formats
from tokenization.bpe import Merges, Ranks, Vocabulary, merge_by_rank
from tokenization.encoding import EncodingReport, encode_files
from tokenization.errors import InputError
from tokenization.folder import read_folder, write_folder
from tokenization.pretokenization import (
    END_OF_TEXT,
    GPT2_PATTERN,
    KERNELS_FROM_BYTES,
    PATTERNS,
    Choice,
    check_pattern,
    check_special_tokens,
    cut_into_chunks,
    kernels_for,
    pretokenize,
    split_on_special_tokens,
)
from tokenization.token_file import TokenFile, token_dtype

MAX_CACHED_PRETOKENS = 1 << 18


class Tokenizer:
    """A byte-level BPE tokenizer.

    vocab: {id: bytes}. merges: pairs of byte strings, in order of creation. special_tokens: never split; where two of
    them overlap, the longer one wins; one that the vocabulary lacks is appended to it. pattern: a regular expression
    that splits text before any merge. Raises InputError where these do not fit together.
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
        self._encoder: Any = None  # a native.Encoder, once a string was large enough

    def __len__(self) -> int:
        """Return the number of tokens, special tokens among them; `vocab_size` is larger where ids are left out."""
        return len(self.vocab)

    def __repr__(self) -> str:
        names = {pattern: name for name, pattern in PATTERNS.items()}
        pattern = names.get(self.pattern) or reprlib.repr(self.pattern)
        special_tokens = reprlib.repr(self.special_tokens)
        return f"<Tokenizer: {len(self):,} tokens, special {special_tokens}, pattern {pattern}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}  # its memory is this process's

    @classmethod
    def from_files(
        cls,
        vocab_filepath: str | os.PathLike[str],
        merges_filepath: str | os.PathLike[str],
        special_tokens: Sequence[str] | None = None,
    ) -> "Tokenizer":
        """Read a vocab.json and a merges.txt in GPT-2's format, such as GPT-2's own.

        Raises InputError where the merges do not make every token: the file is cut, or a special token is not named.
        <|endoftext|> need not be named, and is an ordinary token then.
        """
        check_special_tokens(special_tokens or [])
        vocab = formats.read_vocabulary(vocab_filepath, special_tokens or ())
        merges = formats.read_merges(merges_filepath)
        unmerged = [*(special_tokens or ()), END_OF_TEXT]
        formats.check_merges(vocab_filepath, merges_filepath, vocab, merges, unmerged, "special_tokens")
        return cls(vocab, merges, special_tokens)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """Read a folder that `save` wrote, one with Hugging Face's tokenizer.json, or one with GPT-2's two files.

        Raises InputError where it is damaged, or would give other ids here than with its own library.
        """
        return cls(*read_folder(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json into a folder; all of them or none."""
        write_folder(folder, formats.TokenizerDefinition(self.vocab, self.merges, self.special_tokens, self.pattern))

    @property
    def digest(self) -> str:
        """The SHA-256 of everything that decides the ids, which token files and runs record."""
        vocab = sorted((token_id, token.hex()) for token_id, token in self.vocab.items())
        merges = [(left.hex(), right.hex()) for left, right in self.merges]
        content = json.dumps([vocab, merges, sorted(self.special_tokens), self.pattern])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def end_of_text_id(self) -> int | None:
        """The id of <|endoftext|>, or None where it is no special token."""
        return self._special_ids.get(END_OF_TEXT)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a string. Raises InputError for a lone surrogate, which UTF-8 cannot hold."""
        if len(text) >= KERNELS_FROM_BYTES and (token_ids := self._encode_large(text)) is not None:
            return token_ids
        to_utf8(text)
        return self._encode_plainly(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the token ids of any bytes, and of UTF-8 those that `encode` gives.

        A byte that is not UTF-8 is split off as a punctuation mark is.
        """
        return self._encode_plainly(data.decode(errors="surrogateescape"))

    def _encode_plainly(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for index, stretch in enumerate(split_on_special_tokens(text, self.special_tokens)):
            if index % 2:
                token_ids.append(self._special_ids[stretch])
            else:
                for pretoken in pretokenize(stretch, self.pattern):
                    token_ids += self._cache.get(pretoken) or self._encode_pretoken(pretoken)
        return token_ids

    def _encode_large(self, text: str) -> list[int] | None:
        """Encode by the kernels; None where there are none, or where a byte has no token, which the caller names."""
        native = self.code_for(len(text)).native
        if native is None:
            return None
        token_ids = self.kernel_encoder(native).encode(native.Window.of_bytes(to_utf8(text)))
        return None if token_ids is None else token_ids.tolist()

    def code_for(self, num_bytes: int) -> Choice:
        """Choose the code that encodes so many bytes: the kernels, loaded or compiled by now, or plain Python."""
        choice = kernels_for(self.pattern, num_bytes, "encoding")
        if choice.native and not choice.native.can_encode(self.vocab_size, len(self.merges)):
            return Choice(None, "plain Python (too many tokens for the kernels)", choice.seconds)
        return choice

    def kernel_encoder(self, native: ModuleType) -> Any:
        """Return the native.Encoder of this tokenizer, made at the first call."""
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
        """Yield the token ids of all the strings joined, without holding them all at once."""
        for chunk in cut_into_chunks(strings, self.special_tokens, self.pattern):
            yield from self.encode(chunk)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids, with U+FFFD for what is not UTF-8. Raises InputError for an unknown id."""
        return "".join(self.decode_iterable(token_ids))

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """Return the bytes of token ids, as `encode_bytes` was given them."""
        return b"".join(map(self._token_bytes, token_ids))

    def decode_iterable(self, token_ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of token ids as it grows: a character as soon as all its bytes are there."""
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
        """Encode text files into one token file, in parallel; the same bytes for any number of processes.

        Each file is one document or several: where one does not end with <|endoftext|> and another follows, that token
        is put between them, if the vocabulary has it. errors: "strict" or "replace", for bytes that are not UTF-8.
        report: filled in. Raises InputError for unreadable or empty text, and an output that cannot be written.
        """
        return encode_files(self, inputs, output, num_processes, errors, progress, report)


def to_utf8(text: str) -> bytes:
    """Return the text as UTF-8. Raises InputError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has the lone surrogate U+{ord(text[error.start]):04X}, which UTF-8 cannot hold; replace it first"
        ) from None
