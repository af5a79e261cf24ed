"""Proves that the pages of the documentation hold together: every link, anchor and picture leads somewhere, in the
repository and in the site (docs/site.py); functions that a page names exist; each block of commands is run by a test,
or says why it is not."""

import ast
import importlib.util
import re
import shlex

import pytest
import yaml
from helpers import ROOT
from helpers.pages import RUN_PAGES, UNDERSTOOD_PAGES, check_understood, read_blocks

SPEC = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site.py")
assert SPEC is not None
assert SPEC.loader is not None
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("data/*.md"))
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
NAVIGATION = [
    page
    for item in yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    for page in site.pages_of(item)
]

# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for _, target in site.links(TEXTS[page]):
        path, anchor = site.leads_to(page, target), target.partition("#")[2]
        assert (ROOT / path).exists(), f"{page}: {target}"
        if anchor:
            assert anchor in site.anchors(TEXTS[path]), f"{page}: {target}"


def definitions(path: str) -> set[str]:
    """Returns the names that a module defines, its methods as Class.method."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_functions_that_a_link_names_are_in_the_file_it_leads_to():
    named = [
        (page, text.strip("`"), site.leads_to(page, target))
        for page in PAGES
        for text, target in site.links(TEXTS[page])
        if target.endswith(".py") and re.fullmatch(r"`[\w.]+`", text) and "/" not in text and not text.endswith(".py`")
    ]
    assert len(named) > 40
    assert [where for where in named if where[1] not in definitions(where[2])] == []


def test_functions_that_a_page_places_in_a_file_are_there():
    """As in "`scan` in `tokenization/tokens/token_format.py`"."""
    named = [
        (page, *found)
        for page in PAGES
        if page.startswith("docs/")
        for found in re.findall(r"`([\w.]+)` in\s+`((?:lm|tokenization)/[\w/]+\.py)`", TEXTS[page])
    ]
    assert len(named) > 20
    assert [where for where in named if where[1] not in definitions(where[2])] == []


def test_files_that_a_page_names_are_there():
    path = r"(?<![\w/.])(?:lm|tokenization|configs|benchmarks|examples|tests|docs)/[\w/.-]+\.(?:py|yaml|md|ipynb)\b"
    named = {(page, found) for page in PAGES for found in re.findall(path, TEXTS[page])}
    assert len(named) > 100
    theirs = {"tests/adapters.py"}  # the course's
    assert sorted(where for where in named if where[1] not in theirs and not (ROOT / where[1]).is_file()) == []


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    outside = {"CLAUDE.md", "data/README.md"}
    english = {site.place(page) for page in PAGES if not page.startswith("docs/zh/") and page not in outside}
    assert set(NAVIGATION) == english - {"zh/index.md"}
    assert len(NAVIGATION) == len(set(NAVIGATION))


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "markdown", "expected"),
    [
        ("README.md", "[a](docs/start.md#the-demo)", "[a](start.md#the-demo)"),
        ("docs/start.md", "[a](../README.md)", "[a](index.md)"),
        ("docs/zh/start.md", "[a](../../README.md), ![b](../images/x.png)", "[a](../index.md), ![b](../images/x.png)"),
        ("docs/a.md", "[c](../configs/demo.yaml)", "[c](files/configs/demo.yaml)"),
        ("docs/a.md", "[`f`](../lm/model/loss.py)", "[`f`](code/lm/model/loss.md#lm.model.loss.f)"),
        ("docs/a.md", "[the file](../lm/model/loss.py)", "[the file](code/lm/model/loss.md)"),
        ("docs/a.md", "`lm/model/loss.py` `lm/none.py`", "[`lm/model/loss.py`](code/lm/model/loss.md) `lm/none.py`"),
        ("docs/a.md", "[a](https://example.org) [b](#c)", "[a](https://example.org) [b](#c)"),
        ("docs/a.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)  # fmt: skip
def test_links_of_the_site(page, markdown, expected):
    assert site.relink(markdown, page) == expected


@pytest.mark.parametrize("page", PAGES)
def test_a_list_has_an_empty_line_before_it(page):
    """The site takes it for a paragraph otherwise; GitHub does not."""
    text = "".join(part for is_code, part in site.split_code(TEXTS[page]) if not is_code)
    assert re.findall(r"^(?![-*] |\d+[.] |  )\S.*\n(?:[-*]|1[.]) .*", text, re.MULTILINE) == []


def test_every_module_has_a_page_which_names_what_is_in_a_folder():
    modules = site.modules()
    assert sorted(modules) == sorted(
        path.relative_to(ROOT).as_posix()
        for room in ("lm", "tokenization")
        for path in (ROOT / room).rglob("*.py")
        if "starter" not in path.parts
    )
    page = site.code_page("lm/model/__init__.py")
    assert "::: lm.model\n" in page
    assert "| [attention.py](model/attention.md) |" in page
    assert "| [model](lm/model.md) |" in site.code_page("lm/__init__.py")


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://unpkg.com/x"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ('<img alt="a" src=http://example.org/a.png>', True),
        ('<link rel="canonical" href="https://example.org/">', False),
        ('<a href="https://example.org/">read</a> <script src="assets/a.js"></script>', False),
        ("@font-face { src: url(https://fonts.example/a.woff2) }", True),
        ("a { background: url(images/a.png) }", False),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_found(html, loads):
    assert bool(site.LOADED.search(html)) == loads


# --- blocks of commands ----------------------------------------------------------------------------------------------


def test_every_block_of_commands_is_run_or_says_why_not():
    """A translation shows the commands of its original."""
    blocks = {page: [block for block in read_blocks(page) if block.language == "sh"] for page in PAGES}
    run = {line for page in RUN_PAGES for block in blocks[page] if not block.why for line in block.lines()}
    understood = {line for page in UNDERSTOOD_PAGES for block in blocks[page] for line in block.lines()}
    for page in sorted(set(PAGES) - {"CONTRIBUTING.md"}):
        for block in blocks[page]:
            assert block.why or run | understood >= {*block.lines()}, f"{page}: neither run nor marked:\n{block.code}"


def test_make_has_the_targets_that_pages_name():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in TEXTS.values() for name in re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)}
    assert len(named) > 10
    assert named <= targets


MARKED = [line for page in PAGES for block in read_blocks(page) if block.why for line in block.lines()]


@pytest.mark.parametrize("command", dict.fromkeys(MARKED))
def test_commands_that_are_not_run_are_understood(command, monkeypatch):
    """By the parsers of the programs, unless a word of the command stands for others, such as NAME or ..."""
    words = shlex.split(re.sub(r" > \S+$", "", re.sub(r"""^[A-Z_]+=("[^"]*"|\S+) """, "", command)))
    if words[0] in ("lm", "tokenization", "python") and not any(re.search(r"[.]{3}|[$*]|\b[A-Z]+$", w) for w in words):
        check_understood([re.sub(r"^checkpoints/.*/config.yaml$", "configs/demo.yaml", w) for w in words], monkeypatch)
