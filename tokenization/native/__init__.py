"""The tokenizer at native speed: kernels compiled by LLVM, for the split patterns of patterns.py.

    text (UTF-8) -> scanner -----> pre-tokens -> table -------> counts       (count_window)
                    64 bytes at a time           |  ^---------> ids          (encode_window)
                                                 merge_pretoken              (what the table does not know yet)
    counts -> words in one row of cells -> make_merges -> merges

Each kernel stands beside the class that owns its memory. bpe.py and plain_encoding.py say in plain Python what the
kernels must compute. The kernels are Python too, of a kind that translation.py turns into machine code.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from tokenization.native.cells import fill_cells, list_byte_pairs, reset_cells
from tokenization.native.compiling import cache_folder, is_cached, load
from tokenization.native.counting import add_table, count_corpus, count_window
from tokenization.native.decoding import Decoder, copy_tokens, decode_listed, decoded_size, place_tokens
from tokenization.native.encoding import Encoder, can_encode
from tokenization.native.given import find_given
from tokenization.native.joints import fill_joints
from tokenization.native.learning import learn_merges, make_merges
from tokenization.native.listing import list_ids
from tokenization.native.merging import fill_merges
from tokenization.native.pairs import add_token
from tokenization.native.pieces import PieceEncoder
from tokenization.native.rows import add_counts, add_rows, rows_of, sort_slots, table_of, write_rows
from tokenization.native.splitting import scanner_head, scanner_kernel
from tokenization.native.table import rehash, summarize
from tokenization.native.text import first_invalid, last_cut
from tokenization.native.windows import Window
from tokenization.native.worker import encode_window

__all__ = [
    "Decoder",
    "Encoder",
    "PieceEncoder",
    "Window",
    "add_rows",
    "are_cached",
    "cache_folder",
    "can_encode",
    "compile_kernels",
    "count_corpus",
    "learn_merges",
    "rows_of",
    "table_of",
]

_COUNTING = (first_invalid, last_cut, count_window, rehash, add_table, sort_slots, write_rows)
_LEARNING = (summarize, fill_cells, reset_cells, add_token, list_byte_pairs, make_merges)
_DECODING = (place_tokens, decode_listed, decoded_size, copy_tokens)
_ENCODING = (first_invalid, last_cut, fill_merges, fill_joints, encode_window, rehash, list_ids, *_DECODING)
_KERNELS = {
    "training": _COUNTING + _LEARNING,
    "merging": (add_counts, rehash, sort_slots, write_rows, *_LEARNING),
    "encoding": _ENCODING,
    "pieces": (*_ENCODING, find_given),
}
_SCANNING = ("training", "encoding")  # by a pattern that a scanner knows


def are_cached(work: str, pattern: str) -> bool:
    """Returns whether none of the kernels for some work, as compile_kernels has it, must be compiled."""
    scanners = [scanner_kernel(pattern)] if work in _SCANNING else []
    return all(is_cached(kernel) for kernel in (*_KERNELS[work], *scanners))


def compile_kernels(work: str, pattern: str, step: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
    """Compiles the kernels for some work, or loads them from the cache, before anything is timed.

    work: "training"; "merging", which is training from counts made elsewhere; "encoding"; or "pieces", which is
    encoding what is split elsewhere.
    step: makes a context that is entered for each kernel.
    """
    for kernel in _KERNELS[work]:
        with step():
            load(kernel)
    if work in _SCANNING:
        with step():
            scanner_head(pattern)
