"""The version of this distribution, for both commands."""

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def own_version() -> str:
    """Returns the version of the installed distribution, or of pyproject.toml in a clone that is not installed."""
    try:
        return str(version("text-to-lm"))
    except PackageNotFoundError:
        project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        return str(re.findall(r'^version = "(.*)"$', project, flags=re.MULTILINE)[0])
