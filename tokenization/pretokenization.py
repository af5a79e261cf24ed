"""Pre-tokenization: text is split at special tokens, then by a pattern, before any merge (handout, section 2).

    text -> split_on_special_tokens -> pretokenize -> pre-tokens: no token ever reaches across two of them

`cut_into_chunks` cuts a long text where the chunks, tokenized one by one, give the same ids as the whole.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, pairwise

import regex

from tokenization.errors import InputError
from tokenization.patterns import parts_of

END_OF_TEXT = "<|endoftext|>"

# The first alternative that matches wins. GPT-2's: contractions, then letters, numbers or other characters with one
# space before them, then white space, which leaves its last space to the word that follows.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# GPT-4's: any one character that is no letter, number or line end may stand before letters, numbers are split into at
# most three digits, and line ends stay with the punctuation before them.
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
# GPT-4o's: a word also ends where capitals begin, and a contraction stays with its word.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = (
    rf"""[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PATTERNS = {"gpt2": GPT2_PATTERN, "cl100k": CL100K_PATTERN, "o200k": O200K_PATTERN}

CHUNK_CHARACTERS = 1 << 20
LONGEST_CHUNK = 4  # times the size: then a word is cut, if that is possible
MAX_PATTERN = 10_000  # characters; a longer one takes minutes to compile
PATTERN_SECONDS = 5.0  # of processor time; reasonable patterns split CHUNK_CHARACTERS in 0.5
_MATCHES_AT_ONCE = 1000


@lru_cache(maxsize=64)
def regex_of(pattern: str) -> regex.Pattern[str]:
    """Compiles a pattern, once: to ask the cache of `regex` takes longer than to split a short text."""
    return regex.compile(pattern)


def special_token_pattern(special_tokens: Sequence[str]) -> str:
    """Returns a regular expression for the special tokens; of two that begin at the same place the longer one wins."""
    return "|".join(regex.escape(token) for token in sorted(special_tokens, key=len, reverse=True))


def split_on_special_tokens(text: str, special_tokens: Sequence[str]) -> list[str]:
    """Splits text into [ordinary, special, ordinary, special, ..., ordinary]; an ordinary stretch may be empty."""
    if not special_tokens:
        return [text]
    return _splitter(tuple(special_tokens)).split(text)


@lru_cache(maxsize=64)
def _splitter(special_tokens: tuple[str, ...]) -> regex.Pattern[str]:
    return regex.compile(f"({special_token_pattern(special_tokens)})")


def pretokenize(text: str, pattern: str = GPT2_PATTERN) -> Iterator[str]:
    """Splits text into pre-tokens: "the cat's hat" into "the", " cat", "'s", " hat".

    These are the matches of the pattern and whatever lies between two of them, so that the pre-tokens joined are the
    text, whatever the pattern; Hugging Face calls that an isolated split.
    """
    if parts_of(pattern):  # the known ones leave nothing out, in linear time
        return (match.group() for match in regex_of(pattern).finditer(text))
    return _isolate(text, pattern)


def _isolate(text: str, pattern: str) -> Iterator[str]:
    """Yields the matches of any pattern and what lies between them."""
    last = 0
    for start, end in _matches(text, pattern):
        if start > last:
            yield text[last:start]
            last = start
        if end > last:
            yield text[last:end]
            last = end
    if last < len(text):
        yield text[last:]


def _matches(text: str, pattern: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the matches of any pattern.

    After an empty match the search goes on one character further, as Oniguruma's does. Raises InputError where it
    takes more time than any reasonable pattern would.
    """
    matcher, position, at_once = regex_of(pattern), 0, _MATCHES_AT_ONCE
    seconds = allowed = PATTERN_SECONDS * (1 + len(text) / CHUNK_CHARACTERS)
    timeout = seconds
    while position <= len(text):
        start = time.thread_time()
        try:
            matches = matcher.finditer(text, pos=position, timeout=timeout)
            spans = [match.span() for match in islice(matches, at_once)]
        except TimeoutError:
            seconds -= time.thread_time() - start
            if seconds > 0:  # `regex` counts the time of all threads, and others took it
                timeout *= 2
                continue
            raise InputError(
                f"the split pattern {pattern[:200]!r} backtracks in the text for more than {allowed:.1f} s;"
                " choose one without nested repetitions"
            ) from None
        timeout = seconds = max(0.001, seconds - (time.thread_time() - start))
        if not spans:
            return
        at_once = min(2 * at_once, _MATCHES_AT_ONCE)
        for number, ((begin, end), (again, _)) in enumerate(pairwise(spans), start=1):
            if begin == end == again:  # after an empty match, `regex` tries the same place again
                del spans[number:]
                at_once = number + 1  # what was found behind it is lost
                break
        yield from spans
        position = spans[-1][1] + (spans[-1][0] == spans[-1][1])


def piece_ends(text: str, special_tokens: Sequence[str], pattern: str) -> list[int]:
    """Returns where the special tokens and the pre-tokens of a text end, by any pattern; some places may repeat."""
    ends: list[int] = []
    start = 0
    for index, stretch in enumerate(split_on_special_tokens(text, special_tokens)):
        if index % 2 == 0:
            ends += [start + place for span in _matches(stretch, pattern) for place in span]
        start += len(stretch)
        ends.append(start)
    return ends


def count_pretokens(text: str, special_tokens: Sequence[str] = (), pattern: str = GPT2_PATTERN) -> Counter[bytes]:
    """Counts each pre-token, as UTF-8; special tokens separate and are not counted."""
    counts: Counter[str] = Counter()
    for ordinary in split_on_special_tokens(text, special_tokens)[::2]:
        counts.update(pretokenize(ordinary, pattern))
    return Counter({pretoken.encode(): count for pretoken, count in counts.items()})


def check_length(pattern: str) -> None:
    """Raises InputError for a pattern that would take minutes to compile."""
    if len(pattern) > MAX_PATTERN:
        raise InputError(f"the split pattern has {len(pattern):,} characters; {MAX_PATTERN:,} are allowed")


def check_pattern(pattern: str) -> None:
    """Raises InputError for what is no regular expression, or none that can split text from its beginning."""
    check_length(pattern)
    if any("\ud800" <= character <= "\udfff" for character in pattern):
        raise InputError(f"the split pattern {pattern!r} is not UTF-8; no text could hold it")
    try:
        flags = regex.compile(pattern).flags
    except (regex.error, RecursionError, OverflowError, ValueError) as error:
        raise InputError(f"the split pattern {pattern!r} is not a regular expression: {error}") from None
    if flags & regex.REVERSE:
        raise InputError(f"the split pattern {pattern!r} searches backwards, (?r); leave that out")


def check_special_tokens(special_tokens: Sequence[str]) -> None:
    """Raises InputError for a string instead of a list, and for tokens that are empty or not UTF-8."""
    if isinstance(special_tokens, str):
        raise InputError(f"special_tokens is the string {special_tokens!r}; it must be a list of them")
    for token in special_tokens:
        if not token:
            raise InputError("a special token is empty; it would be found everywhere")
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise InputError(f"special token {token!r} is not UTF-8; no text could hold it")


def cut_into_chunks(
    blocks: Iterable[str],
    special_tokens: Sequence[str] = (),
    pattern: str = GPT2_PATTERN,
    size: int = CHUNK_CHARACTERS,
    cut_word: Callable[[str], int] | None = None,
) -> Iterator[str]:
    """Cuts text into chunks of about `size` characters that may be tokenized one by one.

    blocks: the text, split anywhere. Where there is no place to cut (one endless word), a chunk grows until there is.
    cut_word: returns where within a word a chunk of LONGEST_CHUNK times the size can be cut, 0 if nowhere.
    """
    buffer: list[str] = []
    length, wanted = 0, size
    for block in blocks:
        buffer.append(block)
        length += len(block)
        if length >= wanted:
            text = "".join(buffer)
            cut = find_cut(text, special_tokens, pattern)
            if not cut and cut_word and length >= LONGEST_CHUNK * size:
                cut = cut_word(text)
            if cut:
                yield text[:cut]
            buffer, length = [text[cut:]], len(text) - cut
            wanted = max(size, 2 * length)  # doubling: vain searches for a cut cost linear time altogether
    if length:
        yield "".join(buffer)


def find_cut(text: str, special_tokens: Sequence[str], pattern: str) -> int:
    """Returns the last position where `text`, which may go on, can be cut safely; 0 where there is none.

    A special token is a boundary under any pattern; the known patterns have others, see safe_cuts.
    """
    # A special token that begins in the last characters may be incomplete, or grow into a longer one.
    decided = max(0, len(text) - max(map(len, special_tokens), default=1) + 1)
    cut = 0
    if places := safe_cuts(pattern):
        matches = regex_of(f"(?r)(?:{places})").finditer(text[:decided])  # (?r) searches from the end
        spared = (m.start() for m in matches if not any(_spans(text, m.start(), token) for token in special_tokens))
        cut = next(spared, 0)
    if special_tokens:
        found = regex_of(special_token_pattern(special_tokens)).finditer(text, pos=cut)
        cut = max((match.end() for match in found if match.start() < decided), default=cut)
    return cut


def safe_cuts(pattern: str) -> str | None:
    """Returns a regular expression for places between two pre-tokens, whatever else stands in the text.

    None for a pattern that is not known. Cut there, a text gives the pre-tokens of the whole.
    """
    parts = parts_of(pattern)
    if parts is None:
        return None
    kind = r"[\p{L}\p{N}]" if parts.tail else r"\S"  # signs may take line ends with them
    words = r"|(?<=\p{L})(?=\p{N})|(?<=\p{N})(?=\p{L})|(?<=[\p{L}\p{N}])(?=[^\s\p{L}\p{M}\p{N}'])"
    return rf"(?<={kind})(?=\s)" + (rf"|(?<=[\r\n])(?={kind})" if parts.lines else "") + words


def _spans(text: str, position: int, token: str) -> bool:
    """Returns whether the token occurs in the text across the position."""
    return text.find(token, max(0, position - len(token) + 1), position + len(token) - 1) >= 0


def group_texts(texts: Iterable[str], length: int) -> Iterator[list[str]]:
    """Yields the texts in groups of at least `length` characters together, but for the last."""
    group: list[str] = []
    missing = length
    for text in texts:
        group.append(text)
        missing -= len(text)
        if missing <= 0:
            yield group
            group, missing = [], length
    if group:
        yield group
