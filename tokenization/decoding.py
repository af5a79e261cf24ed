"""Decoding: token ids to bytes and text."""

import codecs
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from types import ModuleType
from typing import Any

import numpy as np

from tokenization.bpe import Vocabulary
from tokenization.errors import InputError

NATIVE_FROM_IDS = 128  # of an array; with fewer, calling the kernels takes longer than they save
CHUNK_IDS = 4096  # looked up and joined at once: so few that their tokens stay in the processor's cache


class Decoder:
    """The bytes of each token of a vocabulary. vocab_size: a number above all its ids."""

    def __init__(self, vocab: Vocabulary, vocab_size: int):
        self._vocab, self._vocab_size = vocab, vocab_size
        self.native: Any = None  # a native.Decoder; see with_kernels
        self._make: Callable[[tuple[bytes | None, ...]], Any] | None = None  # makes it, once the kernels are loaded
        # It is looked up faster than a dict, but the ids of a sparse vocabulary go up to 2**32. And Python's search for
        # garbage, which all threads wait for, passes over a tuple of bytes, and not over a list.
        self._tokens = tuple(map(vocab.get, range(min(vocab_size, 2 * len(vocab)))))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"native": None, "_make": None}  # their memory is this process's

    def use(self, kernels: ModuleType) -> None:
        """Decodes many ids by the kernels from now on."""
        self._make = kernels.Decoder

    def with_kernels(self) -> Any:
        """Returns the native.Decoder, made at the first call; None until the kernels are loaded."""
        if self.native is None and (make := self._make) is not None:
            decoder = make(self._tokens)
            if decoder.is_usable:
                self.native = decoder
            else:
                self._make = None
        return self.native

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token. Raises InputError for an unknown id."""
        try:
            token = self._vocab.get(operator.index(token_id))  # an element of a tensor has a hash of its own
        except TypeError:
            token = None
        if token is None:
            raise InputError(f"token id {token_id} is not in the vocabulary, whose ids end at {self._vocab_size - 1}")
        return token

    def decode(self, token_ids: Iterable[int]) -> str:
        """Returns the text of token ids, with U+FFFD for what is not UTF-8. Raises InputError for an unknown id."""
        native = self.native or self.with_kernels()
        if type(token_ids) is list and native is not None:
            text: str | None = native.decode_list(token_ids, True)
            if text is not None:
                return text
        return str(self.decode_bytes(token_ids), "utf-8", "replace")

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes | memoryview:
        """Returns the bytes of token ids. Raises InputError for an unknown id."""
        native = self.native or self.with_kernels()
        if isinstance(token_ids, np.ndarray):
            if len(token_ids) >= NATIVE_FROM_IDS and native and (ids := as_int64(token_ids)) is not None:
                data: memoryview | None = native.decode(ids)
                if data is not None:
                    return data
            token_ids = token_ids.tolist()
        listed = token_ids if isinstance(token_ids, list) else list(token_ids)
        if native and (joined := native.decode_list(listed, False)) is not None:
            return bytes(joined)
        if len(listed) <= CHUNK_IDS:
            return self._join(listed)
        return b"".join([self._join(listed[start : start + CHUNK_IDS]) for start in range(0, len(listed), CHUNK_IDS)])

    def _join(self, ids: list[int]) -> bytes:
        if len(ids) < 2:  # itemgetter gives no tuple
            return b"".join(map(self.token_bytes, ids))
        try:
            array("I", ids)  # refuses negative ids, which a list would count from its end
            return b"".join(itemgetter(*ids)(self._tokens))
        except (OverflowError, IndexError, TypeError):
            return b"".join(map(self.token_bytes, ids))

    def decode_iterable(self, token_ids: Iterable[int]) -> Iterator[str]:
        """Yields the text of token ids as it grows: a character as soon as all its bytes are there."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in token_ids:
            yield decoder.decode(self.token_bytes(token_id))
        yield decoder.decode(b"", final=True)


def as_int64(ids: np.ndarray) -> np.ndarray | None:
    """Returns ids as an array of int64, shape (n,); None where they are no whole numbers, or too large."""
    whole = ids.ndim == 1 and np.can_cast(ids.dtype, np.int64)
    return np.ascontiguousarray(ids, np.int64) if whole and ids.dtype != np.bool_ else None
