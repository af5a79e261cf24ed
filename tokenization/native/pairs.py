"""Tokens and pairs of the trainer: which pair comes first, a heap of them, and the lists that they fill.

A pair stands on the heap with the count that it had when it was listed. A count can only fall afterwards, so a pair is
counted again only when it comes to the top; learning.py puts it back if it has become rarer.
"""

import numpy as np

from tokenization.native.compiling import compiled
from tokenization.native.instructions import load8, load64, shift_right, store64, swap_bytes
from tokenization.native.memory import DONE, PADDING, PAIRS_FULL, PLACES_FULL, Head

(  # fields of a trainer's head
    CELLS,  # address of the cells (cells.py)
    TEXT,  # address of the bytes that the cells began with
    TOKENS,  # address of the tokens' rows
    NUM_TOKENS,  # how many there are
    MAX_TOKENS,  # how many there are to be
    NEIGHBOURS,  # address of a row for each token, all 0: what is known of it as a neighbour of the newest token
    TOUCHED,  # address of two lists of MAX_TOKENS + 1: the newest token's left neighbours, and its right ones
    FLOOR,  # pairs that are rarer are not listed
    BY_AGE,  # of pairs that are equally frequent the older comes first; otherwise the lexicographically greater
    PLACES,  # address of the places of all pairs, uint32, those of a pair one after another
    PLACES_USED,
    PLACES_SIZE,
    PAIRS,  # address of the pairs' rows
    PAIRS_USED,
    PAIRS_SIZE,
    HEAP,  # address of the heap: (count, pair's number), as many as there may be pairs
    HEAP_USED,
) = TRAINER_FIELDS = range(0, 17 * 8, 8)

# The fields of a token's row: where it stands in the text, its length, what decides a tie, and what it was merged from.
TOKEN_PLACE, TOKEN_LENGTH, TOKEN_ORDER, TOKEN_LEFT, TOKEN_RIGHT = range(0, 40, 8)
TOKEN_ROW = 40
PAIR_LEFT, PAIR_RIGHT, PAIR_START, PAIR_COUNT = range(0, 32, 8)  # the ids, and where its places are listed
PAIR_ROW = 32
NEIGHBOUR_ROW = 32  # as the left one: frequency, places; as the right one: frequency, places

SPARE_PLACES = 1 << 16  # places that there is room for at first, beside one for each cell
FIRST_PAIRS = 1 << 17


class Trainer(Head):
    """The head and the memory of the kernels that learn merges."""

    def __init__(self, num_cells: int, vocab_size: int, by_age: bool) -> None:
        num_places = num_cells + SPARE_PLACES
        super().__init__(
            TRAINER_FIELDS,
            {
                CELLS: np.empty(num_cells, np.int64),
                TEXT: np.zeros(num_cells + PADDING, np.uint8),
                TOKENS: np.empty((vocab_size + 1, TOKEN_ROW // 8), np.int64),
                NUM_TOKENS: 0,
                MAX_TOKENS: vocab_size,
                NEIGHBOURS: np.zeros((vocab_size + 1, NEIGHBOUR_ROW // 8), np.int64),
                TOUCHED: np.empty((2, vocab_size + 1), np.int64),
                FLOOR: 1,
                BY_AGE: int(by_age),
                PLACES: np.empty(num_places, np.uint32),
                PLACES_USED: 0,
                PLACES_SIZE: num_places,
                PAIRS: np.empty((FIRST_PAIRS, PAIR_ROW // 8), np.int64),
                PAIRS_USED: 0,
                PAIRS_SIZE: FIRST_PAIRS,
                HEAP: np.empty((FIRST_PAIRS, 2), np.int64),
                HEAP_USED: 0,
            },
        )

    def enlarge(self, status: int) -> None:
        """Doubles the room for places (PLACES_FULL) or for pairs; what is listed stays listed.

        Nothing else is copied: memory that was never written takes no room.
        """
        used, size = (PLACES_USED, PLACES_SIZE) if status == PLACES_FULL else (PAIRS_USED, PAIRS_SIZE)
        self[size] *= 2
        for field in (PLACES,) if status == PLACES_FULL else (PAIRS, HEAP):
            old = self.arrays[field]
            self[field] = np.empty((self[size], *old.shape[1:]), old.dtype)
            self.arrays[field][: self[used]] = old[: self[used]]


@compiled
def add_token(trainer: int, place: int, length: int) -> int:
    """Adds a token whose bytes stand in the text at `place`; returns its id."""
    token_id = load64(trainer + NUM_TOKENS)
    store64(trainer + NUM_TOKENS, token_id + 1)
    row = load64(trainer + TOKENS) + TOKEN_ROW * token_id
    store64(row + TOKEN_PLACE, place)
    store64(row + TOKEN_LENGTH, length)
    if load64(trainer + BY_AGE):
        store64(row + TOKEN_ORDER, -token_id)
    else:  # the first 8 bytes as a number; its top bit is flipped, because int64 would sort those with a 1 below
        first_bytes = swap_bytes(load64(load64(trainer + TEXT) + place) & shift_right(-1, 64 - 8 * min(length, 8)))
        store64(row + TOKEN_ORDER, first_bytes ^ (-1 << 63))
    return token_id


@compiled
def compare_tokens(trainer: int, token_id: int, other_id: int) -> int:
    """Returns a positive number if the token comes first in a tie, a negative one if the other does."""
    if token_id == other_id:
        return 0
    row, other = load64(trainer + TOKENS) + TOKEN_ROW * token_id, load64(trainer + TOKENS) + TOKEN_ROW * other_id
    if load64(row + TOKEN_ORDER) != load64(other + TOKEN_ORDER):
        return 1 if load64(row + TOKEN_ORDER) > load64(other + TOKEN_ORDER) else -1
    text, place, other_place = load64(trainer + TEXT), load64(row + TOKEN_PLACE), load64(other + TOKEN_PLACE)
    length, other_length = load64(row + TOKEN_LENGTH), load64(other + TOKEN_LENGTH)
    for offset in range(min(length, other_length)):
        difference = load8(text + place + offset) - load8(text + other_place + offset)
        if difference:
            return difference
    return length - other_length


@compiled
def comes_first(trainer: int, count: int, pair: int, other_count: int, other_pair: int) -> bool:
    """Tells whether a pair is to be merged before another: it is more frequent, or wins the tie."""
    if count != other_count:
        return count > other_count
    row, other = load64(trainer + PAIRS) + PAIR_ROW * pair, load64(trainer + PAIRS) + PAIR_ROW * other_pair
    order = compare_tokens(trainer, load64(row + PAIR_LEFT), load64(other + PAIR_LEFT))
    if order == 0:
        order = compare_tokens(trainer, load64(row + PAIR_RIGHT), load64(other + PAIR_RIGHT))
    return order > 0


@compiled
def set_entry(heap: int, index: int, count: int, pair: int) -> None:
    """Writes an entry of the heap, 16 bytes: the count and the pair's number."""
    store64(heap + 16 * index, count)
    store64(heap + 16 * index + 8, pair)


@compiled
def push_pair(trainer: int, count: int, pair: int) -> None:
    """Pushes a pair onto the heap."""
    heap, hole = load64(trainer + HEAP), load64(trainer + HEAP_USED)
    store64(trainer + HEAP_USED, hole + 1)
    while hole > 0:
        parent = heap + 16 * ((hole - 1) >> 1)
        if not comes_first(trainer, count, pair, load64(parent), load64(parent + 8)):
            break
        set_entry(heap, hole, load64(parent), load64(parent + 8))
        hole = (hole - 1) >> 1
    set_entry(heap, hole, count, pair)


@compiled
def replace_top(trainer: int, count: int, pair: int) -> None:
    """Puts a pair in the place of the first one, and restores the order of the heap."""
    heap, size = load64(trainer + HEAP), load64(trainer + HEAP_USED)
    hole = 0
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        entry = heap + 16 * child
        if child + 1 < size and comes_first(
            trainer, load64(entry + 16), load64(entry + 24), load64(entry), load64(entry + 8)
        ):
            child += 1
            entry += 16
        if not comes_first(trainer, load64(entry), load64(entry + 8), count, pair):
            break
        set_entry(heap, hole, load64(entry), load64(entry + 8))
        hole = child
    set_entry(heap, hole, count, pair)


@compiled
def drop_top(trainer: int) -> None:
    """Takes the first pair off the heap."""
    heap, size = load64(trainer + HEAP), load64(trainer + HEAP_USED) - 1
    store64(trainer + HEAP_USED, size)
    if size:
        replace_top(trainer, load64(heap + 16 * size), load64(heap + 16 * size + 8))


@compiled
def new_pair(trainer: int, left: int, right: int, count: int, num_places: int) -> int:
    """Adds a pair and pushes it onto the heap; returns where to list its places, or -1 if it is below the floor."""
    if count < load64(trainer + FLOOR):
        return -1
    pair, start = load64(trainer + PAIRS_USED), load64(trainer + PLACES_USED)
    row = load64(trainer + PAIRS) + PAIR_ROW * pair
    store64(row + PAIR_LEFT, left)
    store64(row + PAIR_RIGHT, right)
    store64(row + PAIR_START, start)
    store64(row + PAIR_COUNT, num_places)
    store64(trainer + PAIRS_USED, pair + 1)
    store64(trainer + PLACES_USED, start + num_places)
    push_pair(trainer, count, pair)
    return start


@compiled
def missing_room(trainer: int, num_places: int) -> int:
    """Returns which list has no room for a step that makes a token at so many places; DONE if all have."""
    if load64(trainer + PLACES_USED) + 2 * num_places > load64(trainer + PLACES_SIZE):
        return PLACES_FULL
    most_pairs = 2 * min(num_places, load64(trainer + NUM_TOKENS) + 1)
    return PAIRS_FULL if load64(trainer + PAIRS_USED) + most_pairs > load64(trainer + PAIRS_SIZE) else DONE
