"""`tokenization decode`: print the text of a token file."""

import sys
from collections.abc import Iterator, Sequence

from tokenization.commands import ArgumentParser, command_parser
from tokenization.errors import InputError
from tokenization.tokenizer import Tokenizer
from tokenization.tokens.token_file import TokenFile

HELP = """Print the text of a token file, or of some of its tokens.

  tokenization decode data/train.bin --tokenizer data/tokenizer --limit 200
"""
TOKENS_AT_ONCE = 1 << 16


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("decode", HELP)
    parser.add_argument("tokens", help="a token file, or the folder of a token set")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="the folder of the tokenizer that made it")
    parser.add_argument(
        "--start", type=int, default=0, metavar="N", help="the position of the first token to print (default: 0)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="how many tokens to print (default: all)")
    return parser


def run(argv: Sequence[str]) -> None:
    """Prints the text, as UTF-8 whatever the terminal's encoding, with its own line ends."""
    args = make_parser().parse_args(argv)
    tokenizer, file = Tokenizer.load(args.tokenizer), TokenFile.open(args.tokens)
    file.check_tokenizer(args.tokenizer, tokenizer.digest, "name that one")
    for option, value in (("--start", args.start), ("--limit", args.limit or 0)):
        if value < 0:
            raise InputError(f"{option} {value}: must not be negative")
    if args.start >= len(file):
        print(f"{args.tokens}: has {len(file):,} tokens, none from --start {args.start:,} on", file=sys.stderr)
    end = len(file) if args.limit is None else min(len(file), args.start + args.limit)
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    for text in tokenizer.decode_iterable(token_ids(file, args.start, end)):
        sys.stdout.write(text)


def token_ids(file: TokenFile, start: int, end: int) -> Iterator[int]:
    """Yields the ids from position `start` to before `end`, without holding them all."""
    for position in range(start, end, TOKENS_AT_ONCE):
        yield from file.tokens[position : min(end, position + TOKENS_AT_ONCE)].tolist()
