"""Proves that the machine code of a kernel is cached only where it is of the sources as they are."""

import importlib.util
import os
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from lm.machine import kernels

KERNEL = """
from lm.machine.kernels import FIELDS, compiled
from tokenization.native.instructions import load64, store64

@compiled(__file__)
def double(task: int) -> None:
    store64(load64(task + FIELDS), 2 * load64(load64(task + FIELDS)))
"""


def load_module(path: Path):
    spec = importlib.util.spec_from_file_location("doubling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_has_changed_since_it_was_imported_is_not_cached(tmp_path, monkeypatch):
    cache, source = tmp_path / "cache", tmp_path / "doubling.py"
    cache.mkdir()
    monkeypatch.setattr(kernels, "cache_folder", lambda: str(cache))
    source.write_text(KERNEL)
    first = load_module(source).double
    (path,) = {first._cached()}
    assert path is not None
    assert path.parent == cache
    source.write_text(KERNEL.replace("2 *", "3 *"))
    os.utime(source, (1e9, 1e9))
    assert first._cached() is None
    kernels._digest_at_import.cache_clear()
    second = load_module(source).double
    assert second._cached() not in (None, path)
    source.write_text(KERNEL)
    assert second._cached() is None
    assert first._cached() == path
