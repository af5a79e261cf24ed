"""Importing and exporting tokenizers in the formats of other projects.

    tokenizer.json   Hugging Face `tokenizers` and transformers: vocabulary, merges, pattern and special tokens
    NAME.tiktoken    tiktoken: a line "base64(token) rank" per token; no merges, pattern or special tokens

Whatever a file requests beyond byte-level BPE is refused by name (formats/tokenizer_json.py): ignored, it would give
other ids.
"""

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tokenization.bpe import LOW_HALF
from tokenization.errors import InputError
from tokenization.files import write_text
from tokenization.formats.contents import read_bytes, read_json
from tokenization.formats.gpt2 import (
    MAX_ID,
    bytes_to_text,
    check_single_bytes,
    read_as_bytes,
    vocabulary_table,
)
from tokenization.formats.oniguruma import to_oniguruma
from tokenization.formats.tokenizer_json import read_tokenizer_json
from tokenization.tokenizer import Tokenizer

# The special tokens of OpenAI's own vocabularies, which their .tiktoken files leave out.
KNOWN_SPECIAL_TOKENS = {
    "gpt2": {"<|endoftext|>": 50256},
    "cl100k": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}

# --- tiktoken ---------------------------------------------------------------------------------------------------------


def import_tiktoken(path: str | os.PathLike[str], pattern: str, special_tokens: Mapping[str, int]) -> Tokenizer:
    """Reads a .tiktoken file; the merges are recovered from the ranks, see `recover_merges`.

    special_tokens: {token: id}, which the file does not hold. Raises InputError for a damaged file, and for a token
    that no merges make: tiktoken takes such a token for a pre-token that is equal to it, without merging.
    """
    ranks: dict[bytes, int] = {}
    lines = read_bytes(path).replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            token, rank = parse_rank(line)
        except ValueError:
            shown = line[:40].decode(errors="backslashreplace")
            raise InputError(f'{path}, line {number}: {shown!r} is not "base64(token) rank"') from None
        if (known := ranks.setdefault(token, rank)) != rank:
            raise InputError(
                f"{path}, line {number}: the token has rank {rank}, and {known} in an earlier line; it is damaged"
            )
    vocab = dict(zip(ranks.values(), ranks, strict=True))
    if len(vocab) != len(ranks):
        raise InputError(f"{path}: two tokens have the same rank; it is damaged")
    if max(vocab) > MAX_ID:
        raise InputError(f"{path}: ranks run to {max(vocab)}; they must lie between 0 and {MAX_ID}")
    check_single_bytes(path, vocab)
    for text, token_id in special_tokens.items():
        if vocab.setdefault(token_id, text.encode()) != text.encode():
            raise InputError(f"{path}: id {token_id} of special token {text!r} is taken by {vocab[token_id]!r}")
    merge_ids = recover_merges(ranks)
    if unmade := tokens_without_merge(ranks, merge_ids) - {text.encode() for text in special_tokens}:
        token = min(unmade, key=ranks.__getitem__)
        raise InputError(
            f"{path}: no merges make token {ranks[token]}, {token!r}, so that tiktoken would encode it in another way;"
            " take a tokenizer without such tokens, or name it as a special one"
        )
    return Tokenizer(vocab, None, list(special_tokens), pattern, merge_ids)


def parse_rank(line: bytes) -> tuple[bytes, int]:
    """Returns the token and the rank in a line of a .tiktoken file. Raises ValueError for any other line."""
    text, rank = line.split(b" ")
    token = binascii.a2b_base64(text)
    if not token or binascii.b2a_base64(token, newline=False) != text or not rank.isdigit():  # int() takes more
        raise ValueError
    return token, int(rank)


def is_tiktoken(path: Path) -> bool:
    """Returns whether a file looks like tiktoken's, by its first line."""
    with open(path, "rb") as file:
        line = file.readline(1000)
    try:
        parse_rank(line.rstrip(b"\r\n"))
    except ValueError:
        return False
    return True


NO_PART = -1  # of a byte


def recover_merges(ranks: Mapping[bytes, int]) -> np.ndarray:
    """Finds the merge behind each token: the two tokens that its bytes become when only older tokens may merge.

    A token that is not the merge of two older ones can never result from merging, and has no merge. Returns ranks,
    (left, right, merged) of each merge, int64, shape (merges, 3), the oldest first.
    """
    tokens = sorted(ranks, key=ranks.__getitem__)  # and a token is known by its place here
    lefts, rights = [NO_PART] * len(tokens), [NO_PART] * len(tokens)  # the parts of each
    older = {token: place for place, token in enumerate(tokens) if len(token) == 1}  # that can result from encoding
    known: dict[int, int] = {}  # left << 32 | right -> merged
    place_of = older.get
    for place, token in enumerate(tokens):
        for cut in range(1, len(token)):
            if (right := place_of(token[cut:])) is None or (left := place_of(token[:cut])) is None:
                continue
            if stay_apart(left, right, lefts, rights, known):
                older[token] = known[left << 32 | right] = place
                lefts[place], rights[place] = left, right
                break
    pairs, merged = np.fromiter(known, np.int64), np.fromiter(known.values(), np.int64)
    rank_of = np.fromiter(map(ranks.__getitem__, tokens), np.int64)
    return rank_of[np.column_stack([pairs >> 32, pairs & LOW_HALF, merged])]


def tokens_without_merge(ranks: Mapping[bytes, int], merge_ids: np.ndarray) -> set[bytes]:
    """Returns the tokens of several bytes that no merge makes."""
    made = set(merge_ids[:, 2].tolist())
    return {token for token, rank in ranks.items() if len(token) > 1 and rank not in made}


def stay_apart(left: int, right: int, lefts: Sequence[int], rights: Sequence[int], known: Mapping[int, int]) -> bool:
    """Tells whether the bytes of two tokens merge into just these two.

    Their merges are undone from the last to the first. None of the tokens that face each other then may have merged,
    {left << 32 | right: merged} in `known`, before the merge that was undone last; of two alike the left one comes
    first. lefts, rights: the parts of each token, NO_PART for a byte.
    """
    limit = 1 << 64
    while True:
        if known.get(left << 32 | right, limit) < limit:
            return False
        if rights[left] != NO_PART and (rights[right] == NO_PART or left > right):
            limit, left = left, rights[left]
        elif rights[right] != NO_PART:
            limit, right = right + 1, lefts[right]
        else:
            return True


def export_tiktoken(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> int:
    """Writes a .tiktoken file, and returns how many tokens it holds: all but the special ones that are no others.

    The ranks are ids, and tiktoken merges whatever makes a token, the lowest rank first. Raises InputError where other
    merges than the tokenizer's would follow from that.
    """
    ordinary = {bytes([value]) for value in range(256)} | {left + right for left, right in tokenizer.merges}
    special = {token.encode() for token in tokenizer.special_tokens} - ordinary
    ranks = {token: token_id for token_id, token in sorted(tokenizer.vocab.items()) if token not in special}
    made = [ranks.get(left + right, -1) for left, right in tokenizer.merges]
    if made != sorted(made) or -1 in made:
        raise InputError(f"{path}: this tokenizer's merges are not in the order of its ids, as .tiktoken needs them")
    merges = [(ranks[left], ranks[right], rank) for (left, right), rank in zip(tokenizer.merges, made, strict=True)]
    recovered = recover_merges(ranks)
    other = set(map(tuple, recovered.tolist())) ^ set(merges)
    others = {rank for *_, rank in other} | {ranks[token] for token in tokens_without_merge(ranks, recovered)}
    if others:
        raise InputError(
            f"{path}: tiktoken would make token {min(others)}, {tokenizer.vocab[min(others)]!r}, in another way than"
            " this tokenizer's merges; export a tokenizer.json"
        )
    write_text(path, "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return len(ranks)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def export_huggingface(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> int:
    """Writes a tokenizer.json, which splits text by the pattern, writes it in the byte alphabet, and merges.

    Returns how many tokens it holds. Raises InputError for a pattern that Hugging Face would read in another way.
    """
    vocab = vocabulary_table(tokenizer.vocab, tokenizer.special_tokens)
    special = {text.encode() for text in tokenizer.special_tokens}  # their bytes are never left for a merge
    merges = [merge for merge in dict.fromkeys(tokenizer.merges) if special.isdisjoint({*merge, b"".join(merge)})]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pattern = to_oniguruma(tokenizer.pattern, path)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[text], "content": text, **flags} for text in tokenizer.special_tokens],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocab.items(), key=lambda entry: entry[1])),
            "merges": [[bytes_to_text(left), bytes_to_text(right)] for left, right in merges],
        },
    }
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return len(vocab)


def decoded_otherwise(tokenizer: Tokenizer) -> list[str]:
    """Lists, a line each, the special tokens whose ids Hugging Face decodes to other bytes."""
    read = {text: read_as_bytes(text) for text in tokenizer.special_tokens}
    return [
        f"Hugging Face gives the special token {text!r} its id, but decodes that to the bytes {data!r}"
        for text, data in read.items()
        if data is not None
    ]


def is_huggingface(path: Path) -> bool:
    """Returns whether a file looks like a tokenizer.json."""
    try:
        return {"model", "pre_tokenizer", "added_tokens"} <= read_json(path).keys()
    except InputError:
        return False


def import_huggingface(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tokenizer.json. Raises InputError for one that is damaged, or does more than byte-level BPE."""
    return Tokenizer(*read_tokenizer_json(path))
