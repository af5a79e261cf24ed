"""`tokenization index`: make a token set of the token files in a folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokenization.commands import ArgumentParser, command_parser, output_path
from tokenization.errors import InputError
from tokenization.tokens.token_index import INDEX, PLAN, holds_index, write_index

HELP = """Make the token files in a folder into a token set: read and verify each, and write index.json over them. The
folder is then used as if it were one token file: all of them in sequence, sorted by name. All must use one
tokenizer. If they were encoded in parts, all parts must be done.

  tokenization index shared/crawl.tokens
  tokenization index shared/crawl.tokens --overwrite        after token files were added or removed
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("index", HELP)
    parser.add_argument("folder", type=output_path, help="a folder with token files")
    parser.add_argument("--overwrite", action="store_true", help="replace the index that the folder has")
    return parser


def run(argv: Sequence[str]) -> None:
    """Writes the index and prints what it holds."""
    args = make_parser().parse_args(argv)
    check(args)
    if (args.folder / PLAN).exists() and not holds_index(args.folder):
        from tokenization.scaling.set_encoding import complete

        index = complete(args.folder)
    else:
        index = write_index(args.folder)
    about = index.description
    print(f"{len(index.shards):,} shards, {about.documents:,} documents, {about.tokens:,} {about.dtype} tokens")
    print(f"written: {args.folder / INDEX}")


def check(args: argparse.Namespace) -> None:
    """Raises InputError where the folder is none, or another index.json is there."""
    folder: Path = args.folder
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one with token files")
    if path.exists():
        if not holds_index(folder) or not path.is_file():
            raise InputError(f"{path}: exists, and is not the index of a token set; move it away")
        if not args.overwrite:
            raise InputError(f"{path}: exists already; replace it with --overwrite")
