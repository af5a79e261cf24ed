"""The thread of an encoder: a kernel that encodes a text by the shared table, and the memory that it works in.

A pre-token that the table does not know is merged and stored. What the table already holds has no influence on ids.
"""

import numpy as np

from tokenization.native.chunks import HOME, HOME_BYTES, HOME_HIGH, HOME_LOW, HOMES, PARTS, UNKNOWN, Scratch, find_homes
from tokenization.native.compiling import built_in_of, compiled
from tokenization.native.given import give_ends
from tokenization.native.instructions import load64, load_shared, shift_right, store64
from tokenization.native.joints import LONGEST_CUT, find_parts, may_have_joints
from tokenization.native.lanes import LANES_ROOM, learn, merge_pretoken
from tokenization.native.memory import DONE, NO_TOKEN, PADDING, SCRATCH_FULL, TABLE_FULL, Head, address_of
from tokenization.native.merging import CAPACITY, JOINTS, WIDTH, WORK, WORK_BYTES, store_id
from tokenization.native.scanner import CODE, call
from tokenization.native.table import ARENA, CHUNK, LONG, SHIFT, SLOTS, SharedTable, find_slot, is_full, remember
from tokenization.native.text import SPECIAL_ID, SPECIAL_LENGTH, SPECIAL_ROW, SpecialTokens, next_special
from tokenization.native.windows import Window

WORK_TOKENS = LONGEST_CUT  # tokens that a worker's memory has room for at first
MAX_CACHED = 256  # bytes of the longest pre-token whose ids are stored
KEPT_BYTES = 1 << 17  # of the longest text for which a worker makes no arrays anew


class Worker:
    """The memory of one thread that encodes."""

    def __init__(self, head: Head, scanner: Head, table: SharedTable, dtype: np.dtype) -> None:
        """head, scanner: what kernels read of the encoder and of the split pattern, of which each worker has a copy."""
        self._head, self._scanner, self._scratch = head.copy(), scanner.copy(), Scratch()
        self._table, self._dtype = table, dtype
        self._set_capacity(WORK_TOKENS)
        self._fixed = self._head.address, self._scratch.address, self._scanner.address
        self._text, self._ids = np.empty(KEPT_BYTES + PADDING, np.uint8), np.empty(KEPT_BYTES + 8, dtype)
        self._view, self._encode_window = self._text.data, built_in_of(encode_window)
        self._addresses = address_of(self._text), address_of(self._ids)

    def _set_capacity(self, num_tokens: int) -> None:
        self._head[WORK] = np.empty(max(WORK_BYTES * num_tokens, LANES_ROOM), np.uint8)
        self._head[CAPACITY] = num_tokens

    def encode(self, window: Window, specials: SpecialTokens) -> np.ndarray | None:
        """Returns the ids of a window; None if one of its bytes has no token."""
        ids = np.empty(window.length + 8, self._dtype)
        count = self._run(address_of(window.buffer), window.length, address_of(ids), specials)
        return None if count < 0 else ids[:count]

    def encode_text(self, text: bytes, specials: SpecialTokens, ends: np.ndarray | None) -> tuple[np.ndarray, int, int]:
        """Returns an array that begins with the ids, its address, and their number; -1 if a byte has no token.

        The next call overwrites the array, unless the text is long. ends: see Encoder.ends_of.
        """
        length = len(text)
        if length > KEPT_BYTES:
            window, ids = Window.of_bytes(text), np.empty(length + 8, self._dtype)
            position, address = address_of(window.buffer), address_of(ids)
        else:
            self._view[:length] = text
            ids, (position, address) = self._ids, self._addresses
        if ends is not None:
            give_ends(self._scanner, position, ends)
        return ids, address, self._run(position, length, address, specials)

    def _run(self, position: int, length: int, ids: int, specials: SpecialTokens) -> int:
        """Writes the ids of a text; returns their number, or -1 if one of its bytes has no token."""
        end, out, table = position + length, ids, self._table.current
        while True:
            status, position, out = self._encode_window(
                position, end, out, table.head.address, *self._fixed, *specials.arguments
            )
            if status == DONE:
                return (out - ids) // self._dtype.itemsize
            if status == NO_TOKEN:
                return -1
            if status == SCRATCH_FULL:
                self._set_capacity(4 * self._head[CAPACITY])
            else:
                table = self._table.renew(table)


@compiled
def encode_window(
    position: int,
    end: int,
    out: int,
    table: int,
    encoder: int,
    scratch: int,
    scanner: int,
    specials: int,
    num_specials: int,
    first_bytes: int,
    num_first_bytes: int,
) -> tuple[int, int, int]:
    """Writes the ids of [position, end); returns (status, address that it came to, end of what it wrote).

    out: room for an id per byte and 16 bytes more. scratch: the memory of a Scratch.
    """
    parts, unknown, homes = scratch + PARTS, scratch + UNKNOWN, scratch + HOMES
    width, joints = load64(encoder + WIDTH), load64(encoder + JOINTS)
    word_bits = 2 if width == 2 else 1  # log2 of the ids in 8 bytes
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if is_full(table):
                return TABLE_FULL, position, out
            slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
            starts = scratch
            count = call(load64(scanner + CODE), position, stop, CHUNK, scanner, starts)
            if may_have_joints(position, load64(starts + 8 * count)):
                count, starts = find_parts(starts, count, parts, homes, slots, shift, joints), parts
            else:
                find_homes(starts, count, homes, slots, shift)
            learnt = 0
            for index in range(count):
                home = homes + HOME_BYTES * index
                slot, low, high = load64(home + HOME), load64(home + HOME_LOW), load64(home + HOME_HIGH)
                if load_shared(slot + 8) != high or load64(slot) != low or high >= LONG:
                    address = load64(starts + 8 * index)
                    length = load64(starts + 8 * index + 8) - address
                    slot, known = find_slot(slots, shift, slot, low, high, address, length, arena, 16)
                    if not known and not learnt:
                        learn(starts, homes, unknown, index, count, table, encoder)
                        learnt = 1
                        slot, known = find_slot(slots, shift, slot, low, high, address, length, arena, 16)
                    if not known:
                        number = merge_pretoken(address, length, out, encoder)
                        if number < 0:
                            return (NO_TOKEN if number == -1 else SCRATCH_FULL), address, out
                        if length <= MAX_CACHED:
                            remember(table, slot, low, high, address, length, out, number, width)
                        out += number * width
                        continue
                more = load64(slot + 24)
                number = shift_right(more, 32)
                store64(out, load64(slot + 16))
                if shift_right(number - 1, word_bits):  # more than 8 bytes of ids, or 0: they are in the arena
                    store64(out + 8, more)
                    if number == 0:
                        number = more
                        text = 0 if high < LONG else high & ~LONG
                        source = arena + load64(slot + 16) + text
                        for offset in range(0, number * width, 8):
                            store64(out + offset, load64(source + offset))
                out += number * width
            position = load64(starts + 8 * count)
        if special >= 0:
            store_id(out, 0, width, load64(specials + SPECIAL_ROW * special + SPECIAL_ID))
            out += width
            position += load64(specials + SPECIAL_ROW * special + SPECIAL_LENGTH)
    return DONE, position, out
