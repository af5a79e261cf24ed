"""`tokenization compare`: compression and speed of tokenizers on texts."""

import math
import time
from collections.abc import Sequence

from tokenization.commands import ArgumentParser, command_parser
from tokenization.corpus import Corpus
from tokenization.errors import InputError
from tokenization.kernels import KERNELS_FROM_BYTES
from tokenization.tokenizer import Tokenizer

HELP = """Encode the beginning of each text with each tokenizer, and show the bytes per token (more is better
compression), the tokens per byte, the throughput of one core with warm caches, and the hours that the 825 GB of the
Pile would take. Throughput is that of large texts: a short one is repeated until it is long enough.

  tokenization compare data/tokenizer other/tokenizer --text stories.txt books.txt.gz
"""
PILE_BYTES = 825e9  # the handout's yardstick for throughput


def make_parser() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser("compare", HELP)
    parser.add_argument("tokenizers", nargs="+", metavar="DIR", help="folders of tokenizers")
    parser.add_argument("--text", nargs="+", required=True, help="files, folders or globs")
    parser.add_argument(
        "--megabytes", type=float, default=5.0, metavar="N", help="how much of each text to encode (default: 5)"
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Print a table with a row for every text and tokenizer."""
    args = make_parser().parse_args(argv)
    if not 0 < args.megabytes < math.inf:
        raise InputError(f"--megabytes {args.megabytes}: must be more than 0, and a finite number")
    tokenizers = {folder: Tokenizer.load(folder) for folder in args.tokenizers}
    texts = {name: beginning(name, int(args.megabytes * 1e6)) for name in args.text}
    width, text_width = max(map(len, ["tokenizer", *tokenizers])), max(map(len, ["text", *texts]))
    print(f"{'tokenizer':{width}}  {'text':{text_width}}  bytes/token  tokens/byte    MB/s  hours for 825 GB")
    for name, text in texts.items():
        num_bytes = len(text.encode())
        for folder, tokenizer in tokenizers.items():
            num_tokens = len(tokenizer.encode(text))
            speed = throughput(tokenizer, text, num_bytes)
            print(
                f"{folder:{width}}  {name:{text_width}}  {num_bytes / num_tokens:11.3f}  {num_tokens / num_bytes:11.4f}"
                f"  {speed / 1e6:6.2f}  {PILE_BYTES / speed / 3600:16.1f}"
            )


def throughput(tokenizer: Tokenizer, text: str, num_bytes: int) -> float:
    """Return the bytes per second of one core, with warm caches; num_bytes: of the text, in UTF-8."""
    kernels = tokenizer.code_for(KERNELS_FROM_BYTES).native
    repeats = math.ceil(KERNELS_FROM_BYTES / len(text)) if kernels else 1
    tokenizer.encode(text * repeats)  # fills the caches
    start = time.perf_counter()
    tokenizer.encode(text * repeats)
    return num_bytes * repeats / (time.perf_counter() - start)


def beginning(name: str, num_bytes: int) -> str:
    """Return the first characters of a text, about num_bytes of them, read block by block."""
    corpus, blocks, length = Corpus([name]), [], 0
    for block in (block for file in corpus.files for block in corpus.blocks(file)):
        blocks.append(block)
        length += len(block)
        if length >= num_bytes:
            break
    text = "".join(blocks)[:num_bytes]
    if not text:
        raise InputError(f"{name}: is empty; there is nothing to compare")
    return text
