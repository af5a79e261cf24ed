"""What kernels and the Python around them agree on: raw addresses, heads of named fields, and why a kernel returned.

Kernels take int64 only, and addresses as int64 too. An array passed from one compiled function to another costs a
reference count; an address costs nothing, but nothing checks it either. So every kernel says what it reads and writes,
every class keeps alive the arrays whose addresses it hands out, and every text is followed by PADDING readable bytes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tokenization.systems import huge_pages

PADDING = 128  # two blocks of 64 bytes
HUGE_PAGE = 1 << 21

# Why a kernel returned: its work is done, or something is missing that the caller must provide first.
DONE, TABLE_FULL, SCRATCH_FULL, NO_TOKEN, PLACES_FULL, PAIRS_FULL, UNDER_FLOOR = range(7)


def address_of(array: np.ndarray) -> int:
    """Returns the address of an array's first byte; the caller keeps the array alive."""
    return int(array.ctypes.data)


def large_zeros(shape: int | tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Makes an array of zeros that is read at random: on Linux in huge pages, whose addresses the processor knows."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = huge_pages(size + HUGE_PAGE) if size >= HUGE_PAGE else None
    if memory is None:
        return np.zeros(shape, dtype)
    whole = np.frombuffer(memory, np.uint8)
    start = -address_of(whole) % HUGE_PAGE
    return whole[start : start + size].view(dtype).reshape(shape)


class Head:
    """A row of int64 that tells kernels all about a structure: numbers, and addresses of arrays, which it keeps alive.

    A field is its offset in bytes. Kernels read it and classes fill it under one and the same name, and a new head
    must be given every field of its kind: so the two sides cannot disagree about the order.
    """

    def __init__(self, fields: Sequence[int], values: Mapping[int, int | np.ndarray]) -> None:
        if wrong := set(fields) ^ set(values):
            raise ValueError(f"fields missing from a head, or unknown to it: offsets {sorted(wrong)}")
        self._row = np.zeros(len(fields), np.int64)
        self.address = address_of(self._row)
        self.arrays: dict[int, np.ndarray] = {}
        for field, value in values.items():
            self[field] = value

    def __getitem__(self, field: int) -> int:
        return int(self._row[field // 8])

    def __setitem__(self, field: int, value: int | np.ndarray) -> None:
        if isinstance(value, np.ndarray):
            self.arrays[field] = value
            value = address_of(value)
        self._row[field // 8] = value

    def copy(self) -> "Head":
        """Copies the numbers and addresses; the copy keeps the arrays alive as well."""
        values = {8 * index: int(value) for index, value in enumerate(self._row)} | self.arrays
        return Head(tuple(values), values)
