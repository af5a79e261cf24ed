"""Reads vocab.json and merges.txt with NumPy, if they are laid out as folder.py writes them.

The characters of all tokens become bytes at once, and merges are looked up by numbers that are made of these bytes. A
file that this module does not know (another layout, other escapes than those of quotation marks and backslashes, a
special token that is not printable ASCII, something listed twice or missing) is left to gpt2.py, which defines what the
files mean and says what is wrong with them.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from tokenization.bpe import Vocabulary
from tokenization.formats.gpt2 import MAX_ID, MERGES_VERSION, character_values

SPACE, NEWLINE, QUOTE, COMMA, COLON, ZERO = map(ord, ' \n",:0')
ESCAPED = {"\\\\": "\1", '\\"': "\2"}  # in JSON: what stands for it here, a character that neither file has
MEANING = {"\1": "\\", "\2": '"'}
KEY_BYTES = 15  # of the longest token that is its own key
MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
MIX = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)


class Unknown(Exception):
    """The file is not laid out as this module knows it."""


def require(holds: bool | np.bool_) -> None:
    """Raises Unknown unless a condition holds."""
    if not holds:
        raise Unknown


def read_own_files(vocab: bytes, merges: bytes, special_tokens: Sequence[str]) -> tuple[Vocabulary, np.ndarray] | None:
    """Returns {id: token}, and the ids of the merges, int64, shape (merges, 3); None where gpt2.py must read the files.

    vocab, merges: the contents of the files.
    """
    try:
        require(all(" " < character <= "~" for character in chain.from_iterable(special_tokens)))
        tokens, ids = parse_vocabulary(vocab)
        vocabulary = dict(zip(ids.tolist(), tokens.list(), strict=True))
        require(len(vocabulary) == len(ids))
        finder = Finder(tokens)
        finder.find(ALL_BYTES)  # or else a message is due
        lefts, rights, merged = parse_merges(merges)
        return vocabulary, ids[np.column_stack([finder.find(lefts), finder.find(rights), finder.find(merged)])]
    except (Unknown, KeyError, UnicodeDecodeError):
        return None


# --- tokens ----------------------------------------------------------------------------------------------------------


class Spans:
    """Tokens as stretches of bytes. starts, ends: of each."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray):
        self._values, self._starts, self._ends = values, starts, ends
        self.sizes = ends - starts

    def list(self) -> list[bytes]:
        """Returns the tokens."""
        data = self._values.tobytes()
        return [data[start:end] for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True)]

    def long(self) -> dict[int, bytes]:
        """Returns the tokens of more than KEY_BYTES, by their place among all."""
        places = np.flatnonzero(self.sizes > KEY_BYTES)
        return {place: self._values[self._starts[place] : self._ends[place]].tobytes() for place in places.tolist()}

    def keys(self, numbers: dict[bytes, int]) -> np.ndarray:
        """Returns two uint64 for each token, which no other token has, shape (2, tokens). numbers: of the long."""
        padded = np.concatenate([self._values, np.zeros(16, np.uint8)])
        words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))  # the 8 bytes that begin at each place
        low = words[self._starts] & MASKS[np.minimum(self.sizes, 8)]
        high = words[self._starts + 8] & MASKS[np.clip(self.sizes - 8, 0, 7)]
        high |= self.sizes.astype(np.uint64) << np.uint64(56)
        for place, token in self.long().items():
            low[place], high[place] = numbers[token], 1 << 63
        return np.stack([low, high])


ALL_BYTES = Spans(np.arange(256, dtype=np.uint8), np.arange(256), np.arange(256) + 1)


class Finder:
    """Finds tokens in a vocabulary by their keys."""

    def __init__(self, tokens: Spans):
        self._numbers = {token: place for place, token in tokens.long().items()}
        self._keys = tokens.keys(self._numbers)
        numbers = mixed(self._keys)
        self._order = np.argsort(numbers)
        self._sorted = numbers[self._order]
        require((self._sorted[1:] != self._sorted[:-1]).all())

    def find(self, tokens: Spans) -> np.ndarray:
        """Returns the place of each token in the vocabulary. Raises Unknown, or KeyError, for a token without one."""
        keys = tokens.keys(self._numbers)
        first = int(self._search(keys[:, :1])[0])
        if np.array_equal(self._keys[:, first : first + keys.shape[1]], keys):  # what merges make is listed in order
            return np.arange(first, first + keys.shape[1])
        return self._search(keys)

    def _search(self, keys: np.ndarray) -> np.ndarray:
        places = self._order[np.minimum(np.searchsorted(self._sorted, mixed(keys)), len(self._order) - 1)]
        require(np.array_equal(self._keys[:, places], keys))
        return places


def mixed(keys: np.ndarray) -> np.ndarray:
    """Returns a number for each key; two keys may share one."""
    numbers: np.ndarray = keys[0] * MIX[0] ^ keys[1] * MIX[1]
    return numbers


# --- files -----------------------------------------------------------------------------------------------------------


class Spelling:
    """The characters of a text in GPT-2's alphabet, each as the byte that it stands for.

    points: their code points. gaps: where those stand that are not in the alphabet, such as white space.
    """

    def __init__(self, text: str):
        self.points = np.frombuffer(text.encode("utf-16-le"), "<u2")  # two for what the alphabet does not have either
        table = character_values().copy()
        for character, meant in MEANING.items():
            table[ord(character)] = ord(meant)
        values = table.take(self.points, mode="clip")
        self.gaps = np.flatnonzero(values < 0)
        self.values = values.astype(np.uint8)


def decode(content: bytes) -> str:
    """Returns a file as text, without the characters that stand for others here."""
    text = content.decode()
    require(not any(character in text for character in MEANING))
    return text


def parse_vocabulary(content: bytes) -> tuple[Spans, np.ndarray]:
    """Returns the tokens and ids of a vocab.json that has a line for each: "token": id. Raises Unknown for others."""
    text = decode(content)
    require(text.startswith('{\n"') and text.endswith("\n}\n"))
    for escape, character in ESCAPED.items():
        text = text.replace(escape, character)
    require("\\" not in text)
    spelling = Spelling(text)
    points, gaps = spelling.points, spelling.gaps
    require(len(gaps) > 2 and len(gaps) % 2 == 0 and text.count('"') == len(gaps) - 2)
    newlines, spaces = gaps[::2], gaps[1:-1:2]
    begins, stops, ends = newlines[:-1] + 1, spaces - 2, gaps[2::2] - 1  # of a token's quotation marks; of its number
    ends[-1] += 1  # no comma behind the last one
    require((begins < stops).all() and (points[ends[:-1]] == COMMA).all())
    for place, point in ((newlines, NEWLINE), (spaces, SPACE), (begins, QUOTE), (stops, QUOTE), (stops + 1, COLON)):
        require((points[place] == point).all())
    return Spans(spelling.values, begins + 1, stops), parse_numbers(points, spaces + 1, ends)


def parse_numbers(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the numbers, at most MAX_ID, that are written between places of a text. points: its code points."""
    sizes = ends - starts
    require((sizes > 0).all() and (sizes <= len(str(MAX_ID))).all())
    require(((points[starts] != ZERO) | (sizes == 1)).all())
    numbers = np.zeros(len(starts), np.int64)
    for place in range(int(sizes.max())):
        digits = points[np.maximum(ends - 1 - place, starts)].astype(np.int64) - ZERO
        require(((digits >= 0) & (digits <= 9)).all())
        numbers += np.where(place < sizes, digits, 0) * 10**place
    require(numbers.max() <= MAX_ID)
    return numbers


def parse_merges(content: bytes) -> tuple[Spans, Spans, Spans]:
    """Returns the left, right and merged tokens of a merges.txt. Raises Unknown where a line is not two tokens."""
    header, _, body = decode(content).partition("\n")
    require(header.startswith(MERGES_VERSION) and body.endswith("\n"))
    spelling = Spelling(body)
    spaces, newlines = spelling.gaps[::2], spelling.gaps[1::2]
    require(len(spaces) == len(newlines))
    require((spelling.points[spaces] == SPACE).all() and (spelling.points[newlines] == NEWLINE).all())
    begins = np.concatenate([[0], newlines[:-1] + 1])
    lefts, rights = Spans(spelling.values, begins, spaces), Spans(spelling.values, spaces + 1, newlines)
    ends = np.cumsum(newlines - begins - 1)
    merged = Spans(np.delete(spelling.values, spelling.gaps), np.concatenate([[0], ends[:-1]]), ends)
    return lefts, rights, merged
