"""`tokenization train`: learn a vocabulary from text files."""

from argparse import Namespace
from collections.abc import Sequence

from tokenization.bpe import TIES, Merges, Vocabulary
from tokenization.commands import (
    PATTERNS_HELP,
    REPLACE_TOKENIZER_HELP,
    TEXT_HELP,
    ArgumentParser,
    add_reading_options,
    add_scaling_options,
    announce,
    check_processes,
    command_parser,
    output_path,
    read_pattern,
    reporting,
    size_in_bytes,
)
from tokenization.errors import InputError
from tokenization.formats.folder import check_new_tokenizer
from tokenization.formats.gpt2 import may_clash
from tokenization.outputs import check_folder
from tokenization.pretokenization import END_OF_TEXT
from tokenization.text.text_files import TextFiles
from tokenization.tokenizer import Tokenizer
from tokenization.training import TrainingReport, check_arguments, learn, train_bpe

HELP = """Learn a byte-level BPE vocabulary from text and write it as a folder with vocab.json and merges.txt
(GPT-2's format) and tokenizer_config.json.

  tokenization train data/tinystories-train.txt.gz --vocab-size 10000 --output data/tokenizer
  tokenization train 'crawl/*.jsonl.zst' --text-field body --vocab-size 32000 --output data/tokenizer

Several machines count the files of one text together if they share the folder --work; see docs/machines.md:

  tokenization train ... --work shared/counts --engine ray
  tokenization train ... --work shared/counts --part 0/8        and so on to 7/8, and then the same without --part
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
        help=f"how text is split before merging: {PATTERNS_HELP}; what lies between its matches is kept"
        " as well. A plain word must be in parentheses: (word) (default: gpt2)",
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
    parser.add_argument(
        "--work",
        type=output_path,
        metavar="DIR",
        help="count the files in groups, and keep the counts in this folder: an interrupted command continues from"
        " them, and another --vocab-size needs no counting",
    )
    parser.add_argument(
        "--group-size",
        type=size_in_bytes,
        metavar="SIZE",
        help="put about this much input into each group, by its size on the disk (default: 1GB)",
    )
    add_reading_options(parser)
    add_scaling_options(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Trains a tokenizer, writes its folder, and prints where the time went."""
    args = make_parser().parse_args(argv)
    args.pattern = read_pattern(args.pattern)
    args.special_tokens = args.special_tokens or [END_OF_TEXT]
    check_processes(args.processes)
    for text in filter(may_clash, args.special_tokens):
        raise InputError(f"special token {text!r} may read like an ordinary token in vocab.json; give it another name")
    check_work(args)
    texts = TextFiles(args.text)
    check_new_tokenizer(args.output, texts.files, args.overwrite)
    announce(texts)
    report = TrainingReport()
    train = train_here if args.work is None else train_in_groups
    learnt = train(args, texts, report)
    if learnt is None:
        print("when all are done, the same command without --part learns the vocabulary")
        return
    vocab, merges = learnt
    Tokenizer(vocab, merges, args.special_tokens, args.pattern).save(args.output)
    if len(vocab) < args.vocab_size:
        print(f"the text has no more pairs to merge: {len(vocab):,} tokens, not {args.vocab_size:,}")
    print(*report.lines(), f"written         {args.output}", sep="\n")


def check_work(args: Namespace) -> None:
    """Raises InputError for options that need a work folder, and for one that cannot be written."""
    given = {"engine": args.engine != "threads", "part": args.part is not None, "group-size": args.group_size}
    for name, value in given.items():
        if value and args.work is None:
            raise InputError(f"--{name}: needs --work DIR, a folder for the counts, which all machines share")
    if args.work is not None:
        check_folder(args.work)


def train_here(args: Namespace, texts: TextFiles, report: TrainingReport) -> tuple[Vocabulary, Merges]:
    """Counts all files and learns from the counts, in memory."""
    return train_bpe(
        texts.files,
        args.vocab_size,
        args.special_tokens,
        pattern=args.pattern,
        ties=args.ties,
        num_processes=args.processes,
        errors=args.errors,
        text_field=args.text_field,
        progress=True,
        report=report,
    )


def train_in_groups(args: Namespace, texts: TextFiles, report: TrainingReport) -> tuple[Vocabulary, Merges] | None:
    """Counts the files in groups, in the work folder, and learns from the sum; None if only a part is counted."""
    from tokenization.scaling.counting import GroupCounting
    from tokenization.scaling.engines import choose_engine
    from tokenization.scaling.plan import GROUP_BYTES
    from tokenization.scaling.tasks import Reading

    check_arguments(args.vocab_size, args.special_tokens, args.pattern, args.ties)
    reading = Reading(args.processes, args.errors, args.text_field, progress=True)
    engine = choose_engine(args.engine, args.part, args.processes)
    size = args.group_size or GROUP_BYTES
    counting = GroupCounting(texts.files, args.special_tokens, args.pattern, args.work, size, reading, engine)
    with reporting(counting, "groups"):
        counts = counting.run(report)
    if counts is None:
        return None
    return learn(*counts, args.vocab_size, args.special_tokens, args.ties, True, report)
