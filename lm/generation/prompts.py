"""Reads prompts: from a file, one a line or as JSON lines; and what a model reads for one that is empty."""

import json
import sys
from pathlib import Path

from tokenization import END_OF_TEXT, InputError, Tokenizer


def read_prompts(name: str) -> list[str]:
    """Reads a file of prompts, or the standard input for "-"; blank lines are skipped.

    Each line of a .jsonl file is {"prompt": TEXT}, so that a prompt can hold line breaks. Raises InputError for a file
    that cannot be read or has no prompt.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: byte {error.start} is not UTF-8; prompts are UTF-8 text") from None
    except OSError as error:
        raise InputError(f"--prompts {name}: {error.strerror}") from None
    parse = _parse_json if name.endswith(".jsonl") else _parse_line
    prompts = [parse(line, f"{name}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise InputError(f"{name}: has no prompt; write one per line")
    return prompts


def text_to_read(prompt: str, tokenizer: Tokenizer) -> str:
    """Returns the text that the model reads for a prompt: where it is empty, a document begins, after another's end.

    Raises InputError for an empty prompt where the tokenizer has no special token that ends a document.
    """
    if not prompt and tokenizer.end_of_text_id is None:
        raise InputError(f"the prompt is empty, and the tokenizer has no {END_OF_TEXT}, after which a document begins")
    return prompt or END_OF_TEXT


def _parse_line(line: str, place: str) -> str:
    return line.removesuffix("\r")


def _parse_json(line: str, place: str) -> str:
    try:
        prompt: str = json.loads(line)["prompt"]
        prompt.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f'{place}: {line[:60]!r} is not {{"prompt": TEXT}}') from None
    return prompt
