"""Reading and writing vocabularies and merges as text, in the format of GPT-2's.

    vocab.json   {token: id}, a token written in GPT-2's alphabet: one printable character per byte
    merges.txt   "#version: 0.2", then one merge per line, in order of creation

A special token stands in vocab.json as plain text. Folders with these files are read and written by folder.py.
"""

import codecs
import functools
import operator
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenization.bpe import Merges, Vocabulary
from tokenization.errors import InputError
from tokenization.formats.contents import read_json, read_text

MERGES_VERSION = "#version: 0.2"
MAX_ID = (1 << 32) - 1  # what a token file can hold


class TokenizerDefinition(NamedTuple):
    """What makes a tokenizer: the arguments of `Tokenizer`."""

    vocab: Vocabulary
    merges: Merges | None  # None where the ids are given instead
    special_tokens: list[str]
    pattern: str
    merge_ids: np.ndarray | None = None


@functools.cache
def byte_alphabet() -> dict[int, str]:
    """Returns {byte: character}: printable Latin-1 is itself, and the other 68 bytes are U+0100 and following."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (value for value in range(256) if value not in printable)
    return {value: chr(value) for value in printable} | {value: chr(256 + n) for n, value in enumerate(others)}


@functools.cache
def byte_values() -> dict[str, int]:
    """Returns {character: byte}, the inverse of `byte_alphabet`."""
    return {character: value for value, character in byte_alphabet().items()}


@functools.cache
def _decoding() -> str:
    """Returns the character of each byte, in order."""
    return "".join(character for _, character in sorted(byte_alphabet().items()))


@functools.cache
def character_values() -> np.ndarray:
    """Returns the byte of each character, by code point, int16; -1 outside the alphabet, and at the end."""
    values = np.full(max(map(ord, byte_values())) + 2, -1, np.int16)
    for character, value in byte_values().items():
        values[ord(character)] = value
    return values


def bytes_to_text(token: bytes) -> str:
    """Writes a token in GPT-2's alphabet."""
    return codecs.charmap_decode(token, "strict", _decoding())[0]


def bytes_to_texts(tokens: Iterable[bytes]) -> list[str]:
    """Writes many tokens in GPT-2's alphabet, in one go."""
    tokens = list(tokens)
    text = bytes_to_text(b"".join(tokens))  # as long as the bytes, for a byte is a character
    ends = list(accumulate(map(len, tokens)))
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def text_to_bytes(text: str) -> bytes:
    """Reads a token in GPT-2's alphabet. Raises KeyError for a character outside it."""
    return bytes(map(byte_values().__getitem__, text))


def texts_to_bytes(texts: Sequence[str]) -> list[bytes]:
    """Reads many tokens in GPT-2's alphabet, in one go. Raises KeyError for a character outside it."""
    text = "".join(texts)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    values = character_values()[np.minimum(points, len(character_values()) - 1)]
    if values.min(initial=0) < 0:
        raise KeyError(text[int(values.argmin())])
    data = values.astype(np.uint8).tobytes()  # as long as the text, for a character is a byte
    ends = list(accumulate(map(len, texts)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def read_vocabulary(path: str | os.PathLike[str], special_tokens: Sequence[str]) -> Vocabulary:
    """Reads a vocab.json; see `parse_vocabulary`."""
    return parse_vocabulary(path, read_json(path), special_tokens)


def parse_vocabulary(path: str | os.PathLike[str], table: dict[str, Any], special_tokens: Sequence[str]) -> Vocabulary:
    """Converts {token in the alphabet: id} into {id: bytes}. path: of the table, for messages.

    Raises InputError unless the ids are distinct and every single byte has a token.
    """
    check_ids(path, table)
    special = table.keys() & set(special_tokens)
    ordinary = ["" if text in special else text for text in table] if special else list(table)
    try:
        vocab = dict(zip(table.values(), texts_to_bytes(ordinary), strict=True))
    except KeyError as error:
        text = next(text for text in ordinary if error.args[0] in text)
        raise InputError(
            f"{path}: token {text!r} has the character {error.args[0]!r}, which is not in GPT-2's byte alphabet;"
            " if it is a special token, name it as one"
        ) from None
    vocab |= {table[text]: text.encode() for text in special}
    check_single_bytes(path, vocab)
    return vocab


def check_ids(path: str | os.PathLike[str], table: dict[str, Any]) -> None:
    """Raises InputError unless the ids are distinct whole numbers from 0 to MAX_ID."""
    ids = table.values()
    if set(map(type, ids)) <= {int} and len(set(ids)) == len(ids) and (not ids or 0 <= min(ids) <= max(ids) <= MAX_ID):
        return
    seen: set[int] = set()
    for text, token_id in table.items():
        if type(token_id) is not int or not 0 <= token_id <= MAX_ID or token_id in seen:
            raise InputError(
                f"{path}: token {text!r} has id {token_id!r}; ids must be distinct whole numbers from 0 to {MAX_ID}"
            )
        seen.add(token_id)


def check_single_bytes(path: str | os.PathLike[str], vocab: Vocabulary) -> None:
    """Raises InputError where one of the 256 bytes has no token of its own."""
    missing = {bytes([value]) for value in range(256)}.difference(vocab.values())
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of the 256 single bytes have no token (the first is {min(missing)!r});"
            " a byte-level vocabulary needs them all"
        )


def read_merges(path: str | os.PathLike[str]) -> Merges:
    """Reads a merges.txt; see `parse_merges`."""
    return parse_merges(path, read_text(path))


def parse_merges(path: str | os.PathLike[str], text: str) -> Merges:
    """Converts the text of a merges.txt into pairs of byte strings, in order of creation. path: for messages."""
    lines = merge_lines(path, text)
    lefts, rights = split_merges(lines)
    refuse_repeated_merges(path, lefts, rights)
    different = list(dict.fromkeys([*lefts, *rights]))
    try:
        tokens = dict(zip(different, texts_to_bytes(different), strict=True))
    except KeyError as error:
        number, line = next((number, line) for number, line in enumerate(lines, start=1) if error.args[0] in line)
        raise not_two_tokens(path, number, line) from None
    return list(zip(map(tokens.__getitem__, lefts), map(tokens.__getitem__, rights), strict=True))


def parse_merge_ids(
    path: str | os.PathLike[str], text: str, table: Mapping[str, int], special_tokens: Sequence[str]
) -> np.ndarray | None:
    """Converts the text of a merges.txt into ids; see `merge_ids_by_text`. path: for messages."""
    return merge_ids_by_text(*split_merges(merge_lines(path, text)), table, special_tokens)


def merge_ids_by_text(
    lefts: Sequence[str], rights: Sequence[str], table: Mapping[str, int], special_tokens: Sequence[str]
) -> np.ndarray | None:
    """Returns what `bpe.find_merge_ids` does, without converting the tokens, which takes several times as long.

    lefts, rights: tokens in the alphabet. table: {token in the alphabet: id}, in which special tokens are plain text.
    None where only the bytes decide: a token is not in the table, or two are spelt alike.
    """
    ids = dict(table)
    for special in table.keys() & set(special_tokens):
        spelling = bytes_to_text(special.encode())
        if spelling != special and spelling in table:
            return None
        ids[spelling] = ids.pop(special)
    id_of = ids.__getitem__
    merged = list(map(operator.add, lefts, rights))
    in_order = slice(256, 256 + len(merged))  # where most vocabularies have what the merges make
    try:
        columns = [list(map(id_of, lefts)), list(map(id_of, rights))]
        columns.append(list(ids.values())[in_order] if list(ids)[in_order] == merged else list(map(id_of, merged)))
    except KeyError:
        return None
    return np.array(columns, np.int64).T


def merge_lines(path: str | os.PathLike[str], text: str) -> list[str]:
    """Returns the lines of a merges.txt: two tokens with a space between, or empty in place of the version.

    Raises InputError for any other line.
    """
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    headed = lines[0].startswith("#version") or lines == [""]  # "# #" is a merge like any other
    if headed:
        lines[0] = ""
    if not set(map(str.count, lines[headed:], repeat(" "))) <= {1}:
        number, line = next(
            (number, line) for number, line in enumerate(lines, start=1) if number > headed and line.count(" ") != 1
        )
        raise not_two_tokens(path, number, line)
    return lines


def split_merges(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the left and the right tokens of the lines that hold a merge."""
    texts = " ".join(filter(None, lines)).split(" ") if any(lines) else []
    return texts[::2], texts[1::2]


def refuse_repeated_merges(path: str | os.PathLike[str], lefts: Sequence[str], rights: Sequence[str]) -> None:
    """Raises InputError for a merge that is listed twice: some libraries take the first rank, and others the last."""
    pairs = list(zip(lefts, rights, strict=True))
    if len(set(pairs)) < len(pairs):
        left, right = next(pair for pair, count in Counter(pairs).items() if count > 1)
        raise InputError(f"{path}: the merge of {left!r} and {right!r} is listed twice; leave one of them out")


def not_two_tokens(path: str | os.PathLike[str], number: int, line: str) -> InputError:
    """Returns the error for a line of a merges.txt."""
    return InputError(f"{path}, line {number}: {line!r} is not two tokens with a space between them")


def check_merges(
    vocab_path: str | os.PathLike[str],
    merges_path: str | os.PathLike[str],
    vocab: Vocabulary,
    merges: Merges,
    special_tokens: Sequence[str],
    where: str,
) -> None:
    """Raises InputError where no merge makes a token that is neither a byte nor special: the merges file is cut.

    where: the place that names the special tokens, for the message.
    """
    made = {left + right for left, right in merges} | {token.encode() for token in special_tokens}
    unmade = [token for token in vocab.values() if len(token) > 1 and token not in made]
    if unmade:
        name, merges_name = Path(vocab_path).name, Path(merges_path).name
        count = f"{len(unmade)} tokens of {name} are" if len(unmade) > 1 else f"1 token of {name} is"
        raise InputError(
            f"{merges_path}: {count} made by no merge (first {bytes_to_text(unmade[0])!r}): {merges_name} is truncated,"
            f" or a special token is not named in {where}"
        )


def read_as_bytes(special_token: str) -> bytes | None:
    """Returns what a special token says in GPT-2's alphabet; None where it says itself, or is not of the alphabet."""
    try:
        data = text_to_bytes(special_token)
    except KeyError:
        return None
    return data if data != special_token.encode() else None


def may_clash(special_token: str) -> bool:
    """Returns whether a special token may read like an ordinary one in vocab.json: a byte, or one of a text."""
    data = read_as_bytes(special_token)
    return data is not None and (len(data) == 1 or "\ufffd" not in data.decode(errors="replace"))


def vocabulary_table(vocab: Vocabulary, special_tokens: Sequence[str]) -> dict[str, int]:
    """Converts {id: bytes} into {token in the alphabet: id}; the inverse of `parse_vocabulary`.

    Raises InputError where a special token and an ordinary one would be written alike.
    """
    special = {token.encode(): token for token in special_tokens}
    texts = map(special.get, vocab.values(), bytes_to_texts(vocab.values()))
    table = dict(zip(texts, vocab, strict=True))
    if len(table) != len(vocab):
        ordinary = {bytes_to_text(token) for token in vocab.values() if token not in special}
        clash = next((token for token in special_tokens if token in ordinary), None)
        if clash is None:
            token, count = Counter(vocab.values()).most_common(1)[0]
            ids = [token_id for token_id, other in vocab.items() if other == token]
            raise InputError(f"the token {token!r} has {count} ids, {ids[0]} and {ids[1]}; vocab.json can hold one")
        raise InputError(f"special token {clash!r} reads like an ordinary token in vocab.json; give it another name")
    return table
