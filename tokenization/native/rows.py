"""Counts outside a table: pre-tokens one after another, and rows (length, count), in an order of their own.

That order is the one of the hashes whose highest bits choose home slots, so that it does not depend on how a table was
filled. A table has its keys nearly in this order already, and one that is filled in it is filled from front to back.
"""

from collections.abc import Mapping
from itertools import chain

import numpy as np

from tokenization.native.compiling import compiled
from tokenization.native.counting import add_count
from tokenization.native.instructions import copy_bytes, load8, load64, store64
from tokenization.native.memory import address_of
from tokenization.native.table import (
    INLINE_BYTES,
    LIMIT,
    SHIFT,
    SLOTS,
    USED,
    Table,
    hash_of_key,
    home_slot,
    key_of,
    text_of_slot,
)
from tokenization.native.windows import padded

LOWEST = -(1 << 63)  # added to a hash, so that comparing signed numbers compares unsigned ones


def table_of(counts: Mapping[bytes, int]) -> Table:
    """Returns a table of counts that were made elsewhere."""
    rows = np.fromiter(chain.from_iterable((len(text), count) for text, count in counts.items()), np.int64)
    return add_rows(np.frombuffer(b"".join(counts), np.uint8), rows.reshape(-1, 2))


def add_rows(texts: np.ndarray, rows: np.ndarray, table: Table | None = None) -> Table:
    """Adds counts that were made elsewhere to a table, by default an empty one; returns it, or a larger one instead.

    texts: uint8, the pre-tokens one after another. rows: int64, (pre-tokens, 2), the length and count of each.
    """
    text, rows, table = padded(texts), np.ascontiguousarray(rows), table or Table()
    table = table.with_room_for(table.unique + len(rows))  # at once: sorted rows would crowd in a growing one's front
    added, position = 0, address_of(text)
    end = position + len(texts)
    while added < len(rows):
        row = address_of(rows) + 16 * added
        number, position = add_counts(position, row, len(rows) - added, table.head.address)
        added += number
        if added < len(rows):
            table = table.larger(end - position)
    return table


def rows_of(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of a table as add_rows takes them, (texts, rows), in the order of the hashes."""
    order = np.empty((table.unique, 2), np.int64)
    number, size = sort_slots(table.head.address, address_of(order))
    texts, rows = np.empty(size + INLINE_BYTES + 1, np.uint8), np.empty((number, 2), np.int64)
    write_rows(table.head.address, address_of(order), number, address_of(texts), address_of(rows))
    return texts[:size], rows


@compiled
def add_counts(position: int, rows: int, number: int, table: int) -> tuple[int, int]:
    """Adds the counts of `number` pre-tokens that stand one after another at `position`.

    rows: (length, count) of each, int64. Returns how many were added before the table was full, and where the next one
    stands.
    """
    for index in range(number):
        length, amount = load64(rows + 16 * index), load64(rows + 16 * index + 8)
        low, high = key_of(position, length)
        home = home_slot(load64(table + SLOTS), load64(table + SHIFT), low, high)
        full = load64(table + USED) + 1 > load64(table + LIMIT)
        if full or not add_count(table, home, low, high, position, length, amount):
            return index, position
        position += length
    return number, position


@compiled
def sort_slots(table: int, order: int) -> tuple[int, int]:
    """Lists the slots that have counts, in the order of their hashes; returns how many, and the bytes of their texts.

    order: receives (hash + LOWEST, slot) of each. A slot is put in its place among those before it. It is near: keys
    move only from their home slots to the next free ones. Those that moved from the last slots to the first ones come
    in a second round.
    """
    slots, shift = load64(table + SLOTS), load64(table + SHIFT)
    number = size = 0
    for moved_round in range(2):
        slot = slots
        for _ in range(1 << 64 - shift):
            low, high = load64(slot), load64(slot + 8)
            if moved_round and high == 0:
                break
            if load64(slot + 16) and (home_slot(slots, shift, low, high) > slot) == moved_round:
                put_in_order(table, order, number, hash_of_key(low, high) + LOWEST, slot)
                size += text_of_slot(table, slot)[1]
                number += 1
            slot += 32
    return number, size


@compiled
def put_in_order(table: int, order: int, number: int, key: int, slot: int) -> None:
    """Inserts a slot among `number` sorted ones."""
    row = order + 16 * number
    while row > order and comes_before(table, key, slot, load64(row - 16), load64(row - 8)):
        store64(row, load64(row - 16))
        store64(row + 8, load64(row - 8))
        row -= 16
    store64(row, key)
    store64(row + 8, slot)


@compiled
def comes_before(table: int, key: int, slot: int, other_key: int, other_slot: int) -> bool:
    """Compares two slots by their hashes; by length and bytes, should these be equal."""
    if key != other_key:
        return key < other_key
    address, length = text_of_slot(table, slot)
    other, other_length = text_of_slot(table, other_slot)
    if length != other_length:
        return length < other_length
    offset = 0
    while offset < length - 1 and load8(address + offset) == load8(other + offset):
        offset += 1
    return load8(address + offset) < load8(other + offset)


@compiled
def write_rows(table: int, order: int, number: int, texts: int, rows: int) -> None:
    """Writes the pre-tokens of `number` slots one after another, and a row for each; 16 bytes more can be written."""
    for index in range(number):
        slot = load64(order + 16 * index + 8)
        address, length = text_of_slot(table, slot)
        store64(rows + 16 * index, length)
        store64(rows + 16 * index + 8, load64(slot + 16))
        if length > INLINE_BYTES:
            copy_bytes(address, texts, length)
        else:
            store64(texts, load64(slot))
            store64(texts + 8, load64(slot + 8))
        texts += length
