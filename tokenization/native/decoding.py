"""Decodes ids: the bytes of all tokens stand in one array, and those of the ids are copied one after the other."""

import numpy as np

from tokenization.native.compiling import built_in_of, compiled
from tokenization.native.instructions import copy_bytes, load64, store64
from tokenization.native.memory import PADDING, Head, address_of
from tokenization.native.objects import bytes_of, item_at, new_bytes, new_number, new_text, number_at, size_of

(  # fields of a decoder's head
    ENTRIES,  # address of an int64 for each token: where its bytes begin, and their number; -1 where an id is unknown
    NUM_TOKENS,  # of the entries
    TOKENS,  # address of the bytes of all tokens
    ERRORS,  # address of what becomes of bytes that are not UTF-8
    TEXT,  # address of a worker's memory for text
    ROOM,  # bytes of it, behind which there are 8 more
) = DECODER_FIELDS = range(0, 6 * 8, 8)

LENGTH_BITS = 24  # of a token's entry
CHUNK_IDS = 1 << 12  # of a list, decoded at once
KEPT_BYTES = 1 << 15  # of text; where the text of a chunk is longer, memory is made anew
UNKNOWN, NO_ROOM = -1, -2


class Decoder:
    """The bytes of each token as kernels read them. tokens: by id, None where an id is unknown."""

    def __init__(self, tokens: tuple[bytes | None, ...]) -> None:
        place = built_in_of(place_tokens)
        entries = np.empty(len(tokens), np.int64)
        size = int(place(id(tokens), len(tokens), id(None), address_of(entries), 0))  # type: ignore[call-overload]
        self.is_usable = size >= 0
        text = np.zeros(max(size, 0) + PADDING, np.uint8)
        if self.is_usable:
            place(id(tokens), len(tokens), id(None), address_of(entries), address_of(text))
        self._head = Head(
            DECODER_FIELDS,
            {
                ENTRIES: entries,
                NUM_TOKENS: len(tokens),
                TOKENS: text,
                ERRORS: np.frombuffer(b"replace\0", np.uint8),
                TEXT: 0,  # each worker has its own
                ROOM: 0,
            },
        )
        self._decode = built_in_of(decode_listed)
        self._idle: list[Head] = []  # of workers; each call takes one out

    def decode_list(self, token_ids: list[int], as_text: bool) -> str | bytes | None:
        """Returns the text or bytes of ids; None if one of them is unknown, or no whole number."""
        count = len(token_ids)
        if count <= CHUNK_IDS:
            return self._decode_part(token_ids, 0, count, as_text)
        parts = [
            self._decode_part(token_ids, start, min(start + CHUNK_IDS, count), False)
            for start in range(0, count, CHUNK_IDS)
        ]
        if None in parts:
            return None
        data = b"".join(parts)  # type: ignore[arg-type]
        return str(data, "utf-8", "replace") if as_text else data

    def _decode_part(self, token_ids: list[int], start: int, end: int, as_text: bool) -> str | bytes | None:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._new_worker(KEPT_BYTES)
        larger, room = worker, KEPT_BYTES
        while (result := self._decode(id(token_ids), start, end, larger.address, as_text)) == NO_ROOM:
            room *= 2
            larger = self._new_worker(room)
        self._idle.append(worker)
        return result if isinstance(result, str | bytes) else None

    def _new_worker(self, room: int) -> Head:
        worker = self._head.copy()
        worker[TEXT], worker[ROOM] = np.empty(room + 8, np.uint8), room
        return worker

    def decode(self, token_ids: np.ndarray) -> memoryview | None:
        """Returns the bytes of ids, int64; None if one of them is unknown."""
        ids, count, decoder = address_of(token_ids), len(token_ids), self._head.address
        size = decoded_size(ids, count, decoder)
        if size < 0:
            return None
        text = np.empty(size + 8, np.uint8)
        copy_tokens(ids, count, decoder, address_of(text))
        return text.data[:size]


@compiled
def place_tokens(tokens: int, count: int, none: int, entries: int, text: int) -> object:
    """Fills the entries of a tuple of bytes and None, and the text unless its address is 0; returns the text's length.

    Or -1, where a token is longer than an entry can say.
    """
    place = 0
    for index in range(count):
        token = item_at(tokens, index)
        if token == none:
            store64(entries + 8 * index, UNKNOWN)
            continue
        length = size_of(token)
        if length >= 1 << LENGTH_BITS:
            return new_number(-1)
        if text:
            copy_bytes(bytes_of(token), text + place, length)
        store64(entries + 8 * index, place << LENGTH_BITS | length)
        place += length
    return new_number(place)


@compiled
def decode_listed(ids: int, start: int, end: int, worker: int, as_text: bool) -> object:
    """Returns the text or bytes of the ids from index `start` to `end` of a list.

    Or a number: UNKNOWN, as an id is not known, or is no whole number; NO_ROOM, as the worker has too little of it.
    """
    entries, num_tokens, tokens = load64(worker + ENTRIES), load64(worker + NUM_TOKENS), load64(worker + TOKENS)
    text, room = load64(worker + TEXT), load64(worker + ROOM)
    size = 0
    for index in range(start, end):
        token_id = number_at(ids, index)
        if token_id < 0 or token_id >= num_tokens:
            return new_number(UNKNOWN)
        entry = load64(entries + 8 * token_id)
        if entry < 0:
            return new_number(UNKNOWN)
        length = entry & ((1 << LENGTH_BITS) - 1)
        if size + length > room:
            return new_number(NO_ROOM)
        copy_token(tokens + (entry >> LENGTH_BITS), text + size, length)
        size += length
    return new_text(text, size, load64(worker + ERRORS)) if as_text else new_bytes(text, size)


@compiled
def copy_token(source: int, target: int, length: int) -> None:
    """Copies the bytes of a token, and up to 7 bytes behind them."""
    for offset in range(0, length, 8):
        store64(target + offset, load64(source + offset))


@compiled
def decoded_size(ids: int, count: int, decoder: int) -> int:
    """Returns how many bytes `count` ids of int64 stand for; UNKNOWN if one of them is not known."""
    entries, num_tokens = load64(decoder + ENTRIES), load64(decoder + NUM_TOKENS)
    size = 0
    for index in range(count):
        token_id = load64(ids + 8 * index)
        if token_id < 0 or token_id >= num_tokens:
            return UNKNOWN
        entry = load64(entries + 8 * token_id)
        if entry < 0:
            return UNKNOWN
        size += entry & ((1 << LENGTH_BITS) - 1)
    return size


@compiled
def copy_tokens(ids: int, count: int, decoder: int, out: int) -> None:
    """Writes the bytes of known ids, and up to 7 bytes behind them."""
    entries, tokens = load64(decoder + ENTRIES), load64(decoder + TOKENS)
    for index in range(count):
        entry = load64(entries + 8 * load64(ids + 8 * index))
        length = entry & ((1 << LENGTH_BITS) - 1)
        copy_token(tokens + (entry >> LENGTH_BITS), out, length)
        out += length
