"""The words of the trainer, a cell for each byte, and the places in them where pairs stand.

An empty cell (NO_SYMBOL) separates two words. A cell is a symbol, 4 bytes, and how often its word occurs, 4 bytes. A
token has its id in its first and in its last cell, so that both its neighbours find it. Tokens only grow, so what is
left inside one is never taken for another; only the beginning of the right part would be, and that is emptied.
"""

from tokenization.native.compiling import compiled
from tokenization.native.instructions import LOW_HALF, load8, load32, load64, store8, store32, store64
from tokenization.native.pairs import (
    CELLS,
    MAX_TOKENS,
    NEIGHBOUR_ROW,
    NEIGHBOURS,
    PAIR_COUNT,
    PAIR_LEFT,
    PAIR_RIGHT,
    PAIR_ROW,
    PAIR_START,
    PAIRS,
    PLACES,
    TOKEN_LENGTH,
    TOKEN_ROW,
    TOKENS,
    TOUCHED,
    new_pair,
)
from tokenization.native.table import MAX_FREQUENCY, SHIFT, SLOTS, text_of_slot

NO_SYMBOL = LOW_HALF


@compiled
def symbol_at(cells: int, place: int) -> int:
    """Returns the symbol of a cell."""
    return load32(cells + 8 * place)


@compiled
def frequency_at(cells: int, place: int) -> int:
    """Returns how often the word of a cell occurs."""
    return load32(cells + 8 * place + 4)


@compiled
def fill_cells(table: int, cells: int, text: int, place: int) -> int:
    """Writes the words in a table into the text after `place`, and how often each occurs into the cells.

    The cell at `place`, and one behind each word, occurs 0 times and is empty for good. Returns the last place.
    """
    slot = load64(table + SLOTS)
    store64(cells + 8 * place, NO_SYMBOL)
    for _ in range(1 << 64 - load64(table + SHIFT)):
        source, length = text_of_slot(table, slot)
        amount = load64(slot + 16)
        while length > 1 and amount > 0:
            frequency = min(amount, MAX_FREQUENCY)
            for offset in range(length):
                place += 1
                store8(text + place, load8(source + offset))
                store64(cells + 8 * place, frequency << 32)
            place += 1
            store64(cells + 8 * place, NO_SYMBOL)
            amount -= frequency
        slot += 32
    return place


@compiled
def reset_cells(cells: int, text: int, begin: int, end: int) -> None:
    """Makes each byte of the words in the cells [begin, end) a symbol."""
    for place in range(begin, end):
        if frequency_at(cells, place):
            store32(cells + 8 * place, load8(text + place))


@compiled
def recount(trainer: int, pair: int) -> int:
    """Strikes out the places where a pair no longer stands; returns its true count."""
    cells, row = load64(trainer + CELLS), load64(trainer + PAIRS) + PAIR_ROW * pair
    left, right = load64(row + PAIR_LEFT), load64(row + PAIR_RIGHT)
    length = load64(load64(trainer + TOKENS) + TOKEN_ROW * left + TOKEN_LENGTH)
    start = source = target = load64(trainer + PLACES) + 4 * load64(row + PAIR_START)
    total = 0
    for _ in range(load64(row + PAIR_COUNT)):
        place = load32(source)
        source += 4
        if symbol_at(cells, place) == left and symbol_at(cells, place + length) == right:
            total += frequency_at(cells, place)
            store32(target, place)
            target += 4
    store64(row + PAIR_COUNT, (target - start) >> 2)
    return total


@compiled
def merge_places(trainer: int, pair: int, merged: int) -> int:
    """Merges a pair at its places, from left to right; moves those where it could be merged to the front of its list.

    Returns their number.
    """
    cells, tokens = load64(trainer + CELLS), load64(trainer + TOKENS)
    row = load64(trainer + PAIRS) + PAIR_ROW * pair
    left, right = load64(row + PAIR_LEFT), load64(row + PAIR_RIGHT)
    left_length = load64(tokens + TOKEN_ROW * left + TOKEN_LENGTH)
    right_length = load64(tokens + TOKEN_ROW * right + TOKEN_LENGTH)
    start = source = target = load64(trainer + PLACES) + 4 * load64(row + PAIR_START)
    for _ in range(load64(row + PAIR_COUNT)):
        place = load32(source)
        source += 4
        middle = place + left_length
        if symbol_at(cells, place) == left and symbol_at(cells, middle) == right:  # not taken by the place before
            store32(cells + 8 * middle, NO_SYMBOL)
            store32(cells + 8 * place, merged)
            store32(cells + 8 * (middle + right_length - 1), merged)
            store32(target, place)
            target += 4
    return (target - start) >> 2


@compiled
def list_byte_pairs(trainer: int, begin: int, end: int, rows: int) -> None:
    """Lists the pairs of bytes in the cells [begin, end). rows: 65,536 of (count, places), all 0."""
    cells, places = load64(trainer + CELLS), load64(trainer + PLACES)
    for place in range(begin, end):
        left, right = symbol_at(cells, place), symbol_at(cells, place + 1)
        if left != NO_SYMBOL and right != NO_SYMBOL:
            row = rows + 16 * (left << 8 | right)
            store64(row, load64(row) + frequency_at(cells, place))
            store64(row + 8, load64(row + 8) + 1)
    for pair in range(1 << 16):
        row = rows + 16 * pair
        store64(row + 8, new_pair(trainer, pair >> 8, pair & 255, load64(row), load64(row + 8)))
    for place in range(begin, end):
        left, right = symbol_at(cells, place), symbol_at(cells, place + 1)
        if left != NO_SYMBOL and right != NO_SYMBOL:
            list_place(rows + 16 * (left << 8 | right), places, place)


@compiled
def list_pairs(trainer: int, token_id: int, start: int, count: int) -> None:
    """Lists the pairs that a token forms with its neighbours at its `count` places: adds up, reserves room, writes."""
    cells, places, tokens = load64(trainer + CELLS), load64(trainer + PLACES), load64(trainer + TOKENS)
    length = load64(tokens + TOKEN_ROW * token_id + TOKEN_LENGTH)
    left_rows = load64(trainer + NEIGHBOURS)
    right_rows = left_rows + 16
    lefts = load64(trainer + TOUCHED)
    rights = lefts + 8 * (load64(trainer + MAX_TOKENS) + 1)
    num_lefts = num_rights = 0
    for index in range(start, start + count):
        place = load32(places + 4 * index)
        frequency = frequency_at(cells, place)
        left, right = symbol_at(cells, place - 1), symbol_at(cells, place + length)
        if left != NO_SYMBOL:
            num_lefts = touch(left_rows + NEIGHBOUR_ROW * left, frequency, left, lefts, num_lefts)
        if right != NO_SYMBOL and right != token_id:  # beside itself, it is found as the left neighbour
            num_rights = touch(right_rows + NEIGHBOUR_ROW * right, frequency, right, rights, num_rights)
    for index in range(num_lefts):
        left = load64(lefts + 8 * index)
        row = left_rows + NEIGHBOUR_ROW * left
        store64(row + 8, new_pair(trainer, left, token_id, load64(row), load64(row + 8)))
    for index in range(num_rights):
        right = load64(rights + 8 * index)
        row = right_rows + NEIGHBOUR_ROW * right
        store64(row + 8, new_pair(trainer, token_id, right, load64(row), load64(row + 8)))
    for index in range(start, start + count):
        place = load32(places + 4 * index)
        left, right = symbol_at(cells, place - 1), symbol_at(cells, place + length)
        if left != NO_SYMBOL:
            left_place = place - load64(tokens + TOKEN_ROW * left + TOKEN_LENGTH)
            list_place(left_rows + NEIGHBOUR_ROW * left, places, left_place)
        if right != NO_SYMBOL and right != token_id:
            list_place(right_rows + NEIGHBOUR_ROW * right, places, place)
    for index in range(num_lefts):
        clear(left_rows + NEIGHBOUR_ROW * load64(lefts + 8 * index))
    for index in range(num_rights):
        clear(right_rows + NEIGHBOUR_ROW * load64(rights + 8 * index))


@compiled
def touch(row: int, frequency: int, neighbour: int, touched: int, num_touched: int) -> int:
    """Adds a place to one side of a neighbour's row; returns the number of neighbours in `touched`."""
    store64(touched + 8 * num_touched, neighbour)
    num_touched += load64(row + 8) == 0
    store64(row, load64(row) + frequency)
    store64(row + 8, load64(row + 8) + 1)
    return num_touched


@compiled
def list_place(row: int, places: int, place: int) -> None:
    """Lists a place of a pair where the row's second word says; -1 there: the pair is not listed."""
    target = load64(row + 8)
    if target >= 0:
        store32(places + 4 * target, place)
        store64(row + 8, target + 1)


@compiled
def clear(row: int) -> None:
    """Sets one side of a neighbour's row to 0."""
    store64(row, 0)
    store64(row + 8, 0)
