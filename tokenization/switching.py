"""The switch from plain Python to the compiled kernels, while a program goes on encoding.

    a large text           waits until the kernels are loaded or compiled: they save more time than that takes
    smaller ones           never wait; when there were many, a thread loads the kernels behind them
    once they are loaded   every text is encoded by the kernels

No id depends on when the switch happens.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tokenization.decoding import Decoder
from tokenization.kernels import (
    BEHIND_FROM_CHARACTERS,
    KERNELS_FROM_BYTES,
    LOADED_BEHIND_FROM_CHARACTERS,
    LOADED_FROM_BYTES,
    Choice,
    are_loaded,
    have_kernels,
    kernels_for,
    load_behind,
    step,
)
from tokenization.tokens.token_format import token_dtype


class EncoderSwitch:
    """The kernels' encoder of one tokenizer, from the moment it is there.

    pattern, byte_ids, merge_ids, special_ids: what native.Encoder takes. decoder: uses the kernels from the same moment
    on.
    """

    def __init__(
        self,
        pattern: str,
        vocab_size: int,
        byte_ids: Sequence[int],
        merge_ids: np.ndarray,
        special_ids: Mapping[str, int],
        decoder: Decoder,
    ):
        self.encoder: Any = None  # a native.Encoder, once the kernels are loaded
        self._work = "encoding" if have_kernels(pattern) else "pieces"
        self._pattern, self._vocab_size, self._num_merges = pattern, vocab_size, len(merge_ids)
        self._tables, self._decoder = (byte_ids, merge_ids, special_ids), decoder
        self._encoded_plainly = 0  # characters since a thread was last asked to load the kernels

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"encoder": None}  # its memory is this process's

    def choose(self, num_bytes: int, work: str = "encoding") -> Choice:
        """Chooses the code that encodes so many bytes: the kernels, loaded or compiled by now, or plain Python.

        work: "encoding", which files are and which has kernels for known patterns; or "pieces", which `regex` finds.
        """
        choice = kernels_for(self._pattern, num_bytes, work)
        if choice.native and not choice.native.can_encode(self._vocab_size, self._num_merges):
            return Choice(None, "plain Python (too many tokens for the kernels)", choice.seconds)
        return choice

    def encoder_of(self, native: ModuleType) -> Any:
        """Returns the native.Encoder of this tokenizer, made at the first call. native: the module with the kernels."""
        if self.encoder is None:
            self._decoder.use(native)
            make = native.Encoder if self._work == "encoding" else native.PieceEncoder
            self.encoder = make(*self._tables, self._pattern, token_dtype(self._vocab_size))
        return self.encoder

    def encoder_for(self, num_bytes: int) -> Any:
        """Returns the encoder if it is there, or if so many bytes are worth waiting for it; otherwise None."""
        if self.encoder is None and num_bytes >= LOADED_FROM_BYTES:
            native = self.choose(num_bytes, self._work).native
            return self.encoder_of(native) if native else None
        return self.encoder

    def count_plain(self, num_characters: int) -> None:
        """Notes how much was encoded in plain Python; when that was much, a thread loads the kernels."""
        self._encoded_plainly += num_characters
        enough = BEHIND_FROM_CHARACTERS
        if are_loaded(self._pattern, self._work):
            enough = min(enough, LOADED_BEHIND_FROM_CHARACTERS)
        if self._encoded_plainly >= enough:
            self._encoded_plainly = 0
            load_behind(self.load)

    def load(self) -> None:
        """Loads or compiles the kernels and makes the encoder, if that is possible."""
        if native := self.choose(KERNELS_FROM_BYTES, self._work).native:
            with step():
                self.encoder_of(native)
                self._decoder.with_kernels()
