"""Decoding: token ids to bytes and text."""

import codecs
from array import array
from collections.abc import Iterable, Iterator
from operator import itemgetter
from types import ModuleType
from typing import Any

import numpy as np

from tokenization.bpe import Vocabulary
from tokenization.errors import InputError

NATIVE_FROM_IDS = 128  # with fewer, calling the kernels takes longer than they save
CHUNK_IDS = 4096  # looked up and joined at once: so few that their tokens stay in the processor's cache


class Decoder:
    """The bytes of each token of a vocabulary. vocab_size: a number above all its ids."""

    def __init__(self, vocab: Vocabulary, vocab_size: int):
        self._vocab, self._vocab_size = vocab, vocab_size
        self.native: Any = None  # a native.Decoder, once the kernels are loaded
        # A list is looked up faster than a dict, but the ids of a sparse vocabulary go up to 2**32.
        self._tokens = list(map(vocab.get, range(min(vocab_size, 2 * len(vocab)))))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"native": None}  # its memory is this process's

    def use(self, native: ModuleType) -> None:
        """Decodes many ids by the kernels from now on. native: the module with the kernels."""
        decoder = native.Decoder(self._tokens)
        if decoder.is_usable:
            self.native = decoder

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token. Raises InputError for an unknown id."""
        token = self._vocab.get(token_id)
        if token is None:
            raise InputError(f"token id {token_id} is not in the vocabulary, whose ids end at {self._vocab_size - 1}")
        return token

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes | memoryview:
        """Returns the bytes of token ids. Raises InputError for an unknown id."""
        ids = token_ids if isinstance(token_ids, (list, np.ndarray)) else list(token_ids)
        if len(ids) >= NATIVE_FROM_IDS and self.native is not None and (numbers := as_int64(ids)) is not None:
            data: memoryview | None = self.native.decode(numbers)
            if data is not None:
                return data
        listed: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else ids
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


def as_int64(ids: list[int] | np.ndarray) -> np.ndarray | None:
    """Returns ids as an array of int64, shape (n,); None where they are no whole numbers, or too large."""
    if isinstance(ids, np.ndarray):
        whole = ids.ndim == 1 and np.can_cast(ids.dtype, np.int64)
        return np.ascontiguousarray(ids, np.int64) if whole and ids.dtype != np.bool_ else None
    try:
        return np.frombuffer(array("q", ids), np.int64)
    except (TypeError, OverflowError):
        return None
