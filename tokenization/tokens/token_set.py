"""The tokens of a token set: those of its shards one after another, as if they were one array on the disk.

Whatever takes a token file takes the folder of a set, with one difference: a shard's bytes are verified when they are
first used, and not all at the beginning. The index is token_index.py's.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np

from tokenization.systems import open_files
from tokenization.tokens.token_format import DTYPES, Description, verify_tokens
from tokenization.tokens.token_index import Index, check_shard, progress

MOST_MAPPED = max(open_files() // 4, 64)  # shards: each map holds an open file; shards beyond are read, which is slower


class ShardedTokens:
    """The token ids of a set's shards one after another, with what is used of a NumPy array.

    verify: check a shard's digest and ids when it is first used; InputError, from then on, where they are wrong.
    """

    def __init__(self, folder: Path, index: Index, verify: bool = True):
        self.dtype = DTYPES[index.description.dtype]
        self._folder, self._index = folder, index
        self._paths = [folder / shard.path for shard in index.shards]
        self._bounds = [0, *accumulate(shard.tokens for shard in index.shards)]
        self._unverified = set(range(len(self._paths))) if verify else set()
        self._mapped: dict[int, np.ndarray] = {}  # by the shard's number

    def __len__(self) -> int:
        return self._bounds[-1]

    @overload
    def __getitem__(self, place: int) -> np.integer[Any]: ...

    @overload
    def __getitem__(self, place: slice) -> np.ndarray: ...

    def __getitem__(self, place: int | slice) -> np.integer[Any] | np.ndarray:
        """Returns one token id, or those between two places, without a copy where they are of one shard."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return self._between(start, stop) if step == 1 else np.asarray(self)[place]
        start = range(len(self))[place]
        token_id: np.integer[Any] = self._between(start, start + 1)[0]
        return token_id

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._between(0, len(self)).astype(dtype or self.dtype, copy=False)

    def _between(self, start: int, stop: int) -> np.ndarray:
        """Returns the token ids from `start` to before `stop`, which may lie in several shards."""
        number = bisect_right(self._bounds, start) - 1
        if start < stop <= self._bounds[number + 1]:
            return self._of_shard(number, start, stop)
        parts = [np.empty(0, self.dtype)]
        while start < stop:
            end = min(stop, self._bounds[number + 1])
            parts.append(self._of_shard(number, start, end))
            number, start = number + 1, end
        return np.concatenate(parts)

    def _of_shard(self, number: int, start: int, stop: int) -> np.ndarray:
        """Returns the token ids between two places of the set that lie in this shard, which is verified before."""
        start, stop = start - self._bounds[number], stop - self._bounds[number]
        mapped = self._mapped.get(number)
        if mapped is not None:
            return mapped[start:stop]
        if number in self._unverified:
            self._verify([number])
        if len(self._mapped) < MOST_MAPPED:
            self._check(number)  # the set may have been replaced
            self._mapped[number] = np.memmap(self._paths[number], self.dtype, mode="r").view(np.ndarray)
            return self._mapped[number][start:stop]
        return np.fromfile(self._paths[number], self.dtype, stop - start, offset=start * self.dtype.itemsize)

    def _check(self, number: int) -> Description:
        """Returns the description of a shard. Raises InputError unless it is the file that the set had when opened."""
        return check_shard(self._folder, self._index.shards[number], self._index.description)

    def verify_rest(self) -> None:
        """Verifies the shards that have not been used yet. Raises InputError for the first damaged one."""
        self._verify(sorted(self._unverified))

    def _verify(self, numbers: Sequence[int]) -> None:
        size = sum(self._bounds[number + 1] - self._bounds[number] for number in numbers) * self.dtype.itemsize
        with progress("verifying", size) as bar:
            for number in numbers:
                verify_tokens(self._paths[number], self._check(number), lambda data: bar.update(data.nbytes))
                self._unverified.remove(number)


Tokens = np.ndarray | ShardedTokens  # token ids on the disk, or in memory
