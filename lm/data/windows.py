"""Batches of windows from token files, each of which follows from its number alone.

The windows are random ones of one file or several, those of the documents in a new order each pass, or all of a file,
one after another. Those of the first batches may be cut into shorter ones.
"""

import numpy as np
from torch.utils.data import Dataset

from lm.data.batches import Batch, gather_mixed_windows, gather_windows, to_batch
from lm.data.document_stream import DocumentStream
from lm.data.mixture import Mixture
from tokenization.tokens.token_set import Tokens


def random_starts(seed: int, batch_index: int, batch_size: int, num_starts: int) -> np.ndarray:
    """Returns offsets uniform in [0, num_starts), (batch_size,) int64, the same with every version of NumPy.

    NumPy guarantees the words of a SeedSequence across versions, but not what its generators make of them.
    """
    words = np.random.SeedSequence((seed, batch_index)).generate_state(batch_size, np.uint64)
    return (words % np.uint64(num_starts)).astype(np.int64)


class RandomWindows(Dataset[Batch]):
    """A dataset of num_batches batches of random windows; item i is batch number first_batch + i."""

    def __init__(
        self,
        tokens: Tokens,
        context_length: int,
        batch_size: int,
        seed: int,
        num_batches: int,
        first_batch: int = 0,
    ):
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.seed, self.num_batches, self.first_batch = seed, num_batches, first_batch

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> Batch:
        num_starts = len(self.tokens) - self.context_length
        starts = random_starts(self.seed, self.first_batch + index, self.batch_size, num_starts)
        return gather_windows(self.tokens, starts, self.context_length)


class DocumentWindows(Dataset[Batch]):
    """A dataset of num_batches batches of a stream's windows in their order, from window number first_window on."""

    def __init__(self, stream: DocumentStream, batch_size: int, num_batches: int, first_window: int = 0):
        self.stream, self.batch_size = stream, batch_size
        self.num_batches, self.first_window = num_batches, first_window

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> Batch:
        first = self.first_window + index * self.batch_size
        return to_batch(self.stream.read(np.arange(first, first + self.batch_size)))


class SequentialWindows(Dataset[Batch]):
    """A dataset of all adjacent windows, in batches; a remainder too short for a window is left out."""

    def __init__(self, tokens: Tokens, context_length: int, batch_size: int):
        self.tokens, self.context_length, self.batch_size = tokens, context_length, batch_size
        self.num_windows = (len(tokens) - 1) // context_length

    def __len__(self) -> int:
        return -(-self.num_windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        windows = np.arange(first, min(first + self.batch_size, self.num_windows))
        return gather_windows(self.tokens, windows * self.context_length, self.context_length)


class ShortFirst(Dataset[Batch]):
    """A dataset whose first num_short batches are cut into windows of length tokens: the same tokens in the same order.

    Each step reads as many tokens as later ones do, but a token attends to its own piece alone, which saves time.
    """

    def __init__(self, windows: Dataset[Batch], length: int, num_short: int):
        self.windows, self.length, self.num_short = windows, length, num_short

    def __len__(self) -> int:
        return len(self.windows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        inputs, targets = self.windows[index]
        if index >= self.num_short:
            return inputs, targets
        return inputs.reshape(-1, self.length), targets.reshape(-1, self.length)


def check_short_windows(length: int | None, steps: int, context_length: int) -> None:
    """Raises ValueError for a length that does not cut windows evenly, and for one of the two settings alone."""
    if steps < 0:
        raise ValueError(f"short_steps is {steps}; it must be at least 0")
    if (length is None) != (steps == 0):
        raise ValueError(f"short_context is {length} and short_steps {steps}; set both, or neither")
    if length is not None and (not 0 < length < context_length or context_length % length):
        raise ValueError(
            f"short_context is {length}; it must be a divisor of context_length {context_length}, and less than that"
        )


class MixedWindows(Dataset[Batch]):
    """A dataset of num_batches batches of random windows of a mixture; item i is batch number first_batch + i."""

    def __init__(
        self,
        mixture: Mixture,
        context_length: int,
        batch_size: int,
        seed: int,
        num_batches: int,
        first_batch: int = 0,
    ):
        self.mixture, self.context_length, self.batch_size = mixture, context_length, batch_size
        self.seed, self.num_batches, self.first_batch = seed, num_batches, first_batch
        self.num_starts = np.array([len(file) - context_length for file in mixture.files], np.uint64)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> Batch:
        sources, words = self.mixture.draw(self.seed, self.first_batch + index, self.batch_size)
        tokens = [self.mixture.files[number].tokens for number in sources.tolist()]
        return gather_mixed_windows(tokens, (words % self.num_starts[sources]).astype(np.int64), self.context_length)
