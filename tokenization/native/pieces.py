"""Encodes by a pattern that no scanner knows: `regex` splits the text, and the kernels look up and merge the pieces."""

from collections.abc import Mapping, Sequence

import numpy as np

from tokenization.native.encoding import Encoder
from tokenization.native.given import given_head
from tokenization.native.memory import Head
from tokenization.pretokenization import piece_ends


class PieceEncoder(Encoder):
    """An encoder for a pattern that no scanner knows."""

    def __init__(
        self,
        byte_ids: Sequence[int],
        merge_ids: np.ndarray,
        special_ids: Mapping[str, int],
        pattern: str,
        dtype: np.dtype,
    ) -> None:
        super().__init__(byte_ids, merge_ids, special_ids, pattern, dtype)
        self._special_tokens, self._pattern = list(special_ids), pattern

    def scanner_of(self, pattern: str) -> Head:
        return given_head()

    def ends_of(self, texts: Sequence[bytes]) -> np.ndarray | None:
        """Returns where the pieces of the texts end when they are joined with a byte in between."""
        parts: list[np.ndarray] = []
        start = 0
        for data in texts:
            text = data.decode()
            ends = np.array(piece_ends(text, self._special_tokens, self._pattern), np.int64)
            parts.append(start + (ends if text.isascii() else byte_offsets(text)[ends]))
            start += len(data) + 1
            parts.append(np.array([start], np.int64))
        return np.concatenate(parts[:-1])


def byte_offsets(text: str) -> np.ndarray:
    """Returns the offset in UTF-8 of each character, and of the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = np.ones(len(points) + 1, np.int64)
    sizes[0] = 0
    for least in (0x80, 0x800, 0x10000):
        sizes[1:] += points >= least
    return np.cumsum(sizes)
