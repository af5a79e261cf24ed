"""Compares a page with its translation: what must be equal in both, whatever the words.

A page is cut into blocks: headings, paragraphs, items of lists, cells of tables, pictures, quotations, lines of code.
Two pages agree if their blocks are of the same kinds in the same order, and each pair of blocks has the same figures,
spans of code and links. Quotations and code are equal, but for comments. Figures are compared by value: 1.1 million,
1.1M and 110 万 are one figure, 27 s and 27 秒 another. Numbers written as words are not seen.
"""

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import zip_longest
from pathlib import PurePosixPath
from posixpath import normpath
from typing import NamedTuple

TRANSLATED = "docs/zh/"  # holds the pages of docs/ under the same names

MARKS = {"heading": r"#+ ", "item": r"[-*] |\d+\. ", "quotation": r"> ?", "picture": r"!(?=\[)"}
MULTIPLIERS = {"1e3": "k|thousand", "1e4": "万", "1e6": "M|million", "1e8": "亿", "1e9": "G|billion"}
UNITS = {
    "%": "%",
    "s": "s|seconds?|秒",
    "min": "min|minutes?|分钟|分",
    "h": "h|hours?|小时",
    "day": "days?|天",
    "byte": "bytes?|字节",
} | {unit: unit for unit in ("ms", "nats", "FLOPs", "TFLOP/s", "kB", "MB", "GB", "TB", "MiB", "GiB", "MB/s", "GB/s")}

# A number, with its multiplier and unit; or a name with a digit in it, such as H100, uint16 or 92d63d4.
FIGURE = re.compile(
    r"(?<![\w.])(?P<value>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)*(?:e[+-]?\d+)?)"
    rf"(?:\ ?(?P<multiplier>{'|'.join(MULTIPLIERS.values())})(?!\w))?"
    rf"(?:\ ?(?:CPU\ )?(?P<unit>{'|'.join(sorted(UNITS.values(), key=len, reverse=True))})(?![\w/]))?(?!\w)"
    r"|(?P<name>[A-Za-z\d][\w+-]*\d\w*(?:\.\d+)*|\d\w+)",
    re.ASCII,
)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTION = re.compile(r'\]\([^)\s]+\),\s"([^"]+)"')  # of the page that is linked


class Block(NamedTuple):
    """A block of a page: its first line (from 1), its kind and its text on one line."""

    line: int
    kind: str
    text: str


def meaning(word: str, spellings: dict[str, str]) -> str:
    return next(name for name, pattern in spellings.items() if re.fullmatch(pattern, word))


def figures(text: str) -> Iterator[str]:
    """Yields the figures of a text without code, in one spelling each: value and unit, or a name."""
    for match in FIGURE.finditer(text):
        if match["name"]:
            yield match["name"]
            continue
        value = match["value"].replace(",", "")
        if match["multiplier"]:
            value = f"{(Decimal(value) * Decimal(meaning(match['multiplier'], MULTIPLIERS))).normalize():f}"
        yield f"{value} {meaning(match['unit'], UNITS)}" if match["unit"] else value


def kind_and_text(line: str) -> tuple[str, str]:
    """Returns what kind of block a line begins, with its mark, and what follows the mark."""
    for kind, mark in MARKS.items():
        if match := re.match(mark, line):
            return f"{kind} {match[0].strip()}", line[match.end() :]
    return "paragraph", line


def blocks(text: str) -> list[Block]:
    """Returns the blocks of a page."""
    found: list[Block] = []
    fence, fresh = "", True
    for number, line in enumerate(re.sub('<a id="[^"]+"></a>', "", text).splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else f"code {line[3:]}"
            found.append(Block(number, "fence", line))
            fresh = True
        elif fence:
            found.append(Block(number, fence, re.sub(r"(^|\s+)#\s.*", "", line)))
        elif line.startswith("<!--"):
            continue
        elif line.startswith("|"):
            cells = re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "¦"), line).strip("|").split("|")
            if not re.fullmatch(r"[|\s:-]+", line):
                found += [Block(number, f"cell {n}", cell.strip()) for n, cell in enumerate(cells, 1)]
            fresh = True
        elif not line.strip():
            fresh = True
        else:
            kind, rest = kind_and_text(line.strip())
            if fresh or kind.startswith("heading") or kind[:4] == found[-1].kind[:4] == "item":
                found.append(Block(number, kind, rest))
            else:
                more = rest if kind.startswith("quotation") else line.strip()
                found[-1] = found[-1]._replace(text=f"{found[-1].text} {more}")
            fresh = kind.startswith("heading")
    return found


def target(link: str, page: str) -> str:
    """Returns a link as a path from the root, that of a translated page as that of its original."""
    if "://" in link or link.startswith("#"):
        return link
    path = normpath(str(PurePosixPath(page).parent / link))
    return path.replace(TRANSLATED, "docs/").replace(".zh.md", ".md")


def contents(block: Block, page: str) -> Iterator[tuple[str, str]]:
    """Yields what a translation must keep of a block, each with its sort."""
    if block.kind.startswith(("code", "fence", "quotation")):
        yield "line", block.text
        return
    text = re.sub(r"\s+", " ", block.text)
    yield from (("code", code.replace("¦", "|")) for code in CODE.findall(text))
    text = CODE.sub("`", text)
    yield from (("link", target(link, page)) for link in LINK.findall(text))
    yield from (("figure", figure) for figure in figures(LINK.sub("]", text)))


def differences(page: str, text: str, other: str, translation: str) -> Iterator[str]:
    """Yields a line for each difference, with both places; ends at the first pair of blocks of different kinds.

    Args:
        page: The path of the original, from the root.
        text: Its text.
        other: The path of the translation.
        translation: Its text.
    """
    for ours, theirs in zip_longest(blocks(text), blocks(translation)):
        if ours is None or theirs is None or ours.kind != theirs.kind:
            places = [
                f"{name}:{block.line} has a {block.kind}" if block else f"{name} ends"
                for name, block in ((page, ours), (other, theirs))
            ]
            yield f"{places[0]} where {places[1]}"
            return
        first, second = Counter(contents(ours, page)), Counter(contents(theirs, other))
        here, there = f"{page}:{ours.line}", f"{other}:{theirs.line}"
        yield from (f"{here} has the {sort} {what!r}, {there} has not" for sort, what in (first - second).elements())
        yield from (f"{there} has the {sort} {what!r}, {here} has not" for sort, what in (second - first).elements())
        for section in SECTION.findall(ours.text):
            if section not in theirs.text:
                yield f"{here} names the section {section!r}, {there} does not"
