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
    beside = sources / "__pycache__"
    if users := os.environ.get("XDG_CACHE_HOME"):
        return [beside, Path(users) / "tokenization"]
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return [beside]
    user = {"darwin": home / "Library/Caches", "win32": home / "AppData/Local"}.get(sys.platform, home / ".cache")
    return [beside, user / "tokenization"]
