"""The version of this distribution, for both commands."""

import re
from importlib.metadata import version
from pathlib import Path


def own_version() -> str:
    """Returns the version in a clone's pyproject.toml, or else that of the installed distribution.

    A clone comes first: what pip recorded of an editable install is as old as the install.
    """
    project = Path(__file__).parent.parent / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    if 'name = "text-to-lm"' not in text:  # beside an installed package it would be another one's
        return version("text-to-lm")
    return str(re.findall(r'^version = "(.*)"$', text, flags=re.MULTILINE)[0])
