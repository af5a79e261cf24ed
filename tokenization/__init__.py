"""Byte-level BPE from scratch: learn a vocabulary, turn text into token ids, and token ids into text.

Names are imported when they are first used, so that `import tokenization` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenization.errors import InputError
    from tokenization.pretokenization import END_OF_TEXT, GPT2_PATTERN
    from tokenization.tokenizer import Tokenizer
    from tokenization.tokens.token_file import TokenFile
    from tokenization.training import TrainingReport, train_bpe

__all__ = ["END_OF_TEXT", "GPT2_PATTERN", "InputError", "TokenFile", "Tokenizer", "TrainingReport", "train_bpe"]

_MODULES = {
    "END_OF_TEXT": "pretokenization",
    "GPT2_PATTERN": "pretokenization",
    "InputError": "errors",
    "TokenFile": "tokens.token_file",
    "Tokenizer": "tokenizer",
    "TrainingReport": "training",
    "train_bpe": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
