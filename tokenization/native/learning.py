"""Learns merges from the counts of pre-tokens, exactly, without a table of pairs.

Every place where a pair stands comes into being in the one step that makes the newer of its tokens. So that step finds
all of them, adds them up in an array with a row for each neighbour, and lists them one after another. Afterwards the
count can only fall. The pair waits on a heap, and its places are looked at again only when it comes to the top; if
some have gone, it goes back with its true count.

No two merges spell the same bytes, so every merge makes a new token: where no merge crosses the ends of a stretch of
text, its bytes alone decide what happens inside, in every word alike. (Even in a run like "aaaa", which is merged from
the left: a stretch that begins in such a run, with no pair across its beginning, has an even number of them before it.)

Pairs rarer than a floor are not listed. If the heap runs empty too early, learning starts again without a floor.
"""

from collections.abc import Sequence

import numpy as np

from tokenization.errors import InputError
from tokenization.native.cells import (
    NO_SYMBOL,
    fill_cells,
    list_byte_pairs,
    list_pairs,
    merge_places,
    recount,
    reset_cells,
)
from tokenization.native.compiling import compiled
from tokenization.native.instructions import load32, load64, store64
from tokenization.native.memory import DONE, UNDER_FLOOR, address_of
from tokenization.native.pairs import (
    CELLS,
    FLOOR,
    HEAP,
    HEAP_USED,
    MAX_TOKENS,
    NUM_TOKENS,
    PAIR_COUNT,
    PAIR_LEFT,
    PAIR_RIGHT,
    PAIR_ROW,
    PAIR_START,
    PAIRS,
    PAIRS_USED,
    PLACES,
    PLACES_USED,
    TEXT,
    TOKEN_LEFT,
    TOKEN_LENGTH,
    TOKEN_ORDER,
    TOKEN_PLACE,
    TOKEN_RIGHT,
    TOKEN_ROW,
    TOKENS,
    Trainer,
    add_token,
    drop_top,
    missing_room,
    replace_top,
)
from tokenization.native.table import Table, summarize

FLOOR_SHARE = 128  # at first, pairs rarer than this part of all pairs per token are left out
STEPS = 1000  # merges between two updates of the progress bar, and between two looks at Ctrl-C


def learn_merges(
    counts: Table, vocab: Sequence[bytes], vocab_size: int, tie_order: Sequence[int] | None, progress: bool
) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Returns all tokens, those of `vocab` first, and the merges as pairs of ids, in the order of their creation.

    counts: released, once its words are copied. tie_order: ranks the 256 bytes in a tie; later tokens follow by age.
    None is lexicographic order.
    """
    num_pairs = summarize(counts.head.address)[2]
    trainer = prepare_trainer(counts, b"".join(vocab), vocab_size, by_age=tie_order is not None)
    counts.release()
    for floor in dict.fromkeys((max(1, num_pairs // (FLOOR_SHARE * vocab_size)), 1)):
        begin_training(trainer, vocab, tie_order, floor)
        if run_trainer(trainer, vocab_size, progress) == DONE:
            break
    rows = trainer.arrays[TOKENS][len(vocab) : trainer[NUM_TOKENS]]
    pairs = zip(rows[:, TOKEN_LEFT // 8].tolist(), rows[:, TOKEN_RIGHT // 8].tolist(), strict=True)
    return learnt_tokens(trainer), list(pairs)


def prepare_trainer(counts: Table, text: bytes, vocab_size: int, by_age: bool) -> Trainer:
    """Makes a trainer that has the words in its cells. text: the tokens known before, one after another.

    Raises InputError if there are more different pre-tokens than places can count.
    """
    num_cells = len(text) + 1 + summarize(counts.head.address)[1]
    if num_cells > NO_SYMBOL:
        raise InputError(f"{num_cells / 1e9:.1f} GB of different pre-tokens are more than 4 GB; give less text")
    trainer = Trainer(num_cells, vocab_size, by_age)
    trainer.arrays[TEXT][: len(text)] = np.frombuffer(text, np.uint8)
    trainer.arrays[CELLS][: len(text)] = NO_SYMBOL
    fill_cells(counts.head.address, trainer[CELLS], trainer[TEXT], len(text))
    return trainer


def begin_training(trainer: Trainer, vocab: Sequence[bytes], tie_order: Sequence[int] | None, floor: int) -> None:
    """Makes the words bytes again, the tokens those of `vocab`, and lists the pairs of bytes."""
    for field in (NUM_TOKENS, PLACES_USED, PAIRS_USED, HEAP_USED):
        trainer[field] = 0
    trainer[FLOOR] = floor
    place = 0
    for token in vocab:
        add_token(trainer.address, place, len(token))
        place += len(token)
    for byte, order in enumerate(tie_order or ()):
        trainer.arrays[TOKENS][byte, TOKEN_ORDER // 8] = -order
    end = len(trainer.arrays[CELLS]) - 1
    reset_cells(trainer[CELLS], trainer[TEXT], place, end)
    rows = np.zeros((1 << 16, 2), np.int64)
    list_byte_pairs(trainer.address, place, end, address_of(rows))


def run_trainer(trainer: Trainer, vocab_size: int, progress: bool) -> int:
    """Makes merges until the vocabulary is full (DONE) or no pair is as frequent as the floor (UNDER_FLOOR)."""
    known = trainer[NUM_TOKENS]
    from tqdm import tqdm  # which takes long to import

    with tqdm(total=vocab_size - known, desc="merging", unit="merge", disable=not progress, delay=0.5) as bar:
        while trainer[NUM_TOKENS] < vocab_size:
            status = make_merges(trainer.address, STEPS)
            if status == UNDER_FLOOR:
                return status
            if status != DONE:
                trainer.enlarge(status)
            bar.update(trainer[NUM_TOKENS] - known - bar.n)
    return DONE


def learnt_tokens(trainer: Trainer) -> list[bytes]:
    """Returns the bytes of all tokens."""
    text, rows = trainer.arrays[TEXT], trainer.arrays[TOKENS][: trainer[NUM_TOKENS]]
    places, lengths = rows[:, TOKEN_PLACE // 8].tolist(), rows[:, TOKEN_LENGTH // 8].tolist()
    return [text[place : place + length].tobytes() for place, length in zip(places, lengths, strict=True)]


@compiled
def make_merges(trainer: int, steps: int) -> int:
    """Makes up to `steps` merges.

    DONE: they are made, or the vocabulary is full. PLACES_FULL, PAIRS_FULL: that list must be enlarged first.
    UNDER_FLOOR: no pair is as frequent as the floor.
    """
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
        left, right = load64(row + PAIR_LEFT), load64(row + PAIR_RIGHT)
        start, num_places = load64(row + PAIR_START), load64(row + PAIR_COUNT)
        missing = missing_room(trainer, num_places)
        if missing != DONE:
            return missing
        place = load32(load64(trainer + PLACES) + 4 * start)
        left_length = load64(tokens + TOKEN_ROW * left + TOKEN_LENGTH)
        merged = add_token(trainer, place, left_length + load64(tokens + TOKEN_ROW * right + TOKEN_LENGTH))
        store64(tokens + TOKEN_ROW * merged + TOKEN_LEFT, left)
        store64(tokens + TOKEN_ROW * merged + TOKEN_RIGHT, right)
        drop_top(trainer)
        list_pairs(trainer, merged, start, merge_places(trainer, pair, merged))
        steps -= 1
    return DONE
