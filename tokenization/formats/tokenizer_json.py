"""Reading Hugging Face's tokenizer.json, strictly: whatever would give other ids than byte-level BPE is refused.

    added_tokens     the special tokens                    model            BPE: vocab and merges
    pre_tokenizer    ByteLevel, or a Split before it       post_processor   one that adds no token
    decoder          ByteLevel

Every other key, whoever added it to the format and when, must be null, false, 0 or empty: it requests nothing then.
"""

import json
import os
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

from tokenization.errors import InputError
from tokenization.formats.contents import read_json
from tokenization.formats.gpt2 import (
    TokenizerDefinition,
    merge_ids_by_text,
    parse_vocabulary,
    refuse_repeated_merges,
    text_to_bytes,
)
from tokenization.formats.oniguruma import from_oniguruma, to_oniguruma
from tokenization.pretokenization import GPT2_PATTERN, PATTERNS

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Published patterns that match all of any text; the second is Qwen2's.
COMPLETE = {
    LLAMA3_PATTERN,
    LLAMA3_PATTERN.replace("{1,3}", ""),
    *(to_oniguruma(ours, "") for ours in PATTERNS.values()),
}

# What the best known of the refused keys do.
MEANINGS = {
    "truncation": "it truncates long texts",
    "padding": "it pads short texts",
    "normalizer": "it normalizes the text",
    "dropout": "it skips merges at random",
    "continuing_subword_prefix": "its tokens show whether they continue a word",
    "end_of_word_suffix": "its tokens show whether they end a word",
    "ignore_merges": "it looks whole words up before it merges",
    "byte_fallback": "it has a second set of bytes",
    "add_prefix_space": "it puts a space before every text",
    "invert": "it splits by what does not match",
    "lstrip": "its added tokens absorb white space",
    "rstrip": "its added tokens absorb white space",
    "single_word": "its added tokens are whole words only",
}


def read_tokenizer_json(path: str | os.PathLike[str]) -> TokenizerDefinition:
    """Reads a tokenizer.json. Raises InputError for one that is damaged, or does more than byte-level BPE."""
    content = read_json(path)
    try:
        return parse_tokenizer_json(path, content)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: is not the tokenizer.json of a byte-level BPE ({error!r})") from None


def parse_tokenizer_json(path: str | os.PathLike[str], content: dict[str, Any]) -> TokenizerDefinition:
    """Converts the content of a tokenizer.json. Raises InputError, or another error where keys or types are wrong."""
    model, added = content["model"], content.get("added_tokens") or []
    known = ("version", "added_tokens", "pre_tokenizer", "post_processor", "decoder", "model")
    refuse_other_keys(path, "", content, known)
    if model.get("type", "BPE") != "BPE":  # GPT-2's own file has no type
        raise InputError(f"{path}: cannot be imported: its model is {model['type']!r}, not BPE")
    # Every byte has a token, so that none is unknown, and unk_token and fuse_unk have no effect.
    refuse_other_keys(path, "model.", model, ("type", "vocab", "merges", "unk_token", "fuse_unk"))
    for number, token in enumerate(added):
        refuse_other_keys(path, f"added_tokens.{number}.", token, ("id", "content", "special", "normalized"))
    check_order(path, added)
    check_steps(path, content)
    check_ids_of_added(path, model["vocab"], added)
    special_tokens = {token["content"]: token["id"] for token in added}
    for text, token_id in special_tokens.items():
        if model["vocab"].get(text, token_id) != token_id:
            raise InputError(f"{path}: {text!r} has the ids {token_id} and {model['vocab'][text]}; it is damaged")
    table = model["vocab"] | special_tokens
    vocab = parse_vocabulary(path, table, list(special_tokens))
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    lefts, rights = [left for left, _ in pairs], [right for _, right in pairs]
    refuse_repeated_merges(path, lefts, rights)
    merge_ids, merges = merge_ids_by_text(lefts, rights, table, list(special_tokens)), None
    if merge_ids is None:
        merges = list(zip(map(text_to_bytes, lefts), map(text_to_bytes, rights), strict=True))
    pattern = split_pattern(path, content["pre_tokenizer"])
    return TokenizerDefinition(vocab, merges, list(special_tokens), pattern, merge_ids)


def refuse_other_keys(
    path: str | os.PathLike[str], where: str, content: Mapping[str, Any], known: Collection[str]
) -> None:
    """Raises InputError for a key that is not known and requests something. where: the keys that lead there."""
    for key, value in content.items():
        if key not in known and value:
            meaning = f" ({MEANINGS[key]})" if key in MEANINGS else ", which is not supported here"
            shown = json.dumps(value, ensure_ascii=False)
            raise InputError(f"{path}: cannot be imported: {where}{key} is {shown[:60]}{meaning}")


def check_ids_of_added(path: str | os.PathLike[str], vocab: Mapping[str, int], added: list[dict[str, Any]]) -> None:
    """Raises InputError for an added token to which Hugging Face gives another id than its own.

    One that the vocabulary lacks becomes the next after all tokens, whatever id it has.
    """
    ids: dict[str, int] = {}
    for token in added:
        text, following = token["content"], max(len(vocab), max(ids.values(), default=-1) + 1)
        ids[text] = vocab.get(text, ids.get(text, following))
        if text not in vocab and ids[text] != token["id"]:
            raise InputError(
                f"{path}: cannot be imported: the added token {text!r} has the id {token['id']}, and Hugging Face"
                f" would give it {ids[text]}"
            )


MAX_PAIRS = 1_000_000  # to compare; published files have some hundreds


def check_order(path: str | os.PathLike[str], added: list[dict[str, Any]]) -> None:
    """Raises InputError for added tokens that overlap where only one of them is `normalized`.

    Hugging Face looks for that one later, although it may be the longer one.
    """
    early = [token["content"] for token in added if not token.get("normalized")]
    late = [token["content"] for token in added if token.get("normalized")]
    if len(early) * len(late) > MAX_PAIRS:
        raise InputError(f"{path}: cannot be imported: some of its {len(added)} added tokens are normalized")
    for one, other in product(early, late):
        if overlap(one, other):
            raise InputError(
                f"{path}: cannot be imported: the added tokens {one!r} and {other!r} overlap, and only the latter is"
                " normalized"
            )


def overlap(one: str, other: str) -> bool:
    """Returns whether the two tokens can occur in a text with a character in common."""
    ends = range(1, min(len(one), len(other)))
    return one in other or other in one or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in ends)


def steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Returns the steps of a Sequence, which lie under the key; anything else is a single step."""
    if component is None:
        return []
    return component[key] if component["type"] == "Sequence" else [component]


BYTE_LEVEL_KEYS = ("type", "trim_offsets", "use_regex")


def check_steps(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Raises InputError for a post-processor that adds tokens, and a decoder that does not return the bytes."""
    for step in steps(content.get("post_processor"), "processors"):
        if step["type"] == "TemplateProcessing" and [list(item) for item in step["single"]] == [["Sequence"]]:
            continue
        if step["type"] != "ByteLevel":
            raise InputError(
                f"{path}: cannot be imported: post_processor is {step['type']}, which adds tokens to every text"
            )
        refuse_other_keys(path, "post_processor.", step, (*BYTE_LEVEL_KEYS, "add_prefix_space"))
    for step in steps(content.get("decoder"), "decoders"):
        if step["type"] != "ByteLevel":
            raise InputError(f"{path}: cannot be imported: decoder is {step['type']}, which is not supported here")
        refuse_other_keys(path, "decoder.", step, (*BYTE_LEVEL_KEYS, "add_prefix_space"))


def split_pattern(path: str | os.PathLike[str], pre_tokenizer: dict[str, Any]) -> str:
    """Returns the pattern of a ByteLevel pre-tokenizer, or of a Split before it. Raises InputError for others."""
    *splits, last = steps(pre_tokenizer, "pretokenizers")
    if last["type"] == "ByteLevel" and len(splits) == (not last.get("use_regex", True)):
        refuse_other_keys(path, "pre_tokenizer.", last, BYTE_LEVEL_KEYS)
        if not splits:
            return GPT2_PATTERN
        (split,) = splits
        if split["type"] == "Split" and list(split["pattern"]) == ["Regex"]:
            pattern = split["pattern"]["Regex"]
            if pattern in COMPLETE and (split["behavior"], split.get("invert")) == ("Removed", True):
                split = split | {"behavior": "Isolated", "invert": False}  # as in OLMo 2; it drops what lies between
            if split["behavior"] != "Isolated":
                raise InputError(f"{path}: cannot be imported: Split.behavior is {split['behavior']}, not Isolated")
            refuse_other_keys(path, "pre_tokenizer.", split, ("type", "pattern", "behavior"))
            return from_oniguruma(pattern, path)
    raise InputError(f"{path}: cannot be imported: its pre-tokenizer is not a split by a pattern, then ByteLevel")
