"""The pre-tokens of a chunk of text: where each begins, its key, and the slot of the table where it belongs.

    scan -> starts -> find_homes -> keys, and home slots on their way to the cache -> look_up -> those that are unknown

Each step is done for the whole chunk before the next, so that a slot has arrived when it is read.
"""

import numpy as np

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load64, load_shared, prefetch, store64
from tokenization.native.memory import address_of
from tokenization.native.table import CHUNK_STARTS, LONG, find_slot, home_slot, key_of

(  # of each pre-token in a chunk
    HOME,  # its home slot
    HOME_LOW,  # its key
    HOME_HIGH,
) = range(0, 3 * 8, 8)
HOME_BYTES = 24


class Scratch:
    """One thread's memory for a chunk.

    Where its pre-tokens begin; when encoding, where their parts begin, and the numbers of unknown ones; and all homes.
    """

    def __init__(self) -> None:
        self._rows = np.empty((3 + HOME_BYTES // 8, CHUNK_STARTS), np.int64)
        self.address = address_of(self._rows)


PARTS, UNKNOWN, HOMES = range(8 * CHUNK_STARTS, 4 * 8 * CHUNK_STARTS, 8 * CHUNK_STARTS)  # places in a Scratch


@compiled
def find_homes(starts: int, count: int, homes: int, slots: int, shift: int) -> None:
    """Writes the home slot and the key of each pre-token, and asks for the slots to be brought into the cache."""
    address = load64(starts)
    for index in range(count):
        end = load64(starts + 8 * index + 8)
        find_home(address, end, homes + HOME_BYTES * index, slots, shift)
        address = end


@compiled
def find_home(address: int, end: int, home: int, slots: int, shift: int) -> None:
    """Writes the home slot and the key of the pre-token [address, end), and asks for the slot."""
    low, high = key_of(address, end - address)
    slot = home_slot(slots, shift, low, high)
    prefetch(slot)
    store64(home + HOME, slot)
    store64(home + HOME_LOW, low)
    store64(home + HOME_HIGH, high)


@compiled
def look_up(starts: int, index: int, count: int, homes: int, unknown: int, slots: int, shift: int, arena: int) -> int:
    """Writes the numbers of the pre-tokens from `index` on that a table of ids does not have; returns how many.

    unknown: room for the numbers of all.
    """
    elsewhere = 0  # counted without a branch, which could not be predicted
    for number in range(index, count):
        home = homes + HOME_BYTES * number
        slot, high = load64(home + HOME), load64(home + HOME_HIGH)
        store64(unknown + 8 * elsewhere, number)
        elsewhere += (load_shared(slot + 8) != high) | (load64(slot) != load64(home + HOME_LOW)) | (high >= LONG)
    lacking = 0
    for place in range(elsewhere):
        number = load64(unknown + 8 * place)
        home, address = homes + HOME_BYTES * number, load64(starts + 8 * number)
        length = load64(starts + 8 * number + 8) - address
        slot, low, high = load64(home + HOME), load64(home + HOME_LOW), load64(home + HOME_HIGH)
        if not find_slot(slots, shift, slot, low, high, address, length, arena, 16)[1]:
            store64(unknown + 8 * lacking, number)
            lacking += 1
    return lacking
