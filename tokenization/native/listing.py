"""Lists of ids, several times as fast as numpy's tolist(): the int of each id is made once, and lists share it."""

import functools

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load32
from tokenization.native.objects import new_list, share_item


@functools.cache
def numbers_below(count: int) -> tuple[int, ...]:
    """Returns the numbers from 0 on, which all lists share."""
    numbers: list[int] = []
    for start in range(0, count, 1 << 14):  # other threads wait for each step, and not for all of them
        numbers += range(start, min(start + (1 << 14), count))
    return tuple(numbers)  # which Python's search for garbage passes over


@compiled
def list_ids(ids: int, count: int, width: int, numbers: int) -> object:
    """Returns a list of `count` ids of `width` bytes, which are all among the numbers; 2 more bytes can be read."""
    listed = new_list(count)
    if listed:
        mask = (1 << 8 * width) - 1
        for index in range(count):
            share_item(numbers, load32(ids + width * index) & mask, listed, index)
    return listed
