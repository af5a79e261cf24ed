"""`tokenization compare`: compression and speed of tokenizers on texts, and what the size of a vocabulary is worth."""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from tqdm import tqdm

from tokenization.commands import TEXT_HELP, ArgumentParser, add_text_options, command_parser, output_path
from tokenization.errors import InputError
from tokenization.kernels import KERNELS_FROM_BYTES
from tokenization.plots import check_plot
from tokenization.samples import Sample, beginning, draw_documents
from tokenization.text.documents import check_text_field
from tokenization.text.text_files import TextFiles, refuse_read_back
from tokenization.tokenizer import Tokenizer
from tokenization.vocabulary_sizes import draw_sizes, tokens_by_size

HELP = """Encode the beginning of each text with each tokenizer, and show the bytes per token (more is better
compression), the tokens per byte, the throughput of one core with warm caches, and the hours that the 825 GB of the
Pile would take. Throughput is that of large texts: a short one is repeated until it is long enough.

  tokenization compare data/tokenizer other/tokenizer --text stories.txt books.txt.gz
  tokenization compare data/tokenizer --text stories.txt --documents 10 --seed 0
                                        ten documents drawn at random, with the worst and the best compressed
  tokenization compare data/tokenizer --text stories.txt --curve --plot curve.png
                                        bytes per token of the same tokenizer cut to 512, 1,024, 2,048, ... tokens
"""
MEGABYTES = 5.0
PASSES = 3  # over each text: to count its tokens, to fill the caches, to take the time
PILE_BYTES = 825e9  # the handout's yardstick for throughput
Row = dict[str, Any]
COLUMNS = {  # of the table: key in a row, title, format
    "tokenizer": ("tokenizer", ""),
    "text": ("text", ""),
    "documents": ("documents", ",d"),
    "found": ("drawn from", ",d"),
    "vocab_size": ("vocabulary", ",d"),
    "merges": ("merges", ",d"),
    "bytes_per_token": ("bytes/token", ".3f"),
    "lowest": ("lowest", ".3f"),
    "highest": ("highest", ".3f"),
    "tokens_per_byte": ("tokens/byte", ".4f"),
    "megabytes_per_second": ("MB/s", ".2f"),
    "hours_for_825_gigabytes": ("hours for 825 GB", ".1f"),
}
OF_DOCUMENTS = ("documents", "found", "lowest", "highest")


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("compare", HELP)
    parser.add_argument("tokenizers", nargs="+", metavar="DIR", help="folders of tokenizers")
    parser.add_argument("--text", nargs="+", required=True, help=TEXT_HELP)
    add_text_options(parser)
    parser.add_argument(
        "--megabytes", type=float, metavar="N", help=f"how much of each text to encode (default: {MEGABYTES:g})"
    )
    parser.add_argument(
        "--documents", type=int, metavar="N", help="encode N documents instead, drawn at random from all of each text"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="which documents are drawn (default: 0)")
    parser.add_argument(
        "--curve", action="store_true", help="show the bytes per token by size of vocabulary, and no throughput"
    )
    parser.add_argument("--plot", type=output_path, metavar="PNG", help="also draw the curves")
    parser.add_argument("--json", action="store_true", help="print JSON: a list with an object for each row")
    return parser


def run(argv: Sequence[str]) -> None:
    """Prints a table with a row for every text and tokenizer; of a curve, for every size as well."""
    args = make_parser().parse_args(argv)
    check(args)
    tokenizers = {folder: Tokenizer.load(folder) for folder in args.tokenizers}
    samples = [read_sample(name, args) for name in args.text]
    pairs = [(sample, folder, tokenizer) for sample in samples for folder, tokenizer in tokenizers.items()]
    rows: list[Row] = []
    with tqdm(total=PASSES * len(pairs), desc="encoding", unit="pass", delay=2, disable=args.curve) as bar:
        for sample, folder, tokenizer in pairs:
            about = {"tokenizer": folder, "text": sample.name, "documents": len(sample.texts), "found": sample.found}
            measured = measure_sizes(tokenizer, sample) if args.curve else [measure(tokenizer, sample, bar)]
            rows += [about | {"bytes": sample.num_bytes} | row for row in measured]
    if args.documents is None:
        rows = [{key: value for key, value in row.items() if key not in OF_DOCUMENTS} for row in rows]
    print(json.dumps(rows, indent=2) if args.json else "\n".join(table(rows)))
    if args.plot:
        plot(args, rows)


def check(args: argparse.Namespace) -> None:
    """Raises InputError for arguments that cannot be followed."""
    if args.megabytes is not None and not 0 < args.megabytes < math.inf:
        raise InputError(f"--megabytes {args.megabytes}: must be more than 0, and a finite number")
    if args.documents is not None and args.documents < 1:
        raise InputError(f"--documents {args.documents}: at least one is needed")
    if args.documents is not None and args.megabytes is not None:
        raise InputError(f"--megabytes {args.megabytes:g}: --documents are encoded whole; leave one of the two out")
    if args.documents is None and args.seed is not None:
        raise InputError(f"--seed {args.seed}: is for drawing documents; add --documents N, or leave it out")
    if args.text_field is not None:
        check_text_field(args.text_field, (file.name for file in TextFiles(args.text).files))
    if args.plot and not args.curve:
        raise InputError(f"--plot {args.plot}: draws the curve; add --curve")
    if args.plot:
        check_plot(args.plot, [*args.tokenizers, *TextFiles(args.text).files])
        refuse_read_back(args.text, args.plot)


def read_sample(name: str, args: argparse.Namespace) -> Sample:
    """Reads the part of a text that the arguments ask for."""
    if args.documents is not None:
        return draw_documents(name, args.documents, args.seed or 0, args.errors, args.text_field, progress=True)
    return beginning(name, int((args.megabytes or MEGABYTES) * 1e6), args.errors, args.text_field)


def measure(tokenizer: Tokenizer, sample: Sample, bar: "tqdm[NoReturn]") -> Row:
    """Measures the compression of all texts together, that of the worst and the best, and the throughput."""
    num_tokens = [len(tokenizer.encode(text)) for text in sample.texts]
    bar.update()
    ratios = [len(text.encode()) / count for text, count in zip(sample.texts, num_tokens, strict=True)]
    speed = throughput(tokenizer, "".join(sample.texts), sample.num_bytes, bar)
    return {
        "tokens": sum(num_tokens),
        "bytes_per_token": sample.num_bytes / sum(num_tokens),
        "lowest": min(ratios),
        "highest": max(ratios),
        "tokens_per_byte": sum(num_tokens) / sample.num_bytes,
        "megabytes_per_second": speed / 1e6,
        "hours_for_825_gigabytes": PILE_BYTES / speed / 3600,
    }


def measure_sizes(tokenizer: Tokenizer, sample: Sample) -> Iterator[Row]:
    """Yields a row for each vocabulary size."""
    for size in tokens_by_size(tokenizer, sample.texts, progress=True):
        yield size._asdict() | {"bytes_per_token": sample.num_bytes / size.tokens}


def throughput(tokenizer: Tokenizer, text: str, num_bytes: int, bar: "tqdm[NoReturn]") -> float:
    """Returns the bytes per second of one core, with warm caches; num_bytes: of the text, in UTF-8."""
    kernels = tokenizer.switch.choose(KERNELS_FROM_BYTES).native
    repeats = math.ceil(KERNELS_FROM_BYTES / len(text)) if kernels else 1
    tokenizer.encode(text * repeats)  # fills the caches
    bar.update()
    start = time.perf_counter()
    tokenizer.encode(text * repeats)
    seconds = time.perf_counter() - start
    bar.update()
    return num_bytes * repeats / seconds


def table(rows: list[Row]) -> Iterator[str]:
    """Yields the lines of a table: those of COLUMNS that the rows have, names to the left and numbers to the right."""
    columns = {key: about for key, about in COLUMNS.items() if key in rows[0]}
    cells = [[title for title, _ in columns.values()]]
    cells += [[format(row[key], form) for key, (_, form) in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        aligned = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        aligned += [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        yield "  ".join(aligned)


def plot(args: argparse.Namespace, rows: list[Row]) -> None:
    """Draws a curve for every text and tokenizer."""
    said_to = sys.stderr if args.json else sys.stdout
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        points = curves.setdefault(f"{row['tokenizer']}, {row['text']}", [])
        points.append((row["vocab_size"], row["bytes_per_token"]))
    draw_sizes(args.plot, curves)
    print(f"written: {args.plot}", file=said_to)
