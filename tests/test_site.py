"""Proves that the site is built from the pages without a warning and holds what they link to, and that its pages and
those of a run are shown by a browser that has no network. Slow; for the site, the extra `docs` must be installed."""

import runpy
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest
from helpers import ROOT

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The ids of a page, and the addresses that it refers to."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id") or "")
        self.references += [attributes[name] for name in ("href", "src") if attributes.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_reference_within_the_site_leads_to_a_file_and_an_id(site):
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 250
    broken = []
    for name, page in pages.items():
        for reference in page.references:
            if ":" in reference or name == "404.html":
                continue
            path, _, anchor = reference.partition("#")
            target = normpath(join(dirname(name), path.partition("?")[0])) if path else name
            if target == ".":  # the language's own front page
                continue
            if not (site / target).is_file() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append((name, reference))
    assert broken == []


def test_pages_of_code_chinese_pages_and_links_to_functions(site):
    assert 'id="lm.model.loss.cross_entropy"' in (site / "code/lm/model/loss.html").read_text(encoding="utf-8")
    journey = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert 'href="code/lm/model/loss.html#lm.model.loss.cross_entropy"' in journey
    assert '<html lang="zh"' in (site / "zh/start.html").read_text(encoding="utf-8")
    assert '<html lang="en"' in (site / "start.html").read_text(encoding="utf-8")


@pytest.fixture
def take(monkeypatch):
    """Runs docs/images/screens.py with some arguments."""
    shutil.which("chromium") or pytest.skip("chromium is not installed")

    def run(*arguments: object) -> None:
        script = ROOT / "docs/images/screens.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")

    return run


def test_screenshots_of_a_run(take, whole_run, tmp_path):
    take(whole_run, "--output", tmp_path, "--only", "serve", "report")
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(pictures) == ["report-desktop.png", "report-phone.png", "serve-desktop.png", "serve-phone.png"]
    sizes = {name: struct.unpack(">II", picture[16:24]) for name, picture in pictures.items()}
    assert sizes["serve-desktop.png"] == (1280, 800)
    assert sizes["report-phone.png"] == (780, 1688)
