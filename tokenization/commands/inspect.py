"""`tokenization inspect`: show what a tokenizer has learnt, and how it comes to its tokens."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenization.commands import PATTERNS_HELP, ArgumentParser, command_parser
from tokenization.commands.import_ import read_source
from tokenization.derivation import RankOf, merge_steps, origins, rank_pairs
from tokenization.errors import InputError
from tokenization.formats.folder import is_verified
from tokenization.interchange import KNOWN_SPECIAL_TOKENS
from tokenization.pretokenization import PATTERNS, pretokenize, split_on_special_tokens
from tokenization.tokenizer import Tokenizer

HELP = """Show what a tokenizer has learnt: its longest tokens, its first merges and its last. --word shows how text is
merged, step by step; --token shows the merges behind a token. Rank 1 is the merge that was learnt first.

  tokenization inspect data/tokenizer
  tokenization inspect data/tokenizer --word " unbelievable"        a word usually begins with its space
  tokenization inspect data/tokenizer --word "don't stop"           what is split before any merge is shown in parts
  tokenization inspect data/tokenizer --token 1234
  tokenization inspect cl100k_base.tiktoken --pattern cl100k --word " unbelievable"
"""
LONGEST_WORD = 200  # bytes of a pre-token: the table of its steps has some 100 of them in a line
COUNT = 10
RECOVERED = "note: tiktoken's ranks list tokens and no merges; the merges are recovered from the ranks"


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("inspect", HELP)
    parser.add_argument("tokenizer", help="the folder of a tokenizer, a tokenizer.json, or a .tiktoken file")
    parser.add_argument("--count", type=int, metavar="N", help=f"how many of each to show (default: {COUNT})")
    parser.add_argument("--word", metavar="TEXT", help="show how a word, or any short text, becomes tokens")
    parser.add_argument("--token", type=int, metavar="ID", help="show the merges behind the token with this id")
    parser.add_argument("--pattern", help=f"pattern of a .tiktoken file: {PATTERNS_HELP}")
    return parser


def run(argv: Sequence[str]) -> None:
    """Prints what the arguments ask for, or else an overview."""
    args = make_parser().parse_args(argv)
    check(args)
    if Path(args.tokenizer).is_file() or args.pattern is not None:
        tokenizer = read_source(args.tokenizer, args.pattern)
    else:
        tokenizer = Tokenizer.load(args.tokenizer)
    lines: list[str] = []
    if args.word is None and args.token is None:
        lines += overview(args.tokenizer, tokenizer, args.count or COUNT)
    if args.word is not None:
        lines += explain_text(tokenizer, args.word)
    if args.token is not None:
        lines += [""] * bool(lines) + list(explain_token(tokenizer, args.token))
    if has_recovered_merges(args.tokenizer, tokenizer):
        lines += [RECOVERED]
    print(*lines, sep="\n")


def check(args: argparse.Namespace) -> None:
    """Raises InputError for arguments that cannot be followed."""
    if args.count is not None and args.count < 1:
        raise InputError(f"--count {args.count}: at least one is needed")
    if args.count is not None and not (args.word is None and args.token is None):
        raise InputError(f"--count {args.count}: is for the overview; leave it out with --word and --token")
    if args.word is not None and not args.word.isascii() and any("\ud800" <= sign <= "\udfff" for sign in args.word):
        raise InputError("--word: is not UTF-8 text")
    if args.word == "":
        raise InputError('--word "": is empty; give a word, usually with the space before it, as in --word " cat"')


def has_recovered_merges(source: str, tokenizer: Tokenizer) -> bool:
    """Returns whether the merges are not the published ones: OpenAI publishes only the ranks of cl100k and o200k.

    A folder does not say what it was imported from; those two show by their pattern and the ids of special tokens.
    """
    special = {token: tokenizer.encode(token) for token in tokenizer.special_tokens}
    return source.endswith(".tiktoken") or any(
        tokenizer.pattern == PATTERNS[name]
        and special == {token: [token_id] for token, token_id in KNOWN_SPECIAL_TOKENS[name].items()}
        for name in ("cl100k", "o200k")
    )


def overview(source: str, tokenizer: Tokenizer, count: int) -> Iterator[str]:
    """Yields the sizes, the special tokens, the pattern, and some tokens and merges."""
    special_tokens = {token.encode() for token in tokenizer.special_tokens}
    learnt = [token for token in tokenizer.vocab.values() if token not in special_tokens]
    yield f"{source}: {len(tokenizer.vocab):,} tokens, {tokenizer.num_merges:,} merges"
    yield f"special tokens: {' '.join(tokenizer.special_tokens) or 'none'}"
    yield f"pattern: {tokenizer.pattern}"
    yield f"digest: {'its files are as they were written' if is_verified(source) else 'none, so unverified'}"
    yield "longest tokens:"
    yield from (f"  {len(token):3}  {show(token)}" for token in sorted(learnt, key=len, reverse=True)[:count])
    for title, merges in (("first", tokenizer.merges[:count]), ("last", tokenizer.merges[-count:])):
        yield f"{title} merges:"
        yield from (f"  {show(left)} + {show(right)}" for left, right in merges)


def explain_text(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Yields how a text is split, then the merges of each pre-token, then the ids of the whole."""
    token_ids, rank_of = tokenizer.encode(text), rank_pairs(tokenizer.merges)
    blocks: list[list[str]] = []
    for place, stretch in enumerate(split_on_special_tokens(text, tokenizer.special_tokens)):
        if place % 2:
            blocks.append([f"{stretch!r}: a special token, found before anything is split or merged"])
        else:
            blocks += [explain_pretoken(pretoken, rank_of) for pretoken in pretokenize(stretch, tokenizer.pattern)]
    if len(blocks) > 1:
        yield f"{text!r}: split into {len(blocks)} before any merge; no token reaches from one into the next"
        yield ""
    for block in blocks:
        yield from [*block, ""]
    yield f"ids     {' '.join(map(str, token_ids))}"
    yield f"tokens  {show_all(tokenizer.vocab[token_id] for token_id in token_ids)}"


def explain_pretoken(pretoken: str, rank_of: RankOf) -> list[str]:
    """Returns the table of a pre-token's merges: the rank of each, the two parts that it joins, all parts after it."""
    data = pretoken.encode()
    if len(data) > LONGEST_WORD:
        raise InputError(f"--word: has a pre-token of {len(data):,} bytes; give one of at most {LONGEST_WORD}")
    steps = list(merge_steps(data, rank_of))
    merges = [f"{show(step.left)} + {show(step.right)}" for step in steps]
    width = max(map(len, ["merge", *merges]))
    lines = [f"{pretoken!r}: {len(data)} byte{'s' * (len(data) > 1)}, {len(steps)} merge{'s' * (len(steps) != 1)}"]
    lines += [f"step     rank  {'merge':{width}}  parts"]
    lines += [f"   0           {'':{width}}  {show_all(data[place : place + 1] for place in range(len(data)))}"]
    for number, (step, merge) in enumerate(zip(steps, merges, strict=True), start=1):
        lines += [f"{number:4}  {step.rank + 1:7,}  {merge:{width}}  {show_all(step.parts)}"]
    return lines


def explain_token(tokenizer: Tokenizer, token_id: int) -> Iterator[str]:
    """Yields the tree of the merges behind a token, each part below what it is a part of, two columns further in."""
    token = tokenizer.vocab.get(token_id)
    if token is None:
        raise InputError(f"--token {token_id}: is not in the vocabulary, whose ids end at {tokenizer.vocab_size - 1}")
    if token in {special.encode() for special in tokenizer.special_tokens}:
        yield f"{show(token)}: a special token; no merge makes it"
        return
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    tree = [
        (f"{'  ' * depth}{show(part)}", ids[part], rank, part) for depth, part, rank in origins(token, tokenizer.merges)
    ]
    width = max(map(len, ["token", *(name for name, *_ in tree)]))
    yield f"{'token':{width}}       id     rank"
    for name, part_id, rank, part in tree:
        origin = f"{rank + 1:7,}" if rank is not None else "   byte" if len(part) == 1 else "no merge makes it"
        yield f"{name:{width}}  {part_id:7}  {origin}"
    for rank, (left, right) in enumerate(tokenizer.merges):
        if left + right == token and rank != tree[0][2]:
            yield f"rank {rank + 1:,} spells it, too: {show(left)} + {show(right)}"


def show(token: bytes) -> str:
    """Returns the token on one printable line: its text in quotes, or its bytes where they are not UTF-8."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def show_all(tokens: Iterable[bytes]) -> str:
    """Returns the tokens on one line."""
    return " ".join(map(show, tokens))
