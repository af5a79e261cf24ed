"""The version of this distribution, for both commands."""

import re
from importlib.metadata import version
from pathlib import Path


def own_version() -> str:
    """Returns the version in a clone's pyproject.toml, or else that of the installed distribution.

    A clone comes first: what pip recorded of an editable install is as old as the install.
    """
    project = Path(__file__).parent.parent / "pyproject.toml"
    if not project.is_file():
        return version("text-to-lm")
    return str(re.findall(r'^version = "(.*)"$', project.read_text(encoding="utf-8"), flags=re.MULTILINE)[0])
