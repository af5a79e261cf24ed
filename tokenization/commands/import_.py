"""`tokenization import`: make a tokenizer's folder from another project's files."""

from collections.abc import Sequence
from pathlib import Path

from tokenization.commands import (
    PATTERNS_HELP,
    REPLACE_TOKENIZER_HELP,
    ArgumentParser,
    command_parser,
    output_path,
    read_pattern,
)
from tokenization.errors import InputError
from tokenization.formats.folder import check_new_tokenizer, is_verified
from tokenization.interchange import KNOWN_SPECIAL_TOKENS, import_huggingface, import_tiktoken
from tokenization.tokenizer import Tokenizer

HELP = f"""Make a tokenizer folder from a Hugging Face tokenizer.json, from tiktoken's ranks, or from an older or
foreign folder with vocab.json and merges.txt. A .tiktoken file holds neither its pattern nor its special tokens; a
published --pattern stands for both ({", ".join(KNOWN_SPECIAL_TOKENS)}). Features that would give other ids here are
refused by name.

  tokenization import tokenizer.json --output data/theirs
  tokenization import cl100k_base.tiktoken --pattern cl100k --output data/cl100k
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("import", HELP)
    parser.add_argument("source", help="a tokenizer.json, a *.tiktoken file, or a tokenizer's folder")
    parser.add_argument("--pattern", help=f"pattern of a .tiktoken file: {PATTERNS_HELP}")
    parser.add_argument("--output", required=True, type=output_path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help=REPLACE_TOKENIZER_HELP)
    return parser


def run(argv: Sequence[str]) -> None:
    """Imports a tokenizer and prints its size."""
    args = make_parser().parse_args(argv)
    check_new_tokenizer(args.output, [args.source], args.overwrite)
    tokenizer = read_source(args.source, args.pattern)
    tokenizer.save(args.output)
    print(f"{len(tokenizer.vocab):,} tokens, {tokenizer.num_merges:,} merges -> {args.output}")
    if not is_verified(args.source):
        print(f"{args.source} has no digest, so nothing shows whether it has changed since it was published")


def read_source(source: str, pattern: str | None) -> Tokenizer:
    """Reads a file or folder of a kind that its name shows. pattern: the argument, for tiktoken's files alone."""
    if source.endswith(".tiktoken"):
        if pattern is None:
            raise InputError(f"{source}: a .tiktoken file does not hold its pattern; give --pattern, e.g. cl100k")
        return import_tiktoken(source, read_pattern(pattern), KNOWN_SPECIAL_TOKENS.get(pattern, {}))
    if pattern is not None:
        raise InputError(f"{source}: a tokenizer.json holds its own pattern; leave --pattern out")
    return Tokenizer.load(source) if Path(source).is_dir() else import_huggingface(source)
