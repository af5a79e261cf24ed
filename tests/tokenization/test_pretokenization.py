"""Proves that text splits as Hugging Face's GPT-2 pre-tokenizer splits it, that special tokens go first and the
longest wins, and that a text in pieces, however it is cut and fed, splits as the whole does."""

import itertools
import time
from collections import Counter

import pytest
from tokenizers import Regex, pre_tokenizers

from tokenization import END_OF_TEXT, GPT2_PATTERN, InputError, pretokenization
from tokenization.formats.gpt2 import bytes_to_text
from tokenization.pretokenization import (
    check_pattern,
    count_pretokens,
    cut_into_chunks,
    find_cut,
    pretokenize,
    split_on_special_tokens,
)

OVERLAPPING = [END_OF_TEXT, END_OF_TEXT * 2, "<|", "|>\n", "a b", " ", "\n\n\n"]
TRICKY = f"we'll  go\n\n\nnow{END_OF_TEXT}{END_OF_TEXT}{END_OF_TEXT} a b<|endof \t it's\u3000 é漢字 '  s|>\n\n x  "


def whole(text: str, special_tokens=(), pattern: str = GPT2_PATTERN) -> list[str]:
    """Pre-tokens and special tokens of a text in one go; white space between pieces is where they could differ."""
    parts = split_on_special_tokens(text, special_tokens)
    split = [[part] if index % 2 else list(pretokenize(part, pattern)) for index, part in enumerate(parts)]
    return list(itertools.chain.from_iterable(split))


def in_pieces(blocks, special_tokens=(), pattern: str = GPT2_PATTERN, size: int = 1) -> list[str]:
    pieces = cut_into_chunks(blocks, special_tokens, pattern, size)
    return [token for piece in pieces for token in whole(piece, special_tokens, pattern)]


@pytest.mark.parametrize(
    ("text", "pretokens"),
    [
        ("", []),
        ("some text that i'll pre-tokenize", ["some", " text", " that", " i", "'ll", " pre", "-", "tokenize"]),
        ("the cat's hat", ["the", " cat", "'s", " hat"]),
        ("we'LL DON'T", ["we", "'", "LL", " DON", "'", "T"]),
        ("a  b", ["a", " ", " b"]),
        ("a\n\nb \n", ["a", "\n", "\n", "b", " \n"]),
        ("x1 22½ !?", ["x", "1", " 22½", " !?"]),
        ("  ", ["  "]),
    ],
)
def test_pattern_by_hand(text, pretokens):
    assert list(pretokenize(text)) == pretokens


@pytest.mark.parametrize("seed", range(0, 1000, 100))
def test_pretokens_equal_hugging_face(seed, random_text):
    reference = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for text in (random_text(seed + n) for n in range(100)):
        pretokens = list(pretokenize(text))
        assert "".join(pretokens) == text
        assert [bytes_to_text(token.encode()) for token in pretokens] == [
            token for token, _ in reference.pre_tokenize_str(text)
        ]


def test_special_tokens_alternate_with_text_and_the_longest_wins():
    text = f"a{END_OF_TEXT * 3}<|b"
    assert split_on_special_tokens(text, OVERLAPPING) == [
        *("a", END_OF_TEXT * 2, "", END_OF_TEXT, "", "<|", "b"),
    ]
    assert split_on_special_tokens("a.*b.+", [".*", "(", "[x]"]) == ["a", ".*", "b.+"]
    assert split_on_special_tokens("a b", []) == ["a b"]
    assert split_on_special_tokens("", [END_OF_TEXT]) == [""]


def test_counting_leaves_special_tokens_out_and_stops_at_them():
    text = f"low low{END_OF_TEXT}low é{END_OF_TEXT}"
    assert count_pretokens(text, [END_OF_TEXT]) == Counter({b"low": 2, b" low": 1, " é".encode(): 1})
    assert count_pretokens("low low") == Counter({b"low": 1, b" low": 1})


@pytest.mark.parametrize("special_tokens", [(), [END_OF_TEXT], OVERLAPPING], ids=["none", "one", "overlapping"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_pieces_split_as_the_whole_at_every_cut(special_tokens, size):
    expected = whole(TRICKY, special_tokens)
    for cut in range(len(TRICKY) + 1):
        assert in_pieces([TRICKY[:cut], TRICKY[cut:]], special_tokens, size=size) == expected
    for step in range(1, 8):
        blocks = [TRICKY[start : start + step] for start in range(0, len(TRICKY), step)]
        assert "".join(cut_into_chunks(blocks, special_tokens, size=size)) == TRICKY
        assert in_pieces(blocks, special_tokens, size=size) == expected


@pytest.mark.parametrize("seed", range(200))
def test_pieces_of_random_text_split_as_the_whole(seed, random_text):
    text = random_text(seed) + END_OF_TEXT + random_text(seed + 1000)
    special_tokens = [[], [END_OF_TEXT], OVERLAPPING, ["é", "  ", "\r\n"]][seed % 4]
    assert in_pieces(list(text), special_tokens) == whole(text, special_tokens)


@pytest.mark.parametrize("size", [1, 8])
def test_special_tokens_longer_than_a_piece_are_not_cut(size):
    special_tokens = ["one two three four five", " two three", "five six\n\nseven"]
    text = "x one two three four five six one two three four five six\n\nseven  one two three four six"
    for step in range(1, 30):
        blocks = [text[start : start + step] for start in range(0, len(text), step)]
        assert in_pieces(blocks, special_tokens, size=size) == whole(text, special_tokens)


@pytest.mark.parametrize("special_tokens", [[END_OF_TEXT], OVERLAPPING])
def test_another_pattern_is_cut_after_special_tokens_only(special_tokens):
    pattern = r"\S+\s*|\s+"  # here "a " is one pre-token: a cut before white space would be wrong
    text = f"a b c{END_OF_TEXT}d e {END_OF_TEXT * 2} f g h"
    assert in_pieces(list(text), special_tokens, pattern) == whole(text, special_tokens, pattern)
    assert len(list(cut_into_chunks(list(text), special_tokens, pattern, 1))) > 2
    assert list(cut_into_chunks(list("a b c"), [], pattern, 1)) == ["a b c"]


def test_ordinary_text_comes_in_pieces_near_the_size_asked_for():
    pieces = list(cut_into_chunks(["word " * 10] * 200, [END_OF_TEXT], size=500))
    assert all(len(piece) <= 600 for piece in pieces)
    assert all(len(piece) >= 400 for piece in pieces[:-1])


@pytest.mark.parametrize("block", ["a", " ", "漢"])
def test_a_text_without_a_place_to_cut_is_searched_a_few_times_only(block, monkeypatch):
    searched = []
    monkeypatch.setattr(
        pretokenization, "find_cut", lambda text, *rest: searched.append(len(text)) or find_cut(text, *rest)
    )
    assert list(cut_into_chunks([block * 100] * 1000, [END_OF_TEXT], size=100)) == [block * 100_000]
    assert sum(searched) < 3 * 100_000


@pytest.mark.parametrize(
    ("text", "special_tokens", "cut"),
    [
        ("one two three", (), 7),
        ("one", (), 0),
        ("  one", (), 0),
        ("one ", (), 3),  # the space is known to end the word; the word that follows may yet take it
        ("one two", ["e t"], 5),  # never inside a special token, but after one
        ("one two three four <|end", [END_OF_TEXT], 7),  # the last 12 characters may begin a special token
        ("xxxxxa bbb", ["a bbbbbbbbbb"], 0),  # shorter than the special token that may be coming
        (f"x{END_OF_TEXT}", [END_OF_TEXT], 14),
        (f"x{END_OF_TEXT}", [END_OF_TEXT, END_OF_TEXT * 2], 0),
    ],
)
def test_where_a_text_is_cut(text, special_tokens, cut):
    assert find_cut(text, special_tokens, GPT2_PATTERN) == cut


@pytest.mark.parametrize(
    ("pattern", "text", "pretokens"),
    [
        (r"\w+", "hello, world!", ["hello", ", ", "world", "!"]),
        (r"\p{N}{1,3}", "In 1999 there", ["In ", "199", "9", " there"]),
        ("x", "abc", ["abc"]),
        ("", "a😀", ["a", "😀"]),
        ("a*", "baab", ["b", "aa", "b"]),
        ("a*?", "aab", ["a", "a", "b"]),
        ("(?=a)", "bab", ["b", "ab"]),
        (r"\b|\w+", "hello a", ["h", "ello", " ", "a"]),  # the empty match wins, and the search goes on behind it
        (r"(?<=a)|b", "abab", ["a", "ba", "b"]),
        (r"a\Kb", "abab", ["a", "b", "a", "b"]),
        ("(a)(b)?", "abcab", ["ab", "c", "ab"]),
    ],
)
def test_what_lies_between_matches_is_a_pretoken(pattern, text, pretokens, monkeypatch):
    reference = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert list(pretokenize(text, pattern)) == pretokens == [piece for piece, _ in reference.pre_tokenize_str(text)]
    monkeypatch.setattr(pretokenization, "_MATCHES_AT_ONCE", 1)
    assert list(pretokenize(text, pattern)) == pretokens


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "not a regular expression"),
        ("a{1,99999999999999}", "not a regular expression"),
        ("(" * 4000 + ")" * 4000, "not a regular expression"),
        ("ab" * 6000, "12,000 characters"),
        ("\udc80", "is not UTF-8"),
        ("(?r)a", "searches backwards"),
    ],
    ids=lambda value: value[:20],
)
def test_patterns_that_cannot_split_are_refused(pattern, reason):
    with pytest.raises(InputError, match=reason):
        check_pattern(pattern)


def test_time_within_a_pattern_is_bounded_and_that_of_the_caller_does_not_count(monkeypatch):
    monkeypatch.setattr(pretokenization, "PATTERN_SECONDS", 0.05)
    with pytest.raises(InputError, match=r"backtracks in the text for more than 0\.1 s"):
        list(pretokenize("a" * 60 + "b", "(a|aa)+$"))
    start = time.process_time()
    for _ in pretokenize("ab " * 2000, r"\w+"):
        while time.process_time() < start + 0.1:
            pass


def test_the_time_of_other_threads_does_not_count(monkeypatch):
    """`regex` counts it, and stops too early; the text goes on where it was."""
    real, stopped = pretokenization.regex_of(r"\w+"), []

    class Hurried:
        def finditer(self, text, pos, timeout):
            stopped.append(timeout)
            if len(stopped) % 3:
                raise TimeoutError
            return real.finditer(text, pos=pos)

    monkeypatch.setattr(pretokenization, "regex_of", lambda _: Hurried())
    text = "ab " * 5000
    assert list(pretokenize(text, "any pattern")) == ["ab", " "] * 5000
    assert stopped[:3] == [stopped[0], 2 * stopped[0], 4 * stopped[0]]
