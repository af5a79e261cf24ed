"""Reads a tokenizer's files as bytes, text or JSON; whatever is wrong with one is reported in one line."""

import json
import os
from pathlib import Path
from typing import Any

from tokenization.errors import InputError


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a tokenizer's file as UTF-8. Raises InputError where that fails."""
    return decode(path, read_bytes(path))


def decode(path: str | os.PathLike[str], content: bytes) -> str:
    """Returns the content of a tokenizer's file as text. Raises InputError where it is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; it is not a tokenizer's file") from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads a tokenizer's file. Raises InputError where that fails."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading it may never end
            raise InputError(f"{path}: cannot be read (it is a pipe or a device); copy it to a file")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); train a tokenizer or name its folder") from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a tokenizer's JSON file; see `parse_json`."""
    return parse_json(path, read_text(path))


def parse_json(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """Converts the text of a tokenizer's JSON file. Raises InputError for anything but an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON ({error.msg} in line {error.lineno}); it is damaged: make it again, or download it again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of brackets
        raise InputError(f"{path}: cannot be read ({error}); it is not a tokenizer's file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, not a JSON object; it is not a tokenizer's file")
    return value
