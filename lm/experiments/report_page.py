"""Writes a report as one HTML page that needs no network, no script and no other file.

It follows the reader's light or dark mode, and fits a phone. Whatever comes from a run (samples, names, settings) is
escaped, so that no browser reads it as HTML.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from lm.experiments.figures import draw_curves
from lm.experiments.report import Run, differences, origin, results
from tokenization.plots import COLOURS

SAMPLE = "sample/text_summary"
FEW = 4  # runs that the title names one by one
GENERATOR = '<meta name="generator" content="lm report">'
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'
ON_DARK = ("#6aaee8", "#f08a4b", "#62c486", "#c08ae8", "#ef6f7f", "#b8a593", "#e989c4", "#b5b5b5", "#c9c94a", "#4fc4d4")
STYLE = """
:root { --paper: #fbfaf7; --ink: #26241f; --faint: #6f6c64; --line: #ddd9cf; --inset: #f3f1ea; color-scheme: light dark;
  %s }
@media (prefers-color-scheme: dark) {
  :root { --paper: #191a1c; --ink: #e8e6e1; --faint: #98958d; --line: #37383b; --inset: #222326;
    %s }
}
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1240px;
  margin: 0 auto; padding: 1.5em clamp(1em, 4vw, 2em) 4em }
h1 { font-size: 1.5em; margin: .3em 0; overflow-wrap: anywhere }
h2 { font-size: 1.15em; margin: 2em 0 .6em; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400 }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
thead th { vertical-align: bottom; color: var(--faint) }
.one th { color: var(--faint); vertical-align: top }
.one td { white-space: normal; text-align: left; overflow-wrap: anywhere }
.scroll { overflow-x: auto }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21em, 100%%), 1fr)); gap: 1.5em }
figure { margin: 0 }
figcaption { font-weight: 600 }
svg { width: 100%%; height: auto }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%%; margin-right: .5em }
.keys > span { margin-right: 1.5em; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--inset); border-radius: 6px; padding: .8em 1em;
  font: 16px/1.6 Georgia, serif }
pre.code { font: 12px/1.45 monospace }
summary { cursor: pointer; overflow-wrap: anywhere }
.note { color: var(--faint); font-size: .88em }
""" % tuple(  # noqa: UP031  (CSS is full of braces)
    " ".join(f"--curve-{place}: {colour};" for place, colour in enumerate(colours)) for colours in (COLOURS, ON_DARK)
)


def page(runs: list[Run]) -> str:
    """Returns the whole report as HTML."""
    names = f"{len(runs)} runs" if len(runs) > FEW else ", ".join(run.name for run in runs)
    parts = [f"<h1>{escape(names)}</h1>", "<h2>Results</h2>", *table(runs, results(runs))]
    parts += [f'<p class="note">{escape(line)}</p>' for run in runs for line in run.curves.damage]
    parts += ["<h2>Date, machine and code</h2>", *table(runs, origin(runs))]
    if len(runs) > 1:
        rows = differences(runs)
        parts += ["<h2>Settings in which they differ</h2>", *(table(runs, rows) if rows else ["<p>none</p>"])]
    parts += ["<h2>Curves</h2>", *curves(runs)]
    parts += ["<h2>The last sample</h2>", *(part for run in runs for part in sample(run))]
    parts += ["<h2>Configuration</h2>"]
    for run in runs:
        parts += [f"<details><summary>{escape(str(run.folder))}</summary>"]
        parts += [f'<pre class="code">{escape(run.config or "no config.yaml")}</pre></details>']
    head = f'<meta charset="utf-8">{VIEWPORT}{GENERATOR}<title>{escape(names)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def is_report(path: Path) -> bool:
    """Whether the file is a report that `lm report` wrote."""
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(1000)


def table(runs: list[Run], columns: list[tuple[str, list[Any]]]) -> Iterator[str]:
    """Yields the lines of a table: a row for each run, so that many runs fit, or a row for each figure of one run."""
    if len(runs) == 1:
        yield '<table class="one"><tbody>'
        for title, (cell,) in columns:
            yield f"<tr><th>{escape(title)}</th><td>{escape(str(cell))}</td></tr>"
        yield "</tbody></table>"
        return
    titles = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    yield f'<div class="scroll"><table><thead><tr><th></th>{titles}</tr></thead><tbody>'
    for place, run in enumerate(runs):
        cells = "".join(f"<td>{escape(as_yaml(column[place]))}</td>" for _, column in columns)
        yield f"<tr><td>{key(place)}{escape(run.name)}</td>{cells}</tr>"
    yield "</tbody></table></div>"


def as_yaml(value: Any) -> str:
    """Writes a value as a configuration does (true, null), and lists as Python does."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def curves(runs: list[Run]) -> Iterator[str]:
    """Yields the curves of all runs, with their colours explained if there are several."""
    if len(runs) > 1:
        yield '<p class="keys">'
        yield from (f"<span>{key(place)}{escape(run.name)}</span>" for place, run in enumerate(runs))
        yield "</p>"
    yield '<div class="curves">'
    for title, svg in draw_curves([run.curves for run in runs]):
        yield f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
    yield '</div><p class="note">Pale lines are training losses of single steps, bold ones their moving averages.</p>'


def key(place: int) -> str:
    return f'<span class="key" style="background: var(--curve-{place % len(COLOURS)})"></span>'


def sample(run: Run) -> Iterator[str]:
    texts = run.curves.get(SAMPLE)
    if texts is None:
        yield f'<p class="note">{escape(run.name)}: none</p>'
        return
    yield f'<p class="note">{escape(run.name)}, step {texts.steps[-1]:,}</p><pre>{escape(texts.values[-1])}</pre>'
