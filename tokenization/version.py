"""The version of this distribution, for both commands."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def own_version() -> str:
    """Returns the installed distribution's version, or in a clone that is not installed, the one in pyproject.toml."""
    try:
        return str(version("text-to-lm"))
    except PackageNotFoundError:
        project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        return re.findall(r'^version = "(.*)"$', project, flags=re.MULTILINE)[0]
