"""Where this package keeps what it can make again: compiled kernels, and the tables of large tokenizers."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "TOKENIZATION_CACHE_DIR"


def places(sources: Path) -> list[Path]:
    """Returns where a cache may lie, the best place first: beside the sources, or in the user's cache.

    sources: the folder of those that make what is kept.
    """
    if told := os.environ.get(CACHE_VARIABLE):
        return [Path(told)]
    home = Path.home()
    users = {"darwin": home / "Library/Caches", "win32": home / "AppData/Local"}.get(sys.platform, home / ".cache")
    return [sources / "__pycache__", Path(os.environ.get("XDG_CACHE_HOME") or users) / "tokenization"]
