"""Runs the small tokenizer experiments of docs/cs336.md and prints their tables, in seconds of the processor.

  python benchmarks/cs336.py                              on data/tinystories-train.txt.gz
  python benchmarks/cs336.py --small corpus.en            the course's own small text

train    243 merges of a small text, and 2,000 of the whole one, learnt in five ways: each does one thing less often
later    how many words a merge touches, early and late
encode   a short text in six ways

All ways must give the same merges and the same ids before a number is printed.
"""

import argparse
import gzip
from pathlib import Path

from cs336_stages.encoding import encode
from cs336_stages.learning import later, train

from tokenization import END_OF_TEXT, Tokenizer
from tokenization.pretokenization import count_pretokens

DATA = Path(__file__).parent.parent / "data"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DATA / "tinystories-train.txt.gz", help="(default: %(default)s)")
    parser.add_argument("--small", type=Path, help="the small text (default: the first 130,000 characters of --text)")
    parser.add_argument("--merges", type=int, nargs=2, default=[243, 2000], help="(default: 243 2000)")
    parser.add_argument("--vocab-size", type=int, default=10_000, help="for later and encode (default: 10000)")
    parser.add_argument("--characters", type=int, default=2000, help="to encode in the slow ways (default: 2000)")
    parser.add_argument("--seconds", type=float, default=0.3, help="what takes less is repeated (default: 0.3)")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    text = read(args.text)
    small = read(args.small) if args.small else text[:130_000]
    for part, num_merges in zip((small, text), args.merges, strict=True):
        train(part, num_merges, args.seconds)
    vocab, merges = later(count_pretokens(text, [END_OF_TEXT]), args.vocab_size)
    encode(Tokenizer(vocab, merges, [END_OF_TEXT]), text, args.characters, args.seconds)


def read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


if __name__ == "__main__":
    main()
