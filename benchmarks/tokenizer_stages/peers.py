"""The libraries that are compared, each with the calls that it has, for one vocabulary.

    list     text -> a list of ids             batch    lines -> a list of lists, with one thread
    array    text -> an array of ids           decode   a list of ids -> text

Every library but ours may be missing. quicktok and toktok hold OpenAI's vocabularies in themselves and take no other.
Nothing is imported before it is used, so that a process can measure an import.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

Calls = dict[str, Callable[..., Any]]
OURS = "tokenization"
ABOUT = "vocabularies.json"


@dataclass
class Vocabulary:
    """A vocabulary in the forms that the libraries read: NAME/ is ours, NAME.json Hugging Face's, NAME.tiktoken."""

    name: str
    pattern: str
    special: dict[str, int]
    published: bool  # by OpenAI
    place: Path

    @classmethod
    def read(cls, place: Path) -> "dict[str, Vocabulary]":
        """Returns those that `write_vocabularies` has written into a folder, by name."""
        about = json.loads((place / ABOUT).read_text())
        return {name: cls(name=name, place=place, **fields) for name, fields in about.items()}

    @property
    def folder(self) -> Path:
        return self.place / self.name

    @property
    def json(self) -> Path:
        return self.place / f"{self.name}.json"

    @property
    def tiktoken(self) -> Path:
        return self.place / f"{self.name}.tiktoken"


def ours(vocabulary: Vocabulary) -> Calls:
    from tokenization import Tokenizer

    tokenizer = Tokenizer.load(vocabulary.folder)
    return {
        "list": tokenizer.encode,
        "array": tokenizer.encode_to_numpy,
        "batch": lambda lines: tokenizer.encode_batch(lines, num_threads=1),
        "stream": lambda lines: list(tokenizer.encode_iterable(lines)),
        "decode": tokenizer.decode,
    }


def tiktoken(vocabulary: Vocabulary) -> Calls:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    encoding = tiktoken.Encoding(
        vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=load_tiktoken_bpe(str(vocabulary.tiktoken)),
        special_tokens=vocabulary.special,
    )
    return {
        "list": encoding.encode_ordinary,
        "array": encoding.encode_to_numpy,
        "batch": lambda lines: encoding.encode_ordinary_batch(lines, num_threads=1),
        "decode": encoding.decode,
    }


def tokenizers(vocabulary: Vocabulary) -> Calls:
    from tokenizers import Tokenizer as Theirs

    theirs = Theirs.from_file(str(vocabulary.json))
    return {
        "list": lambda text: theirs.encode(text).ids,
        "batch": lambda lines: [encoding.ids for encoding in theirs.encode_batch_fast(lines)],
        "decode": lambda ids: theirs.decode(ids, skip_special_tokens=False),
    }


def gigatoken(vocabulary: Vocabulary) -> Calls:
    theirs = importlib.import_module("gigatoken").Tokenizer.from_tiktoken(
        str(vocabulary.tiktoken), vocabulary.name, vocabulary.special
    )
    return {
        "list": lambda text: theirs.encode(text).tolist(),
        "array": theirs.encode,
        "batch": lambda lines: theirs.encode_batch_list(lines, parallel=False),
        "decode": lambda ids: theirs.decode(ids).decode(errors="replace"),
    }


def fastokens(vocabulary: Vocabulary) -> Calls:
    import numpy as np

    theirs = importlib.import_module("fastokens").Tokenizer.from_tiktoken(
        str(vocabulary.tiktoken), pattern=vocabulary.pattern, special_tokens=vocabulary.special
    )
    return {
        "list": lambda text: theirs.encode(text).ids,
        "array": lambda text: np.frombuffer(theirs.encode_batch_flat([text])[0], np.uint32),
        "batch": lambda lines: [encoding.ids for encoding in theirs.encode_batch(lines)],
        "decode": theirs.decode,
    }


def quicktok(vocabulary: Vocabulary) -> Calls:
    theirs = importlib.import_module("quicktok").Tokenizer(f"{vocabulary.name}_base", "")
    return {"list": theirs.encode_ordinary, "decode": theirs.decode}


def toktok(vocabulary: Vocabulary) -> Calls:
    theirs = importlib.import_module("toktok")._Tokenizer(f"{vocabulary.name}_base", "")
    return {"list": theirs.encode_ordinary, "array": theirs.encode_to_numpy, "decode": theirs.decode}


LOAD: dict[str, Callable[[Vocabulary], Calls]] = {
    OURS: ours,
    "tiktoken": tiktoken,
    "gigatoken": gigatoken,
    "fastokens": fastokens,
    "quicktok": quicktok,
    "toktok": toktok,
    "tokenizers": tokenizers,
}
BUNDLED = {"quicktok": ("cl100k", "o200k"), "toktok": ("cl100k", "o200k")}  # the vocabularies that they hold
TRAINERS = (OURS, "gigabpe", "gigatoken", "tokenizers")


def installed(names: list[str] | None) -> dict[str, str]:
    """Returns the version of each library that is there, of those that are wanted; ours always."""
    wanted = [name for name in dict.fromkeys([*LOAD, *TRAINERS]) if names is None or name in (OURS, *names)]
    distributions = packages_distributions()
    return {
        name: version(distributions[name][0]) if name in distributions else "this checkout"
        for name in wanted
        if importlib.util.find_spec(name)
    }


def takes(name: str, vocabulary: Vocabulary) -> bool:
    """Returns whether the library can be given the vocabulary."""
    return name not in BUNDLED or (vocabulary.published and vocabulary.name in BUNDLED[name])
