"""The kernels for a test: the size of a text from which they do the work, and an encoder of its own."""

import importlib
import pkgutil
from types import ModuleType

import numpy as np
import pytest

from tokenization import Tokenizer, native

THRESHOLDS = ("LOADED_FROM_BYTES", "CACHED_FROM_BYTES", "KERNELS_FROM_BYTES")
NEVER = 1 << 60


def take_kernels_from(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take texts of num_bytes and more, whether or not they are loaded; 0 is always."""
    for threshold in THRESHOLDS:
        monkeypatch.setattr(f"tokenization.kernels.{threshold}", num_bytes)
    monkeypatch.setattr("tokenization.switching.LOADED_FROM_BYTES", num_bytes)
    for module in ("switching", "training", "encoding", "scaling.work"):
        monkeypatch.setattr(f"tokenization.{module}.KERNELS_FROM_BYTES", num_bytes)


def new_encoder(tokenizer: Tokenizer, dtype: str = "<u2") -> native.Encoder:
    """An encoder with tables of its own."""
    return native.Encoder(
        tokenizer._byte_ids, tokenizer._merge_ids, tokenizer._special_ids, tokenizer.pattern, np.dtype(dtype)
    )


def native_modules() -> list[ModuleType]:
    return [
        importlib.import_module(name) for _, name, _ in pkgutil.iter_modules(native.__path__, f"{native.__name__}.")
    ]
