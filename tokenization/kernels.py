"""The tokenizer's inner loops, compiled by Numba: the pre-tokens of GPT-2's pattern, counting, encoding, merging.

    text (UTF-8) -> find_starts -> pre-tokens -> probe ------> counts          (count_window)
                    64 bytes at a time           |  ^-------> ids             (encode_window)
                                                 hash table   merge_piece     (what the table does not know yet)
    counts -> words in one long row of cells -> learn_merges -> merges

native.py calls these and holds their memory; bpe.py and tokenizer.py say in plain Python what they must compute.

Everything is int64, addresses too. An array that is handed from one compiled function to another costs a count of
references; an address costs nothing, and nothing checks it. So each function says what it reads and writes, and every
text has PADDING readable bytes behind its end. All of it is in one file, because Numba's cache does not notice when a
function that another file's function calls has changed. (Mixing int64 and uint64 gives a float64: none is unsigned.)
"""

from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

intrinsic: Any = extending.intrinsic  # its functions are called without the typing context that they are written with
PADDING = 128  # bytes that may be read behind a text: two blocks of 64
LETTER, NUMBER, SPACE = 1, 2, 3  # classes of characters; 0 is all the rest

# What a kernel says when it stops: the work is done, or an array is too small and the caller must enlarge it.
DONE, TABLE_FULL, SCRATCH_FULL, NO_TOKEN, LISTS_FULL, UNDER_FLOOR = range(6)


def compiled(function):
    """Machine code, kept in a cache beside the source or in the user's; where neither can be written, in memory."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no place for a cache: a read-only installation and an unwritable home
        return numba.njit(nogil=True, error_model="numpy")(function)


# ---------------------------------------------------------------------------------------------------------------------
# Single instructions that Python has no words for
# ---------------------------------------------------------------------------------------------------------------------

_BYTE, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 32, 64))
_BLOCK = ir.VectorType(_BYTE, 64)


def _load(bits):
    kind = ir.IntType(bits)

    @intrinsic
    def load(typingctx, address):
        def generate(context, builder, signature, args):
            value = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
            return value if bits == 64 else builder.zext(value, _LONG)

        return types.int64(types.int64), generate

    return load


def _store(bits):
    kind = ir.IntType(bits)

    @intrinsic
    def store(typingctx, address, value):
        def generate(context, builder, signature, args):
            value = args[1] if bits == 64 else builder.trunc(args[1], kind)
            builder.store(value, builder.inttoptr(args[0], kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


load8, load32, load64 = map(_load, (8, 32, 64))  # unaligned, zero-extended
store8, store16, store32, store64 = map(_store, (8, 16, 32, 64))  # the low bits of the value


@intrinsic
def bytes_in_range(typingctx, address, low, length):
    """Bit i of the result: whether low <= byte i < low + length, for the 64 bytes from the address on."""

    def generate(context, builder, signature, args):
        block = builder.load(builder.inttoptr(args[0], _BLOCK.as_pointer()), align=1)

        def everywhere(value):
            one = builder.insert_element(ir.Constant(_BLOCK, ir.Undefined), builder.trunc(value, _BYTE), _WORD(0))
            return builder.shuffle_vector(
                one, ir.Constant(_BLOCK, ir.Undefined), ir.Constant(ir.VectorType(_WORD, 64), None)
            )

        inside = builder.icmp_unsigned("<", builder.sub(block, everywhere(args[1])), everywhere(args[2]))
        return builder.bitcast(inside, _LONG)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def trailing_zeros(typingctx, bits):
    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def swap_bytes(typingctx, value):
    """The first byte in memory becomes the most significant one, so that comparing numbers compares the bytes."""

    def generate(context, builder, signature, args):
        return builder.bswap(args[0])

    return types.int64(types.int64), generate


@intrinsic
def shift_right(typingctx, value, amount):
    """The logical shift, which brings in zeros; Python's >> of a negative number brings in ones."""

    def generate(context, builder, signature, args):
        return builder.lshr(args[0], args[1])

    return types.int64(types.int64, types.int64), generate


@intrinsic
def fold_multiply(typingctx, left, right):
    """The high and the low half of the 128-bit product, xored: every bit of the result depends on every bit."""

    def generate(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _LONG)
        return builder.xor(high, builder.trunc(product, _LONG))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_shared(typingctx, address):
    """What another thread has stored with store_shared; what it stored elsewhere before is there as well."""

    def generate(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], _LONG.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def store_shared(typingctx, address, value):
    def generate(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], _LONG.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add_shared(typingctx, address, amount):
    """Adds to a number that other threads add to as well. Returns what it was before."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _LONG.as_pointer()), args[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def take_shared(typingctx, address, value):
    """Stores a value where there is 0, and returns 0; or returns what another thread has stored there."""

    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _LONG.as_pointer())
        return builder.extract_value(builder.cmpxchg(pointer, _LONG(0), args[1], "acquire", "monotonic"), 0)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def prefetch(typingctx, address):
    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _BYTE.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORD, _WORD, _WORD])
        function = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE.as_pointer()], kind)
        builder.call(function, [pointer, _WORD(0), _WORD(3), _WORD(1)])  # to read, to stay, data
        return context.get_dummy_value()

    return types.void(types.int64), generate


@compiled
def same_bytes(left, right, length):
    offset = 0
    while offset + 8 <= length and load64(left + offset) == load64(right + offset):
        offset += 8
    while offset < length and load8(left + offset) == load8(right + offset):
        offset += 1
    return offset == length


@compiled
def copy_bytes(source, target, length):
    for offset in range(length):
        store8(target + offset, load8(source + offset))


# ---------------------------------------------------------------------------------------------------------------------
# The scanner: where the pre-tokens of GPT-2's pattern begin
#
# Each byte of a block of 64 becomes one bit in the masks of letters, numbers, white space (and signs: the rest); the
# bytes of one character share its class. With `before` for "the byte before", the pattern says that a piece begins
#     where a run of letters, numbers or signs begins, unless a plain space is before it (the space is the beginning)
#     where a run of white space begins, and at its last character when something other than white space follows
#     after a contraction; and not at its letters. An apostrophe begins one if it begins a piece at all: with no sign
#     and no plain space before it.
# The end of a text counts as white space, for a run of it that ends the text is one piece.
# Whatever is before a beginning has no influence on what follows: the scan can start at any beginning.
# ---------------------------------------------------------------------------------------------------------------------


@compiled
def character_length(lead):
    """Bytes of a UTF-8 character, from its first byte."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


@compiled
def code_point(address, length):
    lead = load8(address)
    if length == 1:
        return lead
    second = load8(address + 1) & 63
    if length == 2:
        return (lead & 31) << 6 | second
    third = load8(address + 2) & 63
    if length == 3:
        return (lead & 15) << 12 | second << 6 | third
    return (lead & 7) << 18 | second << 12 | third << 6 | load8(address + 3) & 63


@compiled
def class_at(address, classes):
    """classes: a byte per code point. The character must be whole and valid."""
    return load8(classes + code_point(address, character_length(load8(address))))


@compiled
def find_starts(position, end, wanted, classes, starts):
    """Writes the addresses where pieces begin, as int64, then the one where the last ends; returns how many pieces.

    The text is [position, end), valid UTF-8, and `position` begins a piece. Stops at the end of the text, or when
    `wanted` bytes have been scanned and a piece is whole; at most wanted + 128 addresses are written.
    """
    count = 0
    goal = position + wanted
    letters_before = numbers_before = signs_before = spaces_before = plain_before = 0  # bit 0: of the byte before
    added_later = removed_later = 0  # what a contraction says about the next block
    while position < end and (position < goal or count < 2):
        length = min(64, end - position)
        valid = shift_right(-1, 64 - length)
        letters = bytes_in_range(position, 65, 26) | bytes_in_range(position, 97, 26)
        numbers = bytes_in_range(position, 48, 10)
        plain = bytes_in_range(position, 32, 1)
        spaces = bytes_in_range(position, 9, 5) | plain
        leads = bytes_in_range(position, 0xC0, 64) & valid
        while leads:
            offset = trailing_zeros(leads)
            size = character_length(load8(position + offset))
            if offset + size > length:  # not all in this block: it ends before the character
                length = offset
                valid = shift_right(-1, 64 - length)
                break
            kind = load8(classes + code_point(position + offset, size))
            bits = ((1 << size) - 1) << offset
            if kind == LETTER:
                letters |= bits
            elif kind == NUMBER:
                numbers |= bits
            elif kind == SPACE:
                spaces |= bits
            leads &= leads - 1
        letters &= valid
        numbers &= valid
        plain &= valid
        spaces &= valid
        signs = ~(letters | numbers | spaces) & valid
        following = position + length
        space_follows = 1
        if following < end:
            byte = load8(following)
            space_follows = (byte == 32) | ((byte >= 9) & (byte < 14))
            if byte >= 0xC0:
                space_follows = class_at(following, classes) == SPACE

        last_spaces = spaces & ~(shift_right(spaces, 1) | space_follows << (length - 1))
        if last_spaces & bytes_in_range(position, 0x80, 64):  # of white space of several bytes the first one counts
            ends = last_spaces & bytes_in_range(position, 0x80, 64)
            while ends:
                offset = trailing_zeros(ends)
                last_spaces ^= 1 << offset
                while load8(position + offset) < 0xC0:
                    offset -= 1
                last_spaces |= 1 << offset
                ends &= ends - 1

        after_plain = plain << 1 | plain_before
        after_sign = signs << 1 | signs_before
        beginnings = (
            (letters & ~(letters << 1 | letters_before))
            | (numbers & ~(numbers << 1 | numbers_before))
            | (signs & ~after_sign)
        ) & ~after_plain
        beginnings |= spaces & ~(spaces << 1 | spaces_before) | last_spaces

        added, removed = added_later, removed_later
        added_later = removed_later = 0
        apostrophes = bytes_in_range(position, 39, 1) & valid & ~after_sign & ~after_plain
        if apostrophes:
            while apostrophes:
                offset = trailing_zeros(apostrophes)
                size = contraction_length(position + offset, end)
                if size:
                    removed |= 2 << offset
                    removed_later |= offset + 1 >= length
                    if offset + size < length:
                        added |= 1 << offset + size
                    else:
                        added_later |= 1 << offset + size - length
                apostrophes &= apostrophes - 1
        beginnings = (beginnings & ~removed | added) & valid

        while beginnings:
            store64(starts + 8 * count, position + trailing_zeros(beginnings))
            count += 1
            beginnings &= beginnings - 1
        last = length - 1
        letters_before = shift_right(letters, last) & 1
        numbers_before = shift_right(numbers, last) & 1
        signs_before = shift_right(signs, last) & 1
        spaces_before = shift_right(spaces, last) & 1
        plain_before = shift_right(plain, last) & 1
        position = following
    if position < end:
        return count - 1  # the last piece may go on; the next scan begins with it
    store64(starts + 8 * count, end)
    return count


@compiled
def contraction_length(apostrophe, end):
    """2 or 3 for 's 'd 'm 't and 'll 've 're, all before `end`; 0 for anything else."""
    if apostrophe + 1 >= end:
        return 0
    first = load8(apostrophe + 1)
    if (first == 115) | (first == 100) | (first == 109) | (first == 116):
        return 2
    if apostrophe + 2 >= end:
        return 0
    second = load8(apostrophe + 2)
    if (first == 108) & (second == 108) | ((first == 118) | (first == 114)) & (second == 101):
        return 3
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Where a text is valid, where special tokens are, and where it may be cut
# ---------------------------------------------------------------------------------------------------------------------


@compiled
def first_invalid(position, end):
    """The address of the first byte that is not part of a whole UTF-8 character; `end` where there is none."""
    while position < end:
        high = bytes_in_range(position, 0x80, 128)
        if not high:
            position += 64
            continue
        position += trailing_zeros(high)
        while position < end and load8(position) >= 0x80:
            lead = load8(position)
            length = character_length(lead)
            if length == 1 or lead > 0xF4 or position + length > end:
                return position
            for offset in range(1, length):
                if load8(position + offset) & 0xC0 != 0x80:
                    return position
            code = code_point(position, length)
            shortest = 0x80 if length == 2 else 0x800 if length == 3 else 0x10000
            if code < shortest or code > 0x10FFFF or (code >= 0xD800 and code < 0xE000):
                return position
            position += length
    return end


@compiled
def next_special(position, end, specials, num_specials, first_bytes, num_first_bytes):
    """(address, index) of the next special token in [position, end); (end, -1) where there is none.

    specials: rows of (address, length, id) as int64, longer ones first. first_bytes: with which bytes they begin.
    """
    while position < end:
        found = 0
        for index in range(num_first_bytes):
            found |= bytes_in_range(position, load8(first_bytes + index), 1)
        while found:
            address = position + trailing_zeros(found)
            for index in range(num_specials):
                length = load64(specials + 24 * index + 8)
                if address + length <= end and same_bytes(address, load64(specials + 24 * index), length):
                    return address, index
            found &= found - 1
        position += 64
    return end, -1


@compiled
def last_cut(begin, lowest, end, classes, specials, num_specials):
    """The last address above `lowest` where [begin, end), which goes on behind, can be cut; `begin` if there is none.

    That is before a white-space byte, behind a character that is not white space, and not inside a special token.
    """
    address = end - 1
    while address > lowest:
        byte = load8(address)
        if ((byte == 32) | ((byte >= 9) & (byte < 14))) and ends_word(begin, address, classes):
            whole = True
            for index in range(num_specials):
                whole &= not spans(
                    begin, address, end, load64(specials + 24 * index), load64(specials + 24 * index + 8)
                )
            if whole:
                return address
        address -= 1
    return begin


@compiled
def ends_word(begin, end, classes):
    """Whether the text before `end` ends with a valid character that is not white space."""
    start = end - 1
    while start > begin and end - start < 4 and load8(start) & 0xC0 == 0x80:
        start -= 1
    return start >= begin and first_invalid(start, end) == end and class_at(start, classes) != SPACE


@compiled
def spans(begin, address, end, special, length):
    """Whether the special token occurs in [begin, end) across the address."""
    for start in range(max(begin, address - length + 1), min(address, end - length + 1)):
        if same_bytes(start, special, length):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# The hash table of pre-tokens: slots of 32 bytes
#
#     low 8, high 8      the key. Up to 15 bytes of text are the key themselves, and its top byte is their number;
#                        of a longer text the key is a hash and the length, the top byte is 16, and the arena has it
#     value 8, more 8    counting: how often, and where in the arena
#                        encoding: up to 12 bytes of ids and in the last four their number; or 0, and where in the arena
#
# A slot is free while its high word is 0. The next slot is tried when one is taken by another key. Threads that encode
# share a table: who wants a slot first marks it as BEING_FILLED, and stores the high word when all else is there.
# The table's head is a row of int64: slots' address, 64 - log2(their number), slots used, slots that may be used,
# the arena's address, bytes of it used, bytes of it.
# ---------------------------------------------------------------------------------------------------------------------

SLOTS, SHIFT, USED, LIMIT, ARENA, ARENA_USED, ARENA_SIZE = range(0, 56, 8)
INLINE_BYTES = 15
LONG = 16 << 56
BEING_FILLED = 17 << 56
CHUNK = 1024  # bytes that are scanned, then looked up: few enough for the slots to be on their way into the cache
_K1, _K2 = 0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D


@compiled
def key_of(address, length):
    if length > INLINE_BYTES:
        return hash_bytes(address, length), LONG | length
    low = load64(address) & shift_right(-1, 64 - 8 * min(length, 8))
    high = load64(address + 8) & ((1 << 8 * max(length - 8, 0)) - 1)
    return low, high | length << 56


@compiled
def hash_bytes(address, length):
    mixed = length
    end = address + length
    while address + 8 <= end:
        mixed = fold_multiply(mixed ^ load64(address) ^ _K1, _K2 ^ length)
        address += 8
    if address < end:
        rest = load64(address) & shift_right(-1, 64 - 8 * (end - address))
        mixed = fold_multiply(mixed ^ rest ^ _K1, _K2 ^ length)
    return mixed


@compiled
def home_slot(slots, shift, low, high):
    return slots + 32 * shift_right(fold_multiply(low ^ _K1, high ^ _K2), shift)


@compiled
def find_slot(slots, shift, slot, low, high, address, length, arena, text_field):
    """(the slot of the key, True), or (a free one where it belongs, False): another thread may take that at any time.

    text_field: in which word a slot says where a long text is.
    """
    last = slots + (32 << 64 - shift)
    while True:
        taken = load_shared(slot + 8)
        if taken == 0:
            return slot, False
        if taken == high and load64(slot) == low:
            if length <= INLINE_BYTES:
                return slot, True
            if same_bytes(arena + load64(slot + text_field), address, length):
                return slot, True
        slot += 32
        if slot == last:
            slot = slots


@compiled
def find_homes(starts, count, homes, slots, shift):
    """Writes the home slot of each piece, and asks for the slots to be brought into the cache."""
    for index in range(count):
        address = load64(starts + 8 * index)
        low, high = key_of(address, load64(starts + 8 * index + 8) - address)
        slot = home_slot(slots, shift, low, high)
        prefetch(slot)
        store64(homes + 8 * index, slot)


@compiled
def rehash(source, target):
    """Copies the slots of one table into an empty one, which has room for them, and will have the same arena."""
    slots, shift = load64(target + SLOTS), load64(target + SHIFT)
    last = slots + (32 << 64 - shift)
    slot, used = load64(source + SLOTS), 0
    for _ in range(1 << 64 - load64(source + SHIFT)):
        high = load_shared(slot + 8)
        if high and high != BEING_FILLED:
            free = home_slot(slots, shift, load64(slot), high)
            while load64(free + 8):
                free += 32
                if free == last:
                    free = slots
            for field in range(0, 32, 8):
                store64(free + field, load64(slot + field))
            used += 1
        slot += 32
    store64(target + USED, used)


# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------


@compiled
def add_count(table, slot, low, high, address, length, amount):
    """Adds to the count of a piece, from its home slot on; a new one takes a slot, and arena if it is long.

    Returns False, and has changed nothing, when the arena is too small.
    """
    slots, arena = load64(table + SLOTS), load64(table + ARENA)
    slot, known = find_slot(slots, load64(table + SHIFT), slot, low, high, address, length, arena, 24)
    if not known:
        if length > INLINE_BYTES:
            used = load64(table + ARENA_USED)
            if used + length > load64(table + ARENA_SIZE):
                return False
            copy_bytes(address, arena + used, length)
            store64(slot + 24, used)
            store64(table + ARENA_USED, used + length)
        store64(slot, low)
        store64(slot + 8, high)
        store64(table + USED, load64(table + USED) + 1)
    store64(slot + 16, load64(slot + 16) + amount)
    return True


@compiled
def count_window(position, end, table, scratch, classes, specials, num_specials, first_bytes, num_first_bytes):
    """Counts the pieces of [position, end), special tokens left out. Returns (status, address up to which it came).

    scratch: 16 bytes for each of CHUNK + 256 pieces.
    """
    homes = scratch + 8 * (CHUNK + 256)
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if load64(table + USED) + CHUNK + 256 > load64(table + LIMIT):
                return TABLE_FULL, position
            count = find_starts(position, stop, CHUNK, classes, scratch)
            find_homes(scratch, count, homes, load64(table + SLOTS), load64(table + SHIFT))
            for index in range(count):
                address = load64(scratch + 8 * index)
                length = load64(scratch + 8 * index + 8) - address
                low, high = key_of(address, length)
                slot = load64(homes + 8 * index)
                if load64(slot) == low and load64(slot + 8) == high and length <= INLINE_BYTES:
                    store64(slot + 16, load64(slot + 16) + 1)
                elif not add_count(table, slot, low, high, address, length, 1):
                    return TABLE_FULL, address
            position = load64(scratch + 8 * count)
        if special >= 0:
            position += load64(specials + 24 * special + 8)
    return DONE, position


@compiled
def add_table(source, target):
    """Adds the counts of one table to another. Returns TABLE_FULL when that is too small; what went over is 0 then."""
    slot, arena = load64(source + SLOTS), load64(source + ARENA)
    for _ in range(1 << 64 - load64(source + SHIFT)):
        low, high, amount = load64(slot), load64(slot + 8), load64(slot + 16)
        if amount:
            if load64(target + USED) + 1 > load64(target + LIMIT):
                return TABLE_FULL
            length = high & ~LONG if shift_right(high, 56) == 16 else INLINE_BYTES
            home = home_slot(load64(target + SLOTS), load64(target + SHIFT), low, high)
            if not add_count(target, home, low, high, arena + load64(slot + 24), length, amount):
                return TABLE_FULL
            store64(slot + 16, 0)
        slot += 32
    return DONE


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
#
# The encoder's head, a row of int64: the table of merges and 64 - log2(its slots); the ids that merges give, uint32;
# the ranks of the merges of two bytes, 65,536 uint32; the ids of the bytes, 256 int64, -1 where there is none; bytes
# per id in the output, 2 or 4; working memory, and for how many tokens it is.
# A merge is known by its rank, of which the oldest has the least; NO_MERGE is none. A slot of the table is 8 bytes,
# so that it stays in the cache: 21 bits of the left id, 21 of the right one, 22 of the rank + 1; 0 if it is free.
# ---------------------------------------------------------------------------------------------------------------------

MERGES, MERGES_SHIFT, MERGED_IDS, BYTE_MERGES, BYTE_IDS, WIDTH, WORK, CAPACITY = range(0, 64, 8)
ID_BITS, RANK_BITS = 21, 22  # a larger vocabulary is left to plain Python
NO_MERGE = LOW_HALF = (1 << 32) - 1
MAX_CACHED = 256  # bytes of the longest piece whose ids are remembered
SHORT = 64  # bytes of the longest piece for which looking at every pair again is faster than a heap
WORK_BYTES = 2 * 48  # for each token of CAPACITY: ids, following, preceding, merges and two of the heap, two times


@compiled
def merge_slot(merges, shift, key):
    slot = merges + 8 * shift_right(key * _K1, shift)
    last = merges + (8 << 64 - shift)
    while load64(slot) != 0 and shift_right(load64(slot), RANK_BITS) != key:
        slot += 8
        if slot == last:
            slot = merges
    return slot


@compiled
def find_merge(merges, shift, left, right):
    """The rank of the merge of two ids."""
    found = load64(merge_slot(merges, shift, left << ID_BITS | right))
    return (found & ((1 << RANK_BITS) - 1)) - 1 if found else NO_MERGE


@compiled
def fill_merges(rows, count, encoder):
    """Enters `count` rows (left id, right id, rank, merged id), int64; each pair and each rank comes once."""
    merges, shift, byte_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + BYTE_IDS)
    for row in range(rows, rows + 32 * count, 32):
        key, rank = load64(row) << ID_BITS | load64(row + 8), load64(row + 16)
        store64(merge_slot(merges, shift, key), key << RANK_BITS | rank + 1)
        store32(load64(encoder + MERGED_IDS) + 4 * rank, load64(row + 24))
    for left in range(256):
        for right in range(256):
            merge = find_merge(merges, shift, load64(byte_ids + 8 * left), load64(byte_ids + 8 * right))
            store32(load64(encoder + BYTE_MERGES) + 4 * (left << 8 | right), merge)


@compiled
def store_id(out, index, width, token_id):
    if width == 2:
        store16(out + 2 * index, token_id)
    else:
        store32(out + 4 * index, token_id)


@compiled
def load_bytes(address, length, ids, merges, encoder):
    """Writes the ids of the bytes, and the merge of each with its right neighbour. False if a byte has no token."""
    byte_ids, byte_merges = load64(encoder + BYTE_IDS), load64(encoder + BYTE_MERGES)
    known = 0
    for index in range(length):
        byte = load8(address + index)
        token_id = load64(byte_ids + 8 * byte)
        known |= token_id
        store64(ids + 8 * index, token_id)
        store64(merges + 8 * index, load32(byte_merges + 4 * (byte << 8 | load8(address + index + 1))))
    store64(merges + 8 * (length - 1), NO_MERGE)
    return known >= 0


@compiled
def merge_short(address, length, out, encoder):
    """Writes the ids of a piece of at most SHORT bytes, by always looking for the oldest merge; -1: NO_TOKEN."""
    table, shift, merged_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + MERGED_IDS)
    ids = load64(encoder + WORK)
    merges = ids + 8 * SHORT
    if not load_bytes(address, length, ids, merges, encoder):
        return -1
    while length > 1:
        best, at = NO_MERGE, 0
        for index in range(length - 1):
            merge = load64(merges + 8 * index)
            if merge < best:
                best, at = merge, index
        if best == NO_MERGE:
            break
        length -= 1
        for index in range(at + 1, length):
            store64(ids + 8 * index, load64(ids + 8 * index + 8))
            store64(merges + 8 * index, load64(merges + 8 * index + 8))
        merged = load32(merged_ids + 4 * best)
        store64(ids + 8 * at, merged)
        if at > 0:
            store64(merges + 8 * at - 8, find_merge(table, shift, load64(ids + 8 * at - 8), merged))
        merge = NO_MERGE
        if at + 1 < length:
            merge = find_merge(table, shift, merged, load64(ids + 8 * at + 8))
        store64(merges + 8 * at, merge)
    width = load64(encoder + WIDTH)
    for index in range(length):
        store_id(out, index, width, load64(ids + 8 * index))
    return length


@compiled
def push(heap, size, rank, position):
    """Puts rank << 32 | position on a heap, unless the rank is NO_MERGE. Returns its size."""
    if rank == NO_MERGE:
        return size
    hole, value = size, rank << 32 | position
    while hole > 0:
        parent = load64(heap + 8 * ((hole - 1) >> 1))
        if parent <= value:
            break
        store64(heap + 8 * hole, parent)
        hole = (hole - 1) >> 1
    store64(heap + 8 * hole, value)
    return size + 1


@compiled
def pop(heap, size):
    """The least of `size` values; the others are the heap's first size - 1 afterwards."""
    least, value = load64(heap), load64(heap + 8 * (size - 1))
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size - 1:
            break
        if child + 1 < size - 1 and load64(heap + 8 * child + 8) < load64(heap + 8 * child):
            child += 1
        if load64(heap + 8 * child) >= value:
            break
        store64(heap + 8 * hole, load64(heap + 8 * child))
        hole = child
    store64(heap + 8 * hole, value)
    return least


@compiled
def merge_window(address, length, work, encoder):
    """Merges `length` bytes, at most CAPACITY, in n log n; leaves the tokens in `work` as a linked list.

    The heap holds rank << 32 | position of the left token; an entry whose pair is no longer there is passed over.
    """
    table, shift, merged_ids = load64(encoder + MERGES), load64(encoder + MERGES_SHIFT), load64(encoder + MERGED_IDS)
    stride = 8 * load64(encoder + CAPACITY)
    ids, following, preceding, merges, heap = (
        work,
        work + stride,
        work + 2 * stride,
        work + 3 * stride,
        work + 4 * stride,
    )
    if not load_bytes(address, length, ids, merges, encoder):
        return False
    size = 0
    for index in range(length):
        store64(following + 8 * index, index + 1)
        store64(preceding + 8 * index, index - 1)
        size = push(heap, size, load64(merges + 8 * index), index)
    while size:
        entry = pop(heap, size)
        size -= 1
        rank, at = entry >> 32, entry & LOW_HALF
        if load64(merges + 8 * at) != rank:
            continue
        merged = load32(merged_ids + 4 * rank)
        store64(ids + 8 * at, merged)
        right = load64(following + 8 * at)
        store64(merges + 8 * right, NO_MERGE)
        right = load64(following + 8 * right)
        store64(following + 8 * at, right)
        merge = NO_MERGE
        if right < length:
            store64(preceding + 8 * right, at)
            merge = find_merge(table, shift, merged, load64(ids + 8 * right))
        store64(merges + 8 * at, merge)
        size = push(heap, size, merge, at)
        left = load64(preceding + 8 * at)
        if left >= 0:
            merge = find_merge(table, shift, load64(ids + 8 * left), merged)
            store64(merges + 8 * left, merge)
            size = push(heap, size, merge, left)
    return True


@compiled
def merge_long(address, length, out, encoder):
    """Writes the ids of a piece of any length, a window at a time. Returns how many; -1: NO_TOKEN; -2: SCRATCH_FULL.

    Two windows overlap, and are joined at a token that both have at the same place. That is exact: a row of tokens is
    the encoding of its text if and only if each two neighbours are the encoding of theirs. (No merge crosses from one
    token to the next in the text of the two; the merges of a longer text, looked at there, come in the same order.)
    """
    capacity, width, work = load64(encoder + CAPACITY), load64(encoder + WIDTH), load64(encoder + WORK)
    other_work = work + 48 * capacity
    count = begin = token = 0  # `token`: the next to be written, as its place in the window that starts at `begin`
    size = min(capacity, length)
    if not merge_window(address, size, work, encoder):
        return -1
    while begin + size < length:
        ids, following = work, work + 8 * capacity
        other_ids, other_following = other_work, other_work + 8 * capacity
        shared = token
        while shared < size - size // 4:
            shared = load64(following + 8 * shared)
        if shared == size:
            return -2
        shift, other = shared, 0
        other_size = min(capacity, length - begin - shift)
        if not merge_window(address + begin + shift, other_size, other_work, encoder):
            return -1
        while shared < size and other < other_size:
            if shared < other + shift:
                shared = load64(following + 8 * shared)
            elif shared > other + shift:
                other = load64(other_following + 8 * other)
            elif load64(ids + 8 * shared) == load64(other_ids + 8 * other):
                break
            else:
                shared = load64(following + 8 * shared)
        if shared >= size or other >= other_size:
            return -2
        while token < shared:
            store_id(out, count, width, load64(ids + 8 * token))
            count += 1
            token = load64(following + 8 * token)
        begin, size, token = begin + shift, other_size, other
        work, other_work = other_work, work
    while token < size:
        store_id(out, count, width, load64(work + 8 * token))
        count += 1
        token = load64(work + 8 * (capacity + token))
    return count


@compiled
def merge_piece(address, length, out, encoder):
    """Writes the ids of a piece. Returns how many, or a negative number."""
    if length <= SHORT:
        return merge_short(address, length, out, encoder)
    return merge_long(address, length, out, encoder)


@compiled
def remember(table, slot, low, high, address, length, out, count, width):
    """Puts the ids of a piece, `count` of them at `out`, into its free slot; or does not, if there is no more room."""
    value, more = load64(out), load64(out + 8) & LOW_HALF | count << 32
    if length > INLINE_BYTES or count * width > 12:
        text = length if length > INLINE_BYTES else 0
        place = add_shared(table + ARENA_USED, text + count * width)
        if place + text + count * width + 8 > load64(table + ARENA_SIZE):  # 8: ids are read 8 bytes at a time
            return
        copy_bytes(address, load64(table + ARENA) + place, text)
        copy_bytes(out, load64(table + ARENA) + place + text, count * width)
        value, more = place, count
    if load64(table + USED) < load64(table + LIMIT) and take_shared(slot + 8, BEING_FILLED) == 0:
        add_shared(table + USED, 1)
        store64(slot, low)
        store64(slot + 16, value)
        store64(slot + 24, more)
        store_shared(slot + 8, high)


@compiled
def is_full(table):
    return load64(table + USED) + CHUNK + 256 > load64(table + LIMIT) or load64(
        table + ARENA_USED
    ) + 8 * CHUNK > load64(table + ARENA_SIZE)


@compiled
def encode_window(
    position, end, out, table, encoder, scratch, classes, specials, num_specials, first_bytes, num_first_bytes
):
    """Writes the ids of [position, end). Returns (status, address up to which it came, end of what was written).

    out: room for an id per byte and 16 bytes more. scratch: as for count_window.
    """
    homes = scratch + 8 * (CHUNK + 256)
    width = load64(encoder + WIDTH)
    while position < end:
        stop, special = next_special(position, end, specials, num_specials, first_bytes, num_first_bytes)
        while position < stop:
            if is_full(table):
                return TABLE_FULL, position, out
            slots, shift, arena = load64(table + SLOTS), load64(table + SHIFT), load64(table + ARENA)
            count = find_starts(position, stop, CHUNK, classes, scratch)
            find_homes(scratch, count, homes, slots, shift)
            for index in range(count):
                address = load64(scratch + 8 * index)
                length = load64(scratch + 8 * index + 8) - address
                low, high = key_of(address, length)
                slot = load64(homes + 8 * index)
                if load_shared(slot + 8) != high or load64(slot) != low or length > INLINE_BYTES:
                    slot, known = find_slot(slots, shift, slot, low, high, address, length, arena, 16)
                    if not known:
                        number = merge_piece(address, length, out, encoder)
                        if number < 0:
                            return (NO_TOKEN if number == -1 else SCRATCH_FULL), address, out
                        if length <= MAX_CACHED:
                            remember(table, slot, low, high, address, length, out, number, width)
                        out += number * width
                        continue
                more = load64(slot + 24)
                number = shift_right(more, 32)
                store64(out, load64(slot + 16))
                store64(out + 8, more)
                if number == 0:
                    number = more
                    source = arena + load64(slot + 16) + (length if length > INLINE_BYTES else 0)
                    for offset in range(0, number * width, 8):
                        store64(out + offset, load64(source + offset))
                out += number * width
            position = load64(scratch + 8 * count)
        if special >= 0:
            store_id(out, 0, width, load64(specials + 24 * special + 16))
            out += width
            position += load64(specials + 24 * special + 8)
    return DONE, position, out


# ---------------------------------------------------------------------------------------------------------------------
# Learning merges
#
# All words stand in one row of cells, a cell for a byte and an empty one (NO_SYMBOL) between two words. A cell is the
# symbol, 4 bytes, and how often its word occurs, 4 bytes. A token has its id in its first and in its last cell, so
# that both its neighbours find it; tokens only grow, so what is left behind inside one is never taken for another,
# but for the beginning of the right part, which is emptied. `text` holds the bytes that the cells began with.
#
# Every place where a pair stands comes into being in the one step that makes the newer of its tokens. So that step
# finds all of them, adds them up in an array with a row for each neighbour, and lists them one after the other: no
# table of pairs is needed. Afterwards the count can only fall. It stands on a heap as it was, and only when it comes
# to the top are its places looked at again; if some have gone, it goes back with the true count.
# No two merges spell the same bytes, so every merge makes a new token: where no merge crosses the ends of a stretch,
# its bytes alone decide what happens inside, in every word alike. (Even of a run like "aaaa", which is merged from the
# left: a stretch that begins in such a run, with no pair across its beginning, has an even number of them before it.)
#
# Pairs rarer than the floor are not listed. When the heap is empty too early, the caller begins again without one.
# ---------------------------------------------------------------------------------------------------------------------

CELLS, TEXT, TOKENS, NUM_TOKENS, MAX_TOKENS, NEIGHBOURS, TOUCHED, FLOOR, BY_AGE = range(0, 72, 8)
PLACES, PLACES_USED, PLACES_SIZE, PAIRS, PAIRS_USED, PAIRS_SIZE, HEAP, HEAP_USED = range(72, 136, 8)
NO_SYMBOL = LOW_HALF
MAX_FREQUENCY = LOW_HALF  # a word that is more frequent takes several rows of cells
TOKEN_ROW = 40  # where it stands in `text`, its length, what decides a tie, its left and its right part
PAIR_ROW = 32  # left id, right id, where its places are listed, how many
NEIGHBOUR_ROW = 32  # as the left one: count, places; as the right one: count, places


@compiled
def symbol_at(cells, place):
    return load32(cells + 8 * place)


@compiled
def frequency_at(cells, place):
    return load32(cells + 8 * place + 4)


@compiled
def text_of_slot(table, slot):
    """(address, length) of a slot's piece; length 0 for a free slot."""
    high = load64(slot + 8)
    if shift_right(high, 56) == 16:
        return load64(table + ARENA) + load64(slot + 24), high & ~LONG
    return slot, shift_right(high, 56)


@compiled
def summarize(table):
    """(pieces counted, cells for all words of two bytes and more, pairs of bytes in the text)."""
    slot = load64(table + SLOTS)
    pieces = cells = pairs = 0
    for _ in range(1 << 64 - load64(table + SHIFT)):
        length, amount = text_of_slot(table, slot)[1], load64(slot + 16)
        pieces += amount
        if length > 1:
            cells += (length + 1) * ((amount + MAX_FREQUENCY - 1) // MAX_FREQUENCY)
            pairs += (length - 1) * amount
        slot += 32
    return pieces, cells, pairs


@compiled
def fill_cells(table, cells, text, place):
    """Writes the words of the table into cells and text behind `place`, which is emptied. Returns the last place."""
    slot = load64(table + SLOTS)
    store64(cells + 8 * place, NO_SYMBOL)
    for _ in range(1 << 64 - load64(table + SHIFT)):
        source, length = text_of_slot(table, slot)
        amount = load64(slot + 16)
        while length > 1 and amount > 0:
            frequency = min(amount, MAX_FREQUENCY)
            for offset in range(length):
                place += 1
                byte = load8(source + offset)
                store8(text + place, byte)
                store64(cells + 8 * place, frequency << 32 | byte)
            place += 1
            store64(cells + 8 * place, NO_SYMBOL)
            amount -= frequency
        slot += 32
    return place


@compiled
def add_token(trainer, place, length):
    """A new token, whose bytes stand in `text` at `place`. Returns its id."""
    token_id = load64(trainer + NUM_TOKENS)
    store64(trainer + NUM_TOKENS, token_id + 1)
    row = load64(trainer + TOKENS) + TOKEN_ROW * token_id
    store64(row, place)
    store64(row + 8, length)
    if load64(trainer + BY_AGE):
        store64(row + 16, -token_id)
    else:  # the first 8 bytes as a number; its first bit turned, for int64 puts those with a 1 below the others
        first_bytes = swap_bytes(load64(load64(trainer + TEXT) + place) & shift_right(-1, 64 - 8 * min(length, 8)))
        store64(row + 16, first_bytes ^ (-1 << 63))
    return token_id


@compiled
def compare_tokens(trainer, token_id, other_id):
    """Positive if the token comes first in a tie, negative if the other one does."""
    if token_id == other_id:
        return 0
    row, other = load64(trainer + TOKENS) + TOKEN_ROW * token_id, load64(trainer + TOKENS) + TOKEN_ROW * other_id
    if load64(row + 16) != load64(other + 16):
        return 1 if load64(row + 16) > load64(other + 16) else -1
    text, length, other_length = load64(trainer + TEXT), load64(row + 8), load64(other + 8)
    for offset in range(min(length, other_length)):
        difference = load8(text + load64(row) + offset) - load8(text + load64(other) + offset)
        if difference:
            return difference
    return length - other_length


@compiled
def comes_first(trainer, count, pair, other_count, other_pair):
    if count != other_count:
        return count > other_count
    row, other = load64(trainer + PAIRS) + PAIR_ROW * pair, load64(trainer + PAIRS) + PAIR_ROW * other_pair
    order = compare_tokens(trainer, load64(row), load64(other))
    if order == 0:
        order = compare_tokens(trainer, load64(row + 8), load64(other + 8))
    return order > 0


@compiled
def set_entry(heap, index, count, pair):
    """An entry of the heap of pairs: 16 bytes, the count and the pair's number."""
    store64(heap + 16 * index, count)
    store64(heap + 16 * index + 8, pair)


@compiled
def push_pair(trainer, count, pair):
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
def replace_top(trainer, count, pair):
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
def drop_top(trainer):
    heap, size = load64(trainer + HEAP), load64(trainer + HEAP_USED) - 1
    store64(trainer + HEAP_USED, size)
    if size:
        replace_top(trainer, load64(heap + 16 * size), load64(heap + 16 * size + 8))


@compiled
def new_pair(trainer, left, right, count, num_places):
    """Puts a pair on the heap, and returns where its places are to be listed; -1 if it is under the floor."""
    if count < load64(trainer + FLOOR):
        return -1
    pair, start = load64(trainer + PAIRS_USED), load64(trainer + PLACES_USED)
    row = load64(trainer + PAIRS) + PAIR_ROW * pair
    store64(row, left)
    store64(row + 8, right)
    store64(row + 16, start)
    store64(row + 24, num_places)
    store64(trainer + PAIRS_USED, pair + 1)
    store64(trainer + PLACES_USED, start + num_places)
    push_pair(trainer, count, pair)
    return start


@compiled
def list_place(row, places, place):
    """Lists a place of a pair; the row's second word is where, or -1."""
    target = load64(row + 8)
    if target >= 0:
        store32(places + 4 * target, place)
        store64(row + 8, target + 1)


@compiled
def list_byte_pairs(trainer, begin, end, rows):
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
def recount(trainer, pair):
    """Strikes out the places of a pair where it no longer is. Returns the true count."""
    cells, row = load64(trainer + CELLS), load64(trainer + PAIRS) + PAIR_ROW * pair
    left, right = load64(row), load64(row + 8)
    length = load64(load64(trainer + TOKENS) + TOKEN_ROW * left + 8)
    start = source = target = load64(trainer + PLACES) + 4 * load64(row + 16)
    total = 0
    for _ in range(load64(row + 24)):
        place = load32(source)
        source += 4
        if symbol_at(cells, place) == left and symbol_at(cells, place + length) == right:
            total += frequency_at(cells, place)
            store32(target, place)
            target += 4
    store64(row + 24, (target - start) >> 2)
    return total


@compiled
def merge_places(trainer, pair, merged):
    """Merges a pair at its places, from left to right. Those where it could be are the list's first ones then."""
    cells, tokens = load64(trainer + CELLS), load64(trainer + TOKENS)
    row = load64(trainer + PAIRS) + PAIR_ROW * pair
    left, right = load64(row), load64(row + 8)
    left_length, right_length = load64(tokens + TOKEN_ROW * left + 8), load64(tokens + TOKEN_ROW * right + 8)
    start = source = target = load64(trainer + PLACES) + 4 * load64(row + 16)
    for _ in range(load64(row + 24)):
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
def touch(row, frequency, neighbour, touched, num_touched):
    """Adds a place to one side of a neighbour's row. Returns the number of neighbours in `touched`."""
    store64(touched + 8 * num_touched, neighbour)
    num_touched += load64(row + 8) == 0
    store64(row, load64(row) + frequency)
    store64(row + 8, load64(row + 8) + 1)
    return num_touched


@compiled
def list_pairs(trainer, token_id, start, count):
    """Lists the pairs of a token with its neighbours, from its `count` places: adds up, takes room, writes."""
    cells, places, tokens = load64(trainer + CELLS), load64(trainer + PLACES), load64(trainer + TOKENS)
    length = load64(tokens + TOKEN_ROW * token_id + 8)
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
            left_place = place - load64(tokens + TOKEN_ROW * left + 8)
            list_place(left_rows + NEIGHBOUR_ROW * left, places, left_place)
        if right != NO_SYMBOL and right != token_id:
            list_place(right_rows + NEIGHBOUR_ROW * right, places, place)
    for index in range(num_lefts):
        clear(left_rows + NEIGHBOUR_ROW * load64(lefts + 8 * index))
    for index in range(num_rights):
        clear(right_rows + NEIGHBOUR_ROW * load64(rights + 8 * index))


@compiled
def clear(row):
    store64(row, 0)
    store64(row + 8, 0)


@compiled
def has_room(trainer, num_places):
    """Whether the lists have room for a step that makes a token at so many places."""
    most_pairs = 2 * min(num_places, load64(trainer + NUM_TOKENS) + 1)
    return load64(trainer + PLACES_USED) + 2 * num_places <= load64(trainer + PLACES_SIZE) and load64(
        trainer + PAIRS_USED
    ) + most_pairs <= load64(trainer + PAIRS_SIZE)


@compiled
def learn_merges(trainer, steps):
    """Makes up to `steps` merges. DONE: they are made, or the vocabulary is full; LISTS_FULL: enlarge the lists first;
    UNDER_FLOOR: no pair is as frequent as the floor."""
    while steps > 0 and load64(trainer + NUM_TOKENS) < load64(trainer + MAX_TOKENS):
        if load64(trainer + HEAP_USED) == 0:
            return UNDER_FLOOR
        count, pair = load64(load64(trainer + HEAP)), load64(load64(trainer + HEAP) + 8)
        true_count = recount(trainer, pair)
        if true_count != count:
            if true_count >= load64(trainer + FLOOR):
                replace_top(trainer, true_count, pair)
            else:
                drop_top(trainer)
            continue
        row, tokens = load64(trainer + PAIRS) + PAIR_ROW * pair, load64(trainer + TOKENS)
        left, right, start, num_places = load64(row), load64(row + 8), load64(row + 16), load64(row + 24)
        if not has_room(trainer, num_places):
            return LISTS_FULL
        place = load32(load64(trainer + PLACES) + 4 * start)
        length = load64(tokens + TOKEN_ROW * left + 8) + load64(tokens + TOKEN_ROW * right + 8)
        merged = add_token(trainer, place, length)
        store64(tokens + TOKEN_ROW * merged + 24, left)
        store64(tokens + TOKEN_ROW * merged + 32, right)
        drop_top(trainer)
        list_pairs(trainer, merged, start, merge_places(trainer, pair, merged))
        steps -= 1
    return DONE
