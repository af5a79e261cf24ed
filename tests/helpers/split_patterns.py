"""Split patterns as they are published, and texts that are hard to split by them."""

import random

import regex

from helpers.texts import WORDS, random_text
from tokenization.patterns import Parts, parts_of
from tokenization.pretokenization import PATTERNS

CASED = PATTERNS["o200k"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PUBLISHED = PATTERNS | {
    "gpt2 in full": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt2 of tiktoken": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt2, digits one by one": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama 3, olmo 2, glm 4": LLAMA_3,
    "qwen 2, qwen 3": LLAMA_3.replace("{1,3}", ""),
    "qwen 3.5": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "nanochat": PATTERNS["cl100k"].replace("{1,3}+", "{1,2}").replace(r"\s++$|", ""),
    "tekken, nemotron": CASED.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", ""),
}
PARTS = [
    *["\u0301", "\u0301a", "\u017f", "'\u017f", "'S", "'LL", "'Re", "'vE", "ǅ", "ʰ", "ª", "中A中", "AB", "Ab", "aB"],
    *["Éa", "éÉ", "HELLOworld", "/", "//\n", "\n/", "!\n", "\r", "  \n ", "\n\n", "“", "123", "12345", "١٢٣٤", "½"],
    *["'", "''", "\u2019s"],
]
ALL_TEXT = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def name_of(pattern: str) -> str:
    return next((name for name, published in PUBLISHED.items() if published == pattern), pattern)


def known_parts(pattern: str) -> Parts:
    """Returns the parts of a pattern, each of which the kernels must know."""
    parts = parts_of(pattern)
    assert parts, f"{name_of(pattern)}: no kernel knows a part of it; add its spelling to tokenization/patterns.py"
    return parts


def check_complete(pattern: str) -> None:
    """Checks that a pattern matches all of a text, as a published one must: other programs drop what it leaves out."""
    for text in (ALL_TEXT, " ".join(ALL_TEXT[:0x3000])):
        left = regex.sub(pattern, "", text)
        assert not left, f"{name_of(pattern)}: must match all of any text, but leaves out {left[:10]!a} and others"


def hard_text(source: random.Random) -> str:
    """A random text of every kind, or one of what these patterns take apart."""
    if source.random() < 0.4:
        return random_text(source)
    pool = source.choice([PARTS, PARTS + WORDS, source.sample(PARTS + WORDS, 5), list("aA'sS1 \n/!\u0301")])
    return "".join(source.choices(pool, k=int(source.expovariate(1 / source.choice([3, 20, 60])))))
