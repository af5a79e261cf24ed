"""`tokenization train`: learn a vocabulary from text files."""

from collections.abc import Sequence

from tokenization.bpe import TIES
from tokenization.commands import (
    REPLACE_TOKENIZER_HELP,
    TEXT_HELP,
    ArgumentParser,
    add_reading_options,
    announce,
    check_processes,
    command_parser,
    output_path,
    read_pattern,
)
from tokenization.folder import check_new_tokenizer
from tokenization.pretokenization import END_OF_TEXT
from tokenization.text_files import TextFiles
from tokenization.tokenizer import Tokenizer
from tokenization.training import TrainingReport, train_bpe

HELP = """Learn a byte-level BPE vocabulary from text and write it as a folder with vocab.json and merges.txt
(GPT-2's format) and tokenizer_config.json.

  tokenization train data/tinystories-train.txt.gz --vocab-size 10000 --output data/tokenizer
  tokenization train 'crawl/*.jsonl.zst' --text-field body --vocab-size 32000 --output data/tokenizer
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("train", HELP)
    parser.add_argument("text", nargs="+", help=TEXT_HELP)
    parser.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        metavar="N",
        help="the number of tokens: 256 bytes, the special tokens, and one for every merge",
    )
    parser.add_argument(
        "--special-token",
        action="append",
        metavar="TOKEN",
        dest="special_tokens",
        help=f"a string that is always one token; may be repeated (default: {END_OF_TEXT})",
    )
    parser.add_argument(
        "--pattern",
        default="gpt2",
        help="how text is split before merging: gpt2, cl100k, o200k, or a regular expression; what lies between its"
        " matches is kept as well. A plain word must be in brackets: (word) (default: gpt2)",
    )
    parser.add_argument(
        "--ties",
        choices=TIES,
        default=TIES[0],
        help="which of equally frequent pairs is merged first: the one whose bytes are greater, or the older one, as in"
        " Hugging Face's trainer (default: lexicographic)",
    )
    parser.add_argument("--output", required=True, type=output_path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help=REPLACE_TOKENIZER_HELP)
    add_reading_options(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Trains a tokenizer, writes its folder, and prints where the time went."""
    args = make_parser().parse_args(argv)
    pattern = read_pattern(args.pattern)
    check_processes(args.processes)
    texts = TextFiles(args.text)
    check_new_tokenizer(args.output, texts.files, args.overwrite)
    announce(texts)
    special_tokens = args.special_tokens or [END_OF_TEXT]
    report = TrainingReport()
    vocab, merges = train_bpe(
        texts.files,
        args.vocab_size,
        special_tokens,
        pattern=pattern,
        ties=args.ties,
        num_processes=args.processes,
        errors=args.errors,
        text_field=args.text_field,
        progress=True,
        report=report,
    )
    Tokenizer(vocab, merges, special_tokens, pattern).save(args.output)
    if len(vocab) < args.vocab_size:
        print(f"the text has no more pairs to merge: {len(vocab):,} tokens, not {args.vocab_size:,}")
    print(*report.lines(), f"written         {args.output}", sep="\n")
