"""`tokenization inspect`: show what a tokenizer has learnt."""

from collections.abc import Sequence

from tokenization.commands import TOKENIZER_HELP, ArgumentParser, command_parser
from tokenization.errors import InputError
from tokenization.folder import is_verified
from tokenization.tokenizer import Tokenizer

HELP = """Show what a tokenizer has learnt: its longest tokens, its first merges and its last.

  tokenization inspect data/tokenizer
"""


def make_parser() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser("inspect", HELP)
    parser.add_argument("tokenizer", help=TOKENIZER_HELP)
    parser.add_argument("--count", type=int, default=10, metavar="N", help="how many of each to show (default: 10)")
    return parser


def run(argv: Sequence[str]) -> None:
    """Print the sizes, the special tokens, the pattern, and some tokens and merges."""
    args = make_parser().parse_args(argv)
    if args.count < 1:
        raise InputError(f"--count {args.count}: at least one is needed")
    tokenizer = Tokenizer.load(args.tokenizer)
    special_tokens = {token.encode() for token in tokenizer.special_tokens}
    learnt = [token for token in tokenizer.vocab.values() if token not in special_tokens]
    print(f"{args.tokenizer}: {len(tokenizer.vocab):,} tokens, {len(tokenizer.merges):,} merges")
    print(f"special tokens: {' '.join(tokenizer.special_tokens) or 'none'}")
    print(f"pattern: {tokenizer.pattern}")
    print("digest:", "its files are as they were written" if is_verified(args.tokenizer) else "none, so unverified")
    longest = sorted(learnt, key=len, reverse=True)[: args.count]
    print("longest tokens:", *(f"  {len(token):3}  {show(token)}" for token in longest), sep="\n")
    for title, merges in (("first", tokenizer.merges[: args.count]), ("last", tokenizer.merges[-args.count :])):
        print(f"{title} merges:", *(f"  {show(left)} + {show(right)}" for left, right in merges), sep="\n")


def show(token: bytes) -> str:
    """Return the token on one printable line: its text in quotes, or its bytes where they are not UTF-8."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)
