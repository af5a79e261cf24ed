"""Texts that are hard to split, for the kernels and whatever chooses between them and plain Python."""

import random

from tokenization import END_OF_TEXT

SPECIAL_TOKENS = [END_OF_TEXT, "<|end of|>", " \n<|x|>", "<|end"]
WORDS = [
    *"aBlvest '-!=19\n\t\r\x0b\x0c\x1c\x00\x85\xa0",
    *"\u1680\u2003\u2028\u202f\u205f\u3000\u200b\u0301éßñ²½٣中文😀🏽\u200d\ufeff\U0010ffff\ue000",
    *["'s", "'t", "'ll", "'re", "'ve", "'d", "'m", "'S", " '", "''", "  ", "\r\n", " the", "hello", "Привет", "नमस्ते"],
    *["a" * 40, "=" * 70, "0" * 33, "ab" * 20, END_OF_TEXT, "<|end", "|>", " \n<|x|>", "<|end of|>"],
]
SEED_TEXT = (
    "the cat's hat isn't theirs; they'll say we've 1234 reasons, 2025 and 99!  Indented:\n\tcode == value\n\n"
    "Привет, мир — привет! 中文 字 中文字 नमस्ते 😀😀 naïve café ½ ٣٤ ==== ---- aaaaaaa ababab\u3000x\xa0y\r\n"
)


def random_text(source: random.Random) -> str:
    """From all planes, from words that are hard to split, from few letters, from white space."""
    length = int(source.expovariate(1 / source.choice([3, 20, 100])))
    kind = source.randrange(5)
    if kind == 0:
        codes = (source.randrange(source.choice([0x80, 0x800, 0x10000, 0x110000])) for _ in range(length))
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
    if kind == 1:
        return "".join(source.choices("abcde", k=4 * length))
    if kind == 2:
        return "".join(source.choices([word for word in WORDS if word.isspace()] + ["a", "1"], k=length))
    return "".join(source.choices(WORDS if kind == 3 else source.sample(WORDS, 4), k=length))
