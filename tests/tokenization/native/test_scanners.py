"""The scanners find the pre-tokens that `regex` finds, for every pattern that they know and on every kind of text."""

import random
import string
from collections.abc import Callable, Iterable
from functools import cache
from itertools import accumulate, product

import numpy as np
import pytest
import regex
from helpers.split_patterns import ALL_TEXT, PARTS, PUBLISHED, hard_text, known_parts, name_of
from helpers.texts import SEED_TEXT, WORDS

from tokenization import patterns
from tokenization.native import Window
from tokenization.native.characters import CUT, LEAD, LOWER, NUMBER, SIGN, SPACE, UPPER, class_table
from tokenization.native.compiling import compiled
from tokenization.native.instructions import load64
from tokenization.native.memory import address_of
from tokenization.native.scanner import CODE, call
from tokenization.native.splitting import scanner_head
from tokenization.native.text import between_pretokens, uniform_run
from tokenization.patterns import Parts, parts_of
from tokenization.pretokenization import safe_cuts

TRICKY = SEED_TEXT + "".join(WORDS + PARTS) + "x's'll\u3000\u3000's  \n's 're\xa0\xa0a''s'"

RUN_LETTERS = [
    "a",
    "abc",
    "éaß",
    "中文",
    "中",
    "aA",
    "A",
    "a中",
    "12",
    "\u06611",
    " ",
    "\u3000 ",
    " \n",
    "\n",
    "!",
    "!/",
    "!'",
    "。!",
]

every_pattern = pytest.mark.parametrize("pattern", PUBLISHED.values(), ids=PUBLISHED)


@compiled
def scan(position: int, end: int, wanted: int, scanner: int, starts: int) -> int:
    return call(load64(scanner + CODE), position, end, wanted, scanner, starts)


def starts_of(pattern: str, data: bytes, begin: int = 0, wanted: int = 1 << 40) -> list[int]:
    """What the scanner finds from `begin` on: where pre-tokens begin, and where the last whole one ends."""
    window = Window.of_bytes(data)
    starts = np.empty(len(data) + 256, np.int64)
    first = address_of(window.buffer)
    count = scan(first + begin, first + len(data), wanted, scanner_head(pattern).address, address_of(starts))
    return (starts[: count + 1] - first).tolist()


@cache
def findall(pattern: str) -> Callable[[str], list[str]]:
    """Splits by `regex`, whose own cache of patterns is slow."""
    return regex.compile(pattern).findall


def expected_starts(pattern: str, text: str) -> list[int]:
    """The same by `regex`, whose matches leave nothing out."""
    pretokens = findall(pattern)(text)
    assert sum(map(len, pretokens)) == len(text), f"{name_of(pattern)}: must match all of any text"
    return list(accumulate((len(pretoken.encode()) for pretoken in pretokens), initial=0))


def check(pattern: str, texts: Iterable[str]) -> None:
    for text in texts:
        if text:
            assert starts_of(pattern, text.encode()) == expected_starts(pattern, text), repr(text)


# --- the classes of characters ---


@every_pattern
def test_classes_are_those_of_regex(pattern):
    """Every code point, against the classes in the pattern's own words."""
    parts = known_parts(pattern)
    classes = class_table(parts)
    letter = r"[\p{L}\p{M}]" if parts.marks else r"\p{L}"
    upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]" if parts.cased else "[^\x00-\U0010ffff]"
    expected = {
        UPPER: upper,
        LOWER: r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]" if parts.cased else letter,
        LEAD: r"[^\r\n\p{L}\p{N}]" if parts.any_lead else " ",
        NUMBER: r"\p{N}",
        SPACE: r"\s",
        SIGN: r"[^\s\p{L}\p{N}]" if parts.mark_signs else r"[^\s\p{L}\p{M}\p{N}]",
    }
    text = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for flag, kind in expected.items():
        found = np.zeros(0x110000, bool)
        for match in regex.finditer(f"{kind}+", text):
            found[match.start() : match.end()] = True
        assert np.array_equal(classes & flag != 0, found), (flag, kind)
    assert not np.any((classes & SPACE != 0) & (classes & CUT != 0))


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
@pytest.mark.parametrize("letters", [ALL_TEXT[:0x20000], pytest.param(ALL_TEXT, marks=pytest.mark.slow)], ids=len)
def test_contractions_with_every_character(name, letters):
    """Which letters are equal but for their case is for `regex` to say: it finds more than A to Z."""
    prefix = "a" if name == "o200k" else ""
    check(PUBLISHED[name], ["".join(f"{prefix}'{letter}." for letter in letters)])
    for first in "lvrLVR":
        check(PUBLISHED[name], ["".join(f"{prefix}'{first}{letter}." for letter in ALL_TEXT[:0x3000])])


CONTEXTS = [
    *["a{}b", "A{}a", "A{}A", " {}", "{} a", "!{}a", "! {}!", "1{}1", "{}\n", "\n{}", "'{}", "'s{}", "a's{}", " {}\n"]
]
RUNS = [
    *["a", "A", "1", "!", " ", "\n", " \n", "\n ", "!\n", "\n/", "'s", "a's", "é", "中", "\u0301", "aB", " a", "\u3000"]
]


@every_pattern
def test_some_characters_in_every_context(pattern):
    letters = string.printable + "".join(random.Random(0).sample(ALL_TEXT, 3000))
    check(pattern, [f"{context.format(letter)}" for context in CONTEXTS for letter in letters[:200]])
    check(pattern, ["".join(context.format(letter) for letter in letters) for context in CONTEXTS])


@pytest.mark.slow
@every_pattern
def test_every_character_in_every_context(pattern):
    for context in CONTEXTS:
        for start in range(0, len(ALL_TEXT), 1 << 16):
            check(pattern, ["".join(context.format(letter) for letter in ALL_TEXT[start : start + (1 << 16)])])


# --- whole texts ---


@every_pattern
def test_random_texts(pattern):
    source = random.Random(1)
    check(pattern, (hard_text(source) for _ in range(2000)))


@pytest.mark.slow
@every_pattern
def test_a_million_random_texts(pattern):
    source = random.Random(2)
    check(pattern, (hard_text(source) for _ in range(1_000_000)))


@every_pattern
def test_every_cut_and_shift(pattern):
    """Whatever block boundary falls wherever, and whatever stands behind the end."""
    for cut in range(1, len(TRICKY)):
        check(pattern, (TRICKY[:cut], TRICKY[cut:]))


@every_pattern
def test_runs_of_every_length(pattern):
    """Around one block, two blocks and more, of all that can be repeated."""
    for unit, end in product(RUNS, ("", "a", " !")):
        check(pattern, (f"x{unit * count}{end}" for count in [*range(1, 70), 126, 127, 128, 300]))


@every_pattern
def test_a_scan_can_go_on_from_any_pretoken(pattern):
    data, expected = TRICKY.encode(), expected_starts(pattern, TRICKY)
    for index, begin in enumerate(expected[:-1]):
        assert starts_of(pattern, data, begin) == expected[index:]
        part = starts_of(pattern, data, begin, wanted=64)
        assert part == expected[index : index + len(part)]
        assert len(part) >= 2


@every_pattern
def test_text_is_cut_between_pretokens_alone(pattern):
    """Each part splits by itself as it does within the whole."""
    source, scanner, split, cuts = random.Random(5), scanner_head(pattern).address, findall(pattern), 0
    for _ in range(300):
        text = hard_text(source)[:250]  # each cut costs a whole split
        window, pretokens = Window.of_bytes(text.encode()), split(text)
        first = address_of(window.buffer)
        for cut in range(1, window.length):
            if between_pretokens(first, first + cut, first + window.length, scanner):
                before, behind = (part.tobytes().decode() for part in np.split(window.buffer[: window.length], [cut]))
                assert split(before) + split(behind) == pretokens, (cut, repr(text))
                cuts += 1
    assert cuts > 500


@every_pattern
def test_a_uniform_run_can_be_cut_anywhere(pattern):
    """Whatever stands before it, and whatever follows what is known of the text."""
    source, scanner, cuts = random.Random(6), scanner_head(pattern).address, 0
    digits = known_parts(pattern).digits
    for _ in range(600):
        run = "".join(source.choices(source.choice(RUN_LETTERS), k=source.randint(4, 12)))
        text = f"{hard_text(source)[:20]}{run}"
        following = source.choice(["", "a", "A", " ", "\n", "!", "1", "'s", hard_text(source)[:20]])
        window = Window.of_bytes(text.encode())
        first, whole = address_of(window.buffer), expected_starts(pattern, text + following)
        begin = len(text.encode()[: uniform_run(first, first + window.length, scanner) - first].decode())
        for cut in range(begin + 3, len(text) - 1):
            if digits and text[begin].isdigit() and (cut - begin) % digits:
                continue
            place = len(text[:cut].encode())
            before, behind = expected_starts(pattern, text[:cut]), expected_starts(pattern, (text + following)[cut:])
            found = {*before, *(place + start for start in behind)}
            assert found | {place} == {*whole, place}, (repr(text), repr(following), cut)
            cuts += 1
    assert cuts > 500


# --- which patterns are known ---


def test_parts_are_read_from_every_published_spelling():
    assert len({known_parts(PUBLISHED[name]) for name in ("gpt2", "gpt2 in full", "gpt2 of tiktoken")}) == 1
    assert parts_of(PUBLISHED["cl100k"]) == Parts(
        contractions=patterns.CONTRACTIONS_ANY_CASE,
        any_lead=True,
        marks=False,
        cased=False,
        suffix=False,
        spaced_numbers=False,
        digits=3,
        mark_signs=True,
        tail="\r\n",
        lines=True,
        whole_end=True,
    )


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        r"\w+",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a part alone
        PUBLISHED["cl100k"] + "|a",
        "a|" + PUBLISHED["cl100k"],
        PUBLISHED["cl100k"].replace("{1,3}", "{2,3}"),
        PUBLISHED["cl100k"].replace(r"\s*[\r\n]", r"\s*+[\r\n]"),  # never matches
        PUBLISHED["qwen 3.5"].replace(r"?[\p{L}\p{M}]", r"?+[\p{L}\p{M}]"),  # another split of a lone mark
        PUBLISHED["qwen 3.5"].replace(r"[\p{L}\p{M}]+", r"\p{L}+"),  # leaves marks out
        PUBLISHED["o200k"].replace(r"\p{M}]*[", r"\p{M}]*+["),
        PUBLISHED["gpt2"].replace(r"\s+(?!\S)", r"\s++(?!\S)"),
        PUBLISHED["gpt2"].replace(r"\p{L}", r"\p{Lu}", 1),
        "(?i)" + PUBLISHED["gpt2"],
    ],
)
def test_any_other_pattern_is_not_known(pattern):
    assert parts_of(pattern) is None
    assert safe_cuts(pattern) is None
    with pytest.raises(ValueError, match="no kernel knows"):
        scanner_head(pattern)


TABLES = [patterns._CONTRACTIONS, patterns._WORDS, patterns._NUMBERS, patterns._SIGNS, patterns._WHITE_SPACE]


def with_marks(pattern: str) -> str:
    """The pattern, with marks left out of the signs where words have them."""
    return pattern.replace(r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}") if r"[\p{L}\p{M}]" in pattern else pattern


def test_parts_in_any_spelling():
    source = random.Random(3)
    for _ in range(250):
        pattern = "".join(source.choice(list(table)) for table in TABLES)
        for one in {pattern, with_marks(pattern)}:
            check(one, (hard_text(source) for _ in range(10)))


@pytest.mark.slow
def test_every_combination_of_parts():
    """One spelling of each part's every meaning, and every spelling of every part with the others as in cl100k."""
    meanings = [list({str(fields): spelling for spelling, fields in table.items()}.values()) for table in TABLES]
    usual = [max(filter(PUBLISHED["cl100k"].__contains__, table), key=len) for table in TABLES]
    spelt = [[*usual[:n], spelling, *usual[n + 1 :]] for n, table in enumerate(TABLES) for spelling in table]
    source = random.Random(4)
    for pattern in map("".join, [*product(*meanings), *spelt]):
        for one in {pattern, with_marks(pattern)}:
            check(one, (hard_text(source) for _ in range(100)))
