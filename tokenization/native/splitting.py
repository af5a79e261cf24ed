"""Chooses the scanner for a pattern."""

import functools
from collections.abc import Callable

from tokenization.native import blocks, gpt2
from tokenization.native.characters import class_table
from tokenization.native.compiling import load
from tokenization.native.memory import Head
from tokenization.native.scanner import (
    ANY_LEAD,
    CASED,
    CLASSES,
    CODE,
    CONTRACTIONS,
    DIGITS,
    LINES,
    NO_LIMIT,
    SCANNER_FIELDS,
    SPACED_NUMBERS,
    SUFFIX,
    TAIL,
    WHOLE_END,
)
from tokenization.patterns import parts_of
from tokenization.pretokenization import GPT2_PATTERN


def scanner_kernel(pattern: str) -> Callable[..., int]:
    """Returns the kernel that splits by a known pattern."""
    return gpt2.find_starts if parts_of(pattern) == parts_of(GPT2_PATTERN) else blocks.find_pretokens


@functools.cache
def scanner_head(pattern: str) -> Head:
    """Returns the head of the scanner for a known pattern; compiles or loads its kernel."""
    parts = parts_of(pattern)
    if parts is None:
        raise ValueError(f"no kernel knows a part of the pattern {pattern!r}; patterns.py lists those that they know")
    return Head(
        SCANNER_FIELDS,
        {
            CODE: load(scanner_kernel(pattern)),
            CLASSES: class_table(parts),
            CONTRACTIONS: parts.contractions,
            ANY_LEAD: parts.any_lead,
            CASED: parts.cased,
            SUFFIX: parts.suffix,
            SPACED_NUMBERS: parts.spaced_numbers,
            DIGITS: parts.digits or NO_LIMIT,
            TAIL: ["", "\r\n", "\r\n/"].index(parts.tail),
            LINES: parts.lines,
            WHOLE_END: parts.whole_end,
        },
    )
