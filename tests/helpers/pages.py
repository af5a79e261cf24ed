"""The blocks of code in the pages of the documentation."""

import re

from helpers import ROOT


def blocks(language: str, *pages: str) -> list[str]:
    """Returns the blocks of a language, in the order of the pages."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(*pages: str) -> list[str]:
    """Returns the lines of the blocks of shell commands."""
    return [line for block in blocks("sh", *pages) for line in block.splitlines()]
