"""A tokenizer's folder: the layout that `Tokenizer.save` writes, and those of others that `Tokenizer.load` reads.

    vocab.json, merges.txt   in GPT-2's format, see gpt2.py
    tokenizer_config.json    {"pattern": ..., "special_tokens": [...], "files_sha256": {...}, "config_sha256": ...}

The configuration holds the SHA-256 of the other two files and of itself, so that no flipped bit, no cut file and no
mixture of two tokenizers loads. It is replaced first: in a folder whose writing was interrupted, its digests do not fit
the other files. Folders without digests are older ones, or another program's:

    tokenizer.json           Hugging Face's; it has precedence over every other file
    vocab.json, merges.txt   GPT-2's own two files: its pattern, and <|endoftext|>
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenization.bpe import Vocabulary
from tokenization.errors import InputError
from tokenization.files import write_texts
from tokenization.formats.contents import decode, parse_json, read_bytes, read_json, read_text
from tokenization.formats.gpt2 import (
    MERGES_VERSION,
    TokenizerDefinition,
    bytes_to_texts,
    check_merges,
    parse_merge_ids,
    parse_merges,
    parse_vocabulary,
    vocabulary_table,
)
from tokenization.outputs import check_folder
from tokenization.pretokenization import END_OF_TEXT, GPT2_PATTERN, check_special_tokens

FILES = VOCAB_FILE, MERGES_FILE, CONFIG_FILE = "vocab.json", "merges.txt", "tokenizer_config.json"
TOKENIZER_JSON, ADDED_TOKENS_FILE = "tokenizer.json", "added_tokens.json"
SETTINGS, DIGESTS = {"pattern", "special_tokens"}, {"files_sha256", "config_sha256"}
# The first line of merges.txt says that it needs the configuration: without it, it would be read as GPT-2's.
NEEDS_CONFIG = f"{MERGES_VERSION} with {CONFIG_FILE}"


def write_folder(
    folder: str | os.PathLike[str],
    vocab: Vocabulary,
    merge_ids: np.ndarray,
    special_tokens: Sequence[str],
    pattern: str,
) -> dict[Path, str]:
    """Writes all the files or none, so that no folder holds half a tokenizer, or halves of two; returns their texts.

    merge_ids: of `Tokenizer`.
    """
    table = vocabulary_table(vocab, special_tokens)
    spelling_of = dict(zip(vocab, bytes_to_texts(vocab.values()), strict=True)).__getitem__
    entries = json.dumps(table, ensure_ascii=False, separators=(",\n", ": "))  # with an indent it would be slow
    lefts, rights = (map(spelling_of, column) for column in merge_ids[:, :2].T.tolist())
    lines = [NEEDS_CONFIG, *map(" ".join, zip(lefts, rights, strict=True))]
    texts = {
        VOCAB_FILE: f"{{\n{entries[1:-1]}\n}}\n",
        MERGES_FILE: "\n".join(lines) + "\n",
    }
    files = {name: sha256(text) for name, text in texts.items()}
    config = {"pattern": pattern, "special_tokens": list(special_tokens), "files_sha256": files}
    written = {Path(folder) / name: text for name, text in ({CONFIG_FILE: config_text(config)} | texts).items()}
    try:
        write_texts(written)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); make room or choose another place") from None
    return written


def sha256(text: str) -> str:
    """Returns the SHA-256 of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def config_text(config: dict[str, Any]) -> str:
    """Returns the configuration as JSON, with a digest of itself at the end."""
    digest = sha256(json.dumps(config))
    return json.dumps(config | {"config_sha256": digest}, ensure_ascii=False, indent=2) + "\n"


def tokenizer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the files that decide what `read_folder` returns; some or all may be missing."""
    return [Path(folder) / name for name in (*FILES, TOKENIZER_JSON, ADDED_TOKENS_FILE)]


def read_folder(folder: str | os.PathLike[str]) -> TokenizerDefinition:
    """Reads a tokenizer's folder of any of the layouts. Raises InputError where it is damaged or cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such tokenizer folder; make it with `tokenization train TEXT --vocab-size N"
            f" --output {folder}`"
        )
    config_file, vocab_file, merges_file = (folder / name for name in (CONFIG_FILE, VOCAB_FILE, MERGES_FILE))
    written = read_text(config_file) if config_file.exists() else "{}"
    config = parse_json(config_file, written)
    ours = bool(config.keys() & (SETTINGS | DIGESTS))
    if not ours and (folder / TOKENIZER_JSON).exists():
        from tokenization.formats.tokenizer_json import read_tokenizer_json

        return read_tokenizer_json(folder / TOKENIZER_JSON)
    verified = ours and check_config(config_file, config, written)
    contents = read_bytes(vocab_file), read_bytes(merges_file)  # once: what is checked is what is read
    special_tokens = config.get("special_tokens")
    pattern = config.get("pattern", GPT2_PATTERN)
    if verified:
        from tokenization.formats.own_files import read_own_files

        check_digests(folder, contents, config["files_sha256"])
        if (own := read_own_files(*contents, config["special_tokens"])) is not None:
            return TokenizerDefinition(own[0], None, config["special_tokens"], pattern, own[1])
    merges_text = decode(merges_file, contents[1])
    if not ours:
        check_gpt2_layout(folder, config, merges_text)
    table = parse_json(vocab_file, decode(vocab_file, contents[0]))
    vocab = parse_vocabulary(vocab_file, table, special_tokens or ())
    if special_tokens is None:
        special_tokens = [END_OF_TEXT] if END_OF_TEXT.encode() in vocab.values() else []
    if verified and (merge_ids := parse_merge_ids(merges_file, merges_text, table, special_tokens)) is not None:
        return TokenizerDefinition(vocab, None, special_tokens, pattern, merge_ids)
    merges = parse_merges(merges_file, merges_text)
    if not verified:
        check_merges(vocab_file, merges_file, vocab, merges, special_tokens, CONFIG_FILE)
    return TokenizerDefinition(vocab, merges, special_tokens, pattern)


def has_digests(config: Mapping[str, Any]) -> bool:
    """Returns whether the configuration holds digests; older ones and other programs' do not."""
    return config.keys() >= DIGESTS


def is_verified(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a folder that loads has digests, and so is as it was written."""
    path = Path(folder) / CONFIG_FILE
    return path.exists() and has_digests(read_json(path))


def is_own_config(path: Path) -> bool:
    """Returns whether write_folder may replace the file: it is missing, damaged or ours, not that of transformers."""
    try:
        return not path.exists() or bool(read_json(path).keys() & (SETTINGS | DIGESTS))
    except InputError:
        return True


def check_new_tokenizer(folder: Path, inputs: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Raises InputError where `write_folder` could not write, or would replace what it must not.

    inputs: files and folders that must stay. overwrite: whether a tokenizer in the folder may be replaced; files of
    another program never are.
    """
    check_folder(folder, inputs, FILES)
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        what = "a tokenizer" if VOCAB_FILE in held else f"a file {held[0]}"
        raise InputError(f"{folder}: already holds {what}; name another folder, or replace it with --overwrite")
    if not is_own_config(folder / CONFIG_FILE):
        raise InputError(f"{folder}: holds the {CONFIG_FILE} of another program; name another folder")


def check_config(path: Path, config: dict[str, Any], written: str) -> bool:
    """Checks the settings' types, and the digest of a configuration that has one; returns whether it has.

    written: the configuration as it is in the file. Raises InputError.
    """
    special_tokens = config.get("special_tokens", [])
    if not isinstance(special_tokens, list) or not all(isinstance(token, str) for token in special_tokens):
        raise InputError(f"{path}: special_tokens is {special_tokens!r}; it must be a list of strings")
    check_special_tokens(special_tokens)
    if not isinstance(config.get("pattern", ""), str):
        raise InputError(f"{path}: pattern is {config['pattern']!r}; it must be a string")
    if config.keys() <= SETTINGS:  # an older one
        return False
    covered = {key: value for key, value in config.items() if key != "config_sha256"}
    if covered.keys() != SETTINGS | DIGESTS - {"config_sha256"} or written != config_text(covered):
        raise InputError(f"{path}: has changed since it was written; put it back, or make the tokenizer again")
    return True


def check_digests(folder: Path, contents: tuple[bytes, bytes], wanted: Mapping[str, str]) -> None:
    """Raises InputError where one of the two files is not the one that the configuration was written with."""
    for name, content in zip((VOCAB_FILE, MERGES_FILE), contents, strict=True):
        if hashlib.sha256(content).hexdigest() != wanted[name]:
            raise InputError(
                f"{folder / name}: is not the one that {CONFIG_FILE} was written with (its SHA-256 differs);"
                " put it back, or make the tokenizer again"
            )


def check_gpt2_layout(folder: Path, config: Mapping[str, Any], merges_text: str) -> None:
    """Raises InputError for two files in GPT-2's format that need more than GPT-2's tokenizer does."""
    if merges_text.startswith(NEEDS_CONFIG):
        raise InputError(f"{folder / CONFIG_FILE}: is missing; it holds the pattern and the special tokens")
    added = [token.get("content") for token in (config.get("added_tokens_decoder") or {}).values()]
    reasons = {
        f"{CONFIG_FILE} says {config.get('tokenizer_class')}": config.get("tokenizer_class", "GPT2Tokenizer")
        not in ("GPT2Tokenizer", "GPT2TokenizerFast"),
        f"{CONFIG_FILE} puts a space before every text": config.get("add_prefix_space"),
        f"{CONFIG_FILE} puts a token before every text": config.get("add_bos_token"),
        f"{CONFIG_FILE} adds tokens": set(added) - {END_OF_TEXT},
        f"{ADDED_TOKENS_FILE} adds tokens": (folder / ADDED_TOKENS_FILE).exists(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(
                f"{folder}: is not read as GPT-2's: {reason}; let transformers write its tokenizer.json"
                " (AutoTokenizer.from_pretrained, save_pretrained), and import that"
            )
