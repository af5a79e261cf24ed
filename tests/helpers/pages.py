"""The pages of the documentation: their blocks of code, and which of these are run."""

import re
from dataclasses import dataclass

from helpers import ROOT

RUN_PAGES = ("docs/walkthrough.md", "README.md", "docs/start.md", "docs/your-text.md")  # in the order of their running
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page. why: the reason why it is not run, if a comment above it gives one."""

    language: str
    code: str
    why: str | None


def read_blocks(page: str) -> list[Block]:
    """Returns all blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(found["language"], found["code"], found["why"]) for found in BLOCK.finditer(text)]


def blocks(language: str, *pages: str) -> list[str]:
    """Returns the blocks of a language that are run, in the order of the pages."""
    found = [block for page in pages for block in read_blocks(page)]
    return [block.code for block in found if block.language == language and block.why is None]


def commands(*pages: str) -> list[str]:
    """Returns the lines of the blocks of shell commands that are run."""
    return [line for block in blocks("sh", *pages) for line in block.splitlines()]
