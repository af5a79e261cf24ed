"""`tokenization check`: what is wrong with a text before anyone trains on it."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenization.checking.findings import NEVER_TOLERATED, TITLES, Finding, Settings, Text, check_texts
from tokenization.commands import (
    TEXT_HELP,
    ArgumentParser,
    add_reading_options,
    announce,
    check_processes,
    command_parser,
    output_name,
)
from tokenization.errors import InputError
from tokenization.files import write_text
from tokenization.outputs import check_file
from tokenization.systems import available_cores
from tokenization.text.text_files import TextFiles, refuse_read_back

HELP = """Look for what harms training: duplicate and nearly duplicate documents; validation documents that are in
training, whole or in part; documents that are very repetitive or hardly compressible; characters that do not belong in
text. Nothing is changed.

  tokenization check stories.txt.gz --valid stories-valid.txt.gz
  tokenization check crawl/ --text-field body --json report.json
  tokenization check crawl/*.jsonl.zst --valid held-out.jsonl --span 100 --tolerate 0.02

The exit code is 1 if a finding covers more documents than --tolerate allows, or any validation document is whole in
training; 0 if all is well; 2 if something cannot be read.
"""
EXAMPLES = 3
FORMAT = "tokenization check 1"


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("check", HELP)
    parser.add_argument("train", nargs="+", metavar="TRAIN", help=f"text to train on: {TEXT_HELP}")
    parser.add_argument(
        "--valid", nargs="+", default=[], metavar="VALID", help="text to validate on, in the same forms"
    )
    parser.add_argument(
        "--span",
        type=int,
        default=Settings.run_words,
        metavar="WORDS",
        help="how many words in a row training and validation must share to be reported (default: %(default)s)",
    )
    parser.add_argument(
        "--similarity",
        type=float,
        default=Settings.similarity,
        metavar="SHARE",
        help="how large a share of their runs of 5 words nearly equal documents have in common (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerate",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="the largest share of documents that a finding may cover with exit code 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help="how many to show for each finding (default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        type=output_name,
        metavar="FILE",
        help="write the findings as JSON, too; - prints JSON and no table",
    )
    add_reading_options(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Prints what is found, and returns the exit code: 1 where it is too much."""
    args = make_parser().parse_args(argv)
    texts_read = TextFiles([*args.train, *args.valid])
    check(args, texts_read)
    if args.json != "-":
        announce(texts_read)
    processes = args.processes or available_cores()
    settings = Settings(args.span, args.similarity, processes, args.errors, args.text_field, progress=True)
    texts, findings = check_texts(args.train, args.valid, settings)
    too_many = [finding for finding in findings if is_too_much(finding, args.tolerate)]
    report = json.dumps(as_json(texts, findings, args), indent=2, ensure_ascii=args.json == "-") + "\n"
    if args.json == "-":
        print(report, end="")
    else:
        print("\n".join([*table(texts, findings, too_many), *examples(findings, args.examples)]))
        names = ", ".join(dict.fromkeys(TITLES[finding.name] for finding in too_many))
        print(f"\ntoo many documents (!): {names}" if too_many else "\nwithin what --tolerate allows")
    if args.json not in (None, "-"):
        write_text(args.json, report.encode(errors="surrogateescape").decode(errors="replace"))  # names of files
        print(f"written: {args.json}")
    return 1 if too_many else 0


def check(args: argparse.Namespace, texts: TextFiles) -> None:
    """Raises InputError for arguments that cannot be followed."""
    check_processes(args.processes)
    for name, least in (("span", 1), ("examples", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if not 0.5 <= args.similarity <= 1:
        raise InputError(
            f"--similarity {args.similarity}: must be from 0.5 to 1; below that, documents agree by chance"
        )
    if not 0 <= args.tolerate <= 1:
        raise InputError(f"--tolerate {args.tolerate}: is a share, from 0 to 1")
    if args.json in (None, "-"):
        return
    path, inputs = Path(args.json), [*args.train, *args.valid]
    check_file(path, texts.files, "a report of this command", is_report)
    refuse_read_back(inputs, path)


def is_report(path: Path) -> bool:
    """Returns whether a file is a report that this command has written."""
    try:
        return bool(json.loads(path.read_bytes())["format"] == FORMAT)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def is_too_much(finding: Finding, tolerate: float) -> bool:
    """Returns whether a finding is of more documents than tolerated."""
    return finding.share > (0 if finding.name in NEVER_TOLERATED else tolerate)


def as_json(texts: Sequence[Text], findings: Sequence[Finding], args: argparse.Namespace) -> dict[str, Any]:
    """Returns the report as JSON has it."""
    return {
        "format": FORMAT,
        "texts": {
            text.name: {
                "files": len(text.files),
                "documents": len(text),
                "bytes": int(text.documents.sizes.sum()),
            }
            for text in texts
        },
        "span_words": args.span,
        "similarity": args.similarity,
        "tolerate": args.tolerate,
        "findings": [
            {
                "finding": finding.name,
                "text": finding.text.name,
                "documents": len(finding.numbers),
                "share": finding.share,
                "too_many": is_too_much(finding, args.tolerate),
                "examples": finding.examples(args.examples),
            }
            for finding in findings
        ],
    }


def table(texts: Sequence[Text], findings: Sequence[Finding], too_many: Sequence[Finding]) -> Iterator[str]:
    """Yields a line for each kind of finding, with a column for each text."""
    rows = [["", *(f"{text.name}  " for text in texts)]]
    rows += [["documents", *(f"{len(text):,}  " for text in texts)]]
    rows += [["megabytes", *(f"{text.documents.sizes.sum() / 1e6:.1f}  " for text in texts)]]
    for name, title in TITLES.items():
        of_text = {finding.text.name: finding for finding in findings if finding.name == name}
        found = [of_text.get(text.name) for text in texts]
        if of_text:
            rows.append([title, *("" if one is None else count(one, one in too_many) for one in found)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for title, *cells in rows:
        aligned = [number.rjust(width) for number, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([title.ljust(widths[0]), *aligned]).rstrip()


def count(finding: Finding, too_many: bool) -> str:
    """Returns the number of the documents, their share, and a mark where it is too much."""
    share = f" ({finding.share:.2%})" if len(finding.numbers) else ""
    return f"{len(finding.numbers):,}{share}{' !' if too_many else '  '}"


def examples(findings: Sequence[Finding], most: int) -> Iterator[str]:
    """Yields some documents of each finding."""
    for finding in findings:
        if len(finding.numbers) and most:
            yield f"\n{finding.text.name}, {TITLES[finding.name]}:"
            for about in finding.examples(most):
                yield f"  {where(about)}: {about['excerpt']!r}{said(about)}"


def where(place: dict[str, Any]) -> str:
    """Returns where a document stands, in words."""
    line = f", line {place['line']:,}" if "line" in place else ""
    return f"{place['file']}, document {place['document']:,}{line}"


def said(about: dict[str, Any]) -> str:
    """Returns what else there is to say of an example."""
    if "same_as" in about:
        return f"\n    as {where(about['same_as'])}"
    if "similar_to" in about:
        return f"\n    like {where(about['similar_to'])}"
    if "also_in" in about:
        shared = f"{about['shared_words']:,} words, {about['longest_words']:,} in a row"
        return f"\n    {shared}, also in {where(about['also_in'])}"
    return f" ({about['compression']:g} bytes in one)" if "compression" in about else ""
