"""The results as tables in Markdown. In brackets: how many times as fast as the library we are, within a round."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from tokenizer_stages.documents import ratio, speed
from tokenizer_stages.peers import OURS

Row = dict[str, Any]
FORMS = {
    "list": "text to a list of ids",
    "array": "text to an array of ids",
    "batch": "lines to lists of ids, in one call, with one thread",
    "stream": "lines as a stream to a list of ids; the others line by line, without the tokens that span lines",
    "decode": "a list of ids to text",
    "cold": "text to a list of ids, documents of 100 kB, the first time",
    "warm": "the same documents again",
}
SHORT = {
    "list": "to a list",
    "array": "to an array",
    "batch": "lines in one call",
    "stream": "lines as a stream",
    "decode": "ids to text",
    "cold": "met for the first time",
    "warm": "met again",
}
START = ("import", "load", "first call", "process")


def tables(results: dict[str, Any]) -> str:
    """Returns all that was measured as Markdown."""
    rows: list[Row] = results["rows"]
    libraries = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    absent = f" Not installed, so not measured: {', '.join(results['absent'])}." if results["absent"] else ""
    lines = [f"{results['machine']}. {libraries}.{absent}", ""]
    for section, name in (("documents", "vocabulary"), ("kinds", "form")):
        chosen = [row for row in rows if row["section"] == section]
        for key in dict.fromkeys((row[name], row["form"]) for row in chosen):
            lines += speed_table([row for row in chosen if (row[name], row["form"]) == key])
    for vocabulary in dict.fromkeys(row["vocabulary"] for row in rows if row["section"] == "start"):
        lines += start_table([row for row in rows if row["section"] == "start" and row["vocabulary"] == vocabulary])
    for section in ("train", "files"):
        chosen = [row for row in rows if row["section"] == section]
        for vocabulary in dict.fromkeys(row["vocabulary"] for row in chosen):
            lines += run_table([row for row in chosen if row["vocabulary"] == vocabulary])
    return "\n".join([*lines, *list_ahead(rows)])


def speed_table(rows: list[Row]) -> Iterator[str]:
    """Yields a table of MB per CPU second, with a row for each size or each vocabulary and kind of text."""
    libraries = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    documents = rows[0]["section"] == "documents"
    title = f"{rows[0]['vocabulary']}, English: " if documents else ""
    yield f"**{title}{FORMS[rows[0]['form']]}**, MB per CPU second"
    yield ""
    yield from table_head("" if documents else "vocabulary, text", libraries)
    for row in rows:
        cells = [cell(row, name) if name in row["seconds"] else "" for name in libraries]
        yield table_row(row["row"] if documents else f"{row['vocabulary']}, {row['row']}", cells)
    for reason in dict.fromkeys(f"{name}: {why}" for row in rows for name, why in row["left_out"].items()):
        yield f"\nLeft out somewhere: {reason}."
    yield ""


def cell(row: Row, name: str) -> str:
    return f"{speed(row, name):.1f}" + ("" if name == OURS else f" ({ratio(row, name):.2f})")


def start_table(rows: list[Row]) -> Iterator[str]:
    """Yields a table of CPU seconds, the least of several processes."""
    yield f"**{rows[0]['vocabulary']}: until the first ids are there**, CPU seconds"
    yield ""
    yield from table_head("", [*START, "peak MB"])
    for name, same in grouped(rows, "library"):
        least = [f"{min(row[step] for row in same):.2f}" for step in START]
        yield table_row(name, [*least, f"{max(row['peak'] for row in same):.0f}"])
    yield ""


def run_table(rows: list[Row]) -> Iterator[str]:
    """Yields a table of training, or of encoding a file, the fastest of several processes."""
    train = rows[0]["section"] == "train"
    what = f"train {rows[0]['size']:,} tokens" if train else "encode a file"
    yield f"**{rows[0]['vocabulary']}: {what}**, {rows[0]['megabytes']:.1f} MB of English"
    yield ""
    yield from table_head(
        "", ["threads", "seconds", "MB/s", "CPU seconds", *([] if train else ["warm MB/s"]), "peak MB"]
    )
    for name, same in grouped(rows, "library", "threads"):
        cold, cpu = (min(row[key] for row in same) for key in ("cold", "cold CPU"))
        cells = [str(same[0]["threads"]), f"{cold:.2f}", f"{same[0]['megabytes'] / cold:.1f}", f"{cpu:.2f}"]
        cells += [] if train else [f"{same[0]['megabytes'] / min(row['warm'] for row in same):.1f}"]
        yield table_row(name, [*cells, f"{max(row['peak'] for row in same):.0f}"])
    if other := [name for name, same in grouped(rows, "library") if same[0]["digest"] != rows[0]["digest"]]:
        yield f"\nTheir merges are not ours: {', '.join(other)}."
    yield ""


def list_ahead(rows: list[Row]) -> Iterator[str]:
    """Yields a list with all places in the tables where another library is ahead of us."""
    places: dict[str, dict[str, list[str]]] = {}
    for name, table, place in chain(ahead_in_races(rows), ahead_in_processes(rows)):
        found = places.setdefault(name, {}).setdefault(table, [])
        found += [place] if place not in found else []
    if places:
        yield "**Where others are ahead of tokenization**"
        yield ""
    for name, tables_of in places.items():
        listed = (f"{table} ({', '.join(found)})" for table, found in tables_of.items())
        yield f"- {name}: {'; '.join(listed)}"
    yield ""


Place = tuple[str, str, str]  # library, table, row


def ahead_in_races(rows: list[Row]) -> Iterator[Place]:
    for row in rows:
        for name in row.get("seconds", {}):
            if name != OURS and ratio(row, name) < 1:
                yield name, SHORT[row["form"]], f"{row['vocabulary']} {row['row']}".removesuffix(" lines")


def ahead_in_processes(rows: list[Row]) -> Iterator[Place]:
    """Compares the least of several processes, as the tables show them."""
    titles = {
        ("start", "process"): "until the first ids are there",
        ("train", "cold"): "training",
        ("files", "cold"): "a file, the first time",
        ("files", "warm"): "a file again",
    }
    for (section, key), title in titles.items():
        chosen = [row for row in rows if row["section"] == section]
        for place, same in grouped(chosen, "vocabulary", "threads"):
            least = {name: min(row[key] for row in of_one) for name, of_one in grouped(same, "library")}
            count = same[0].get("threads")
            threads = f" with {count} thread{'s' if count > 1 else ''}" if count else ""
            for name, seconds in least.items():
                if OURS in least and not name.startswith(OURS) and seconds < least[OURS]:
                    yield name, title, f"{place}{threads}"


def grouped(rows: list[Row], *keys: str) -> Iterator[tuple[str, list[Row]]]:
    for values in dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows):
        yield str(values[0]), [row for row in rows if tuple(row.get(key) for key in keys) == values]


def table_head(first: str, titles: Iterable[str]) -> list[str]:
    titles = list(titles)
    return [table_row(first, titles), table_row("---", ["---"] * len(titles))]


def table_row(first: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
