"""Lists of ids, several times as fast as numpy's tolist(): the int of each id is made once, and lists share it."""

import functools

import numpy as np

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load32, load64, prefetch, store64
from tokenization.native.objects import new_list, new_number, release, share_item

AHEAD = 12  # ids from now: an int that is shared by then has come into the cache


@functools.cache
def numbers_below(count: int) -> np.ndarray:
    """Returns the addresses of the ints from 0 on, int64, shape (count,); 0 for one that no list has had yet.

    Lists share these ints, which live as long as the process.
    """
    return np.zeros(count, np.int64)


@compiled
def list_ids(ids: int, count: int, width: int, numbers: int) -> object:
    """Returns a list of `count` ids of `width` bytes, all below the length of `numbers`; 2 more bytes can be read.

    numbers: the address of numbers_below().
    """
    listed = new_list(count)
    if listed:
        mask = (1 << 8 * width) - 1
        for index in range(count):
            ahead = load32(ids + width * min(index + AHEAD, count - 1)) & mask
            prefetch(load64(numbers + 8 * ahead))
            token_id = load32(ids + width * index) & mask
            number = load64(numbers + 8 * token_id)
            if number == 0:
                number = new_number(token_id)
                if number == 0:
                    release(listed)
                    return 0
                store64(numbers + 8 * token_id, number)
            share_item(number, listed, index)
    return listed
