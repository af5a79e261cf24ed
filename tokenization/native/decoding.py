"""Decodes ids: the bytes of all tokens stand in one array, and those of the ids are copied one after the other."""

from collections.abc import Sequence

import numpy as np

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load64, store64
from tokenization.native.memory import PADDING, address_of

LENGTH_BITS = 24  # of a token's entry; the bits above say where its bytes begin


class Decoder:
    """The bytes of each token as kernels read them. tokens: by id, None where an id is unknown."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        lengths = np.fromiter((len(token or b"") for token in tokens), np.int64, len(tokens))
        self._entries = np.cumsum(lengths) - lengths << LENGTH_BITS | lengths
        self._entries[[token is None for token in tokens]] = -1
        self._bytes = np.frombuffer(b"".join(filter(None, tokens)) + bytes(PADDING), np.uint8)
        self._addresses = address_of(self._entries), address_of(self._bytes)
        self.is_usable = int(lengths.max(initial=0)) < 1 << LENGTH_BITS

    def decode(self, token_ids: np.ndarray) -> memoryview | None:
        """Returns the bytes of ids, int64; None if one of them is unknown."""
        entries, source = self._addresses
        ids, count = address_of(token_ids), len(token_ids)
        size = decoded_size(ids, count, entries, len(self._entries))
        if size < 0:
            return None
        text = np.empty(size + 8, np.uint8)
        copy_tokens(ids, count, entries, source, address_of(text))
        return text.data[:size]


@compiled
def decoded_size(ids: int, count: int, entries: int, num_tokens: int) -> int:
    """Returns how many bytes `count` ids of int64 stand for; -1 if one of them is unknown."""
    size = 0
    for index in range(count):
        token_id = load64(ids + 8 * index)
        if token_id < 0 or token_id >= num_tokens:
            return -1
        entry = load64(entries + 8 * token_id)
        if entry < 0:
            return -1
        size += entry & ((1 << LENGTH_BITS) - 1)
    return size


@compiled
def copy_tokens(ids: int, count: int, entries: int, source: int, out: int) -> None:
    """Writes the bytes of known ids, and up to 7 bytes behind them."""
    for index in range(count):
        entry = load64(entries + 8 * load64(ids + 8 * index))
        address, length = source + (entry >> LENGTH_BITS), entry & ((1 << LENGTH_BITS) - 1)
        for offset in range(0, length, 8):
            store64(out + offset, load64(address + offset))
        out += length
