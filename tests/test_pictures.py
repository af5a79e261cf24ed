"""Proves that the pictures of docs/ show the tables of their pages, all of them, and that each picture is shown."""

import re
import runpy

import numpy as np
import pytest
from helpers import ROOT

SCRIPT = ROOT / "docs" / "images" / "pictures.py"


@pytest.fixture
def script(monkeypatch):
    module = runpy.run_path(str(SCRIPT))
    drawn = []
    monkeypatch.setitem(module["main"].__globals__, "save", lambda figure, path: drawn.append((path.name, figure)))
    return module, drawn


def test_batch_sizes_and_options_show_every_row(script):
    module, drawn = script
    page = (ROOT / "docs/experiments.md").read_text()
    module["PICTURES"]["batch-sizes"]()
    module["PICTURES"]["options"]()
    (first, batches), (second, options) = drawn
    assert (first, second) == ("batch-sizes.png", "options.png")
    table = page.partition("| windows a batch |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (1|4|16|64) \|.*?\*\*([\d.]+)\*\*", table, flags=re.MULTILINE)
    (line,) = (line for line in batches.axes[0].lines if len(line.get_xdata()) == len(rows) == 4)
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(float(x), float(y)) for x, y in rows]
    table = page.partition("| NAME | SETTINGS |")[2].partition("\n\n")[0]
    names = re.findall(r"^\| ([\w-]+) \|.*\| ([\d.]+) \|$", table, flags=re.MULTILINE)
    shown = [label.get_text() for label in options.axes[0].get_yticklabels()]
    assert len(names) == 13
    assert shown == [name for name, loss in sorted(names, key=lambda row: -float(row[1]))]


def test_every_picture_is_shown_in_a_page(script):
    pages = "".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    pictures = {path.name for path in SCRIPT.parent.iterdir() if path.suffix in (".png", ".svg")}
    assert {f"{name}.png" for name in script[0]["PICTURES"]} <= pictures
    assert set(re.findall(r"\]\((?:docs/)?images/([\w.-]+)\)", pages)) == pictures


def test_the_additions_show_every_row(script):
    module, drawn = script
    page = (ROOT / "docs/experiments.md").read_text()
    module["PICTURES"]["additions"]()
    ((name, figure),) = drawn
    table = page.partition("| addition | setting |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\w ]+) \|.*?\| (2[\d.]+) \| (2[\d.]+) \| (2[\d.]+) \|", table, flags=re.MULTILINE)
    rows.sort(key=lambda row: -float(row[3]))
    assert (name, len(rows)) == ("additions.png", 7)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row[0] for row in rows]
    shown = [list(line.get_xdata()) for line in figure.axes[0].lines[:14]]
    assert shown == [x for _, first, second, mean in rows for x in ([float(first), float(second)], [float(mean)])]


def test_the_hour_shows_every_loss(script):
    module, drawn = script
    page = (ROOT / "docs/experiments.md").read_text()
    module["PICTURES"]["hour"]()
    ((name, figure),) = drawn
    table = page.partition("| width | parameters | steps |")[2].partition("\n\n")[0]
    rows = [
        re.findall(r"(?<=\| )(\d\.\d{3})(?= \|)", row)
        for row in re.findall(r"^\| (?:128|192) .*", table, flags=re.MULTILINE)
    ]
    assert name == "hour.png"
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [list(map(float, row[:7])) for row in rows]
    assert [len(row) for row in rows] == [8, 8]  # the last is in bits per byte


def test_the_rates_show_every_loss_and_every_divergence(script):
    module, drawn = script
    page = (ROOT / "docs/experiments.md").read_text()
    module["PICTURES"]["rates"]()
    ((name, figure),) = drawn
    header, _, *rows = page.partition("| at a rate of |")[2].partition("\n\n")[0].splitlines()
    rates = [float(cell) for cell in header.strip(" |").split("|")]
    cells = [[cell.strip(" *") for cell in row.strip("|").split("|")] for row in rows]
    assert (name, len(rates), len(rows)) == ("rates.png", 10, 5)
    for place, (_, *losses) in enumerate(cells):
        curve, crosses = figure.axes[0].lines[2 * place : 2 * place + 2]
        known = [(rate, float(loss)) for rate, loss in zip(rates, losses, strict=True) if loss[:1].isdigit()]
        assert list(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == known
        assert list(crosses.get_xdata()) == [rate for rate, loss in zip(rates, losses, strict=True) if "div" in loss]


def test_the_sizes_show_both_seeds_and_the_laws(script):
    module, drawn = script
    page = (ROOT / "docs/experiments.md").read_text()
    module["PICTURES"]["sizes"]()
    ((name, figure),) = drawn
    rows = re.findall(
        r"^\| (?:32|48|64|96|128) \| ([\d,]+) \|.*?\*\*([\d.]+)\*\*.*?\| ([\d.]+) \| [\d.]+ \| \d+ \|$",
        page,
        re.MULTILINE,
    )
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert (name, len(rows)) == ("sizes.png", 5)
    assert [[*line.get_xdata(), *line.get_ydata()] for line in points] == [
        [float(n.replace(",", ""))] * 2 + [float(first), float(second)] for n, first, second in rows
    ]
    laws = dict(re.findall(r"^\| (a N\^-b|E \+ a N\^-b) \| [\d.]+ \| ([\d.]+) \|", page, re.MULTILINE))
    for line in figure.axes[0].lines[:2]:
        at_fifth = np.interp(np.log(1_090_432), np.log(line.get_xdata()), line.get_ydata())
        assert at_fifth == pytest.approx(float(laws[line.get_label()]), abs=0.003)
