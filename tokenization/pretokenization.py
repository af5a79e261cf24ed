"""How text is split before any merge: special tokens first, then the pre-tokens of a pattern (handout, section 2).

    text -> split_on_special_tokens -> pretokenize -> pre-tokens: no token ever reaches across two of them

and where a text may be cut so that the parts, tokenized one by one, give the same as the whole: `cut_into_pieces`.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

import regex

from tokenization.errors import InputError

END_OF_TEXT = "<|endoftext|>"

# Each alternative takes what the ones before it leave. GPT-2's: contractions, then letters, numbers or other signs with
# one space before them, then white space, which leaves its last space to the word that follows.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# GPT-4's: any one sign may stand before letters, numbers go by threes, and line ends stay with the signs before them.
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
# GPT-4o's: words also end where capitals begin, and contractions stay with their word.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = (
    rf"""[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PATTERNS = {"gpt2": GPT2_PATTERN, "cl100k": CL100K_PATTERN, "o200k": O200K_PATTERN}

# Where no pre-token of the pattern ever reaches across, so that what follows does not depend on what was before.
_SAFE_CUTS = {
    GPT2_PATTERN: r"(?<=\S)(?=\s)",
    CL100K_PATTERN: r"(?<=[\r\n])(?=[\p{L}\p{N}])",
    O200K_PATTERN: r"(?<=[\r\n])(?=[\p{L}\p{N}])",
}

PIECE_CHARACTERS = 1 << 20
KERNELS_FROM_BYTES = 4_000_000  # of text: with less, loading or compiling the kernels would take longer than they save


def kernels_for(pattern: str, num_bytes: int) -> tuple[ModuleType | None, str]:
    """The module with the compiled kernels where they help and can be had, else None; and why, in a few words."""
    if pattern != GPT2_PATTERN:
        return None, "plain Python (the kernels know GPT-2's pattern only)"
    if num_bytes < KERNELS_FROM_BYTES:
        return None, f"plain Python (less than {KERNELS_FROM_BYTES / 1e6:g} MB)"
    try:
        return importlib.import_module("tokenization.native"), "compiled kernels"
    except ImportError:
        return None, "plain Python (numba is not installed)"


def special_token_pattern(special_tokens: Sequence[str]) -> str:
    """Where two special tokens begin at the same place, the longer one wins."""
    return "|".join(regex.escape(token) for token in sorted(special_tokens, key=len, reverse=True))


def split_on_special_tokens(text: str, special_tokens: Sequence[str]) -> list[str]:
    """Text and special tokens in turn: [text, special, text, special, ..., text]; a text may be empty."""
    if not special_tokens:
        return [text]
    return regex.split(f"({special_token_pattern(special_tokens)})", text)


def pretokenize(text: str, pattern: str = GPT2_PATTERN) -> Iterator[str]:
    """ "the cat's hat" -> "the", " cat", "'s", " hat"."""
    return (match.group() for match in regex.finditer(pattern, text))


def count_pretokens(text: str, special_tokens: Sequence[str] = (), pattern: str = GPT2_PATTERN) -> Counter[bytes]:
    """How often each pre-token occurs, as UTF-8; special tokens separate and are not counted."""
    counts: Counter[str] = Counter()
    for ordinary in split_on_special_tokens(text, special_tokens)[::2]:
        counts.update(pretokenize(ordinary, pattern))
    return Counter({pretoken.encode(): count for pretoken, count in counts.items()})


def check_pattern(pattern: str) -> None:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise InputError(f"the split pattern {pattern!r} is not a regular expression: {error}") from None


def check_special_tokens(special_tokens: Sequence[str]) -> None:
    if isinstance(special_tokens, str):
        raise InputError(f"special_tokens is the string {special_tokens!r}; it must be a list of them")
    for token in special_tokens:
        if not token:
            raise InputError("a special token is empty; it would be found everywhere")
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise InputError(f"special token {token!r} is not UTF-8; no text could hold it")


def cut_into_pieces(
    blocks: Iterable[str], special_tokens: Sequence[str] = (), pattern: str = GPT2_PATTERN, size: int = PIECE_CHARACTERS
) -> Iterator[str]:
    """The same text in pieces of about `size` characters that may be tokenized one by one.

    Where a text offers no place to cut (one endless word), a piece grows until there is one.
    """
    buffer: list[str] = []
    length, wanted = 0, size
    for block in blocks:
        buffer.append(block)
        length += len(block)
        if length >= wanted:
            text = "".join(buffer)
            cut = find_cut(text, special_tokens, pattern)
            if cut:
                yield text[:cut]
            buffer, length = [text[cut:]], len(text) - cut
            wanted = max(size, 2 * length)  # doubling: looking for a cut in vain costs linear time in all
    if length:
        yield "".join(buffer)


def find_cut(text: str, special_tokens: Sequence[str], pattern: str) -> int:
    """The last place where `text`, which may go on, can be cut safely; 0 where there is none.

    A special token is a boundary under any pattern; the named patterns have others, see _SAFE_CUTS.
    """
    # A special token that begins in the last characters may be incomplete, or grow into a longer one.
    decided = max(0, len(text) - max(map(len, special_tokens), default=1) + 1)
    if pattern in _SAFE_CUTS:
        for match in regex.finditer(f"(?r){_SAFE_CUTS[pattern]}", text[:decided]):  # (?r) searches from the end
            if not any(_spans(text, match.start(), token) for token in special_tokens):
                return match.start()
    if special_tokens:
        ends = [
            match.end()
            for match in regex.finditer(special_token_pattern(special_tokens), text)
            if match.start() < decided
        ]
        return ends[-1] if ends else 0
    return 0


def _spans(text: str, position: int, token: str) -> bool:
    """Whether the token occurs in the text across the position."""
    return text.find(token, max(0, position - len(token) + 1), position + len(token) - 1) >= 0
