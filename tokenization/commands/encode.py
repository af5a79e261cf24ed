"""`tokenization encode`: turn text files into a token file."""

import time
from collections.abc import Sequence
from pathlib import Path

from tokenization.commands import (
    TEXT_HELP,
    TOKENIZER_HELP,
    ArgumentParser,
    add_reading_options,
    announce,
    check_processes,
    command_parser,
    output_path,
)
from tokenization.encoding import EncodingReport
from tokenization.errors import InputError
from tokenization.outputs import check_file
from tokenization.text_files import TextFiles, reads
from tokenization.token_file import description_path, is_token_file
from tokenization.tokenizer import Tokenizer

HELP = """Turn text into a token file for training: raw uint16 ids (uint32 for more than 65,536 tokens), with a JSON
file beside it. <|endoftext|> is put between files, and between the documents of one. Special tokens that are written
out in a record of .jsonl or .parquet are text there.

  tokenization encode data/tinystories-train.txt.gz --tokenizer data/tokenizer --output data/train.bin
  tokenization encode https://example.org/a.jsonl.gz --tokenizer data/tokenizer --output data/a.bin
  tokenization encode crawl/ --text-field body --tokenizer data/tokenizer --output data/train.bin
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("encode", HELP)
    parser.add_argument("text", nargs="+", help=TEXT_HELP)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=TOKENIZER_HELP)
    parser.add_argument(
        "--output", required=True, type=output_path, help="the token file to write, for example data/train.bin"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a token file of this name")
    add_reading_options(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Encodes the files and prints how much text became how many tokens, and how fast."""
    args = make_parser().parse_args(argv)
    check_processes(args.processes)
    tokenizer = Tokenizer.load(args.tokenizer)
    texts = TextFiles(args.text)
    check_output(args.output, texts, args.text, args.tokenizer, args.overwrite)
    announce(texts)
    start, report = time.perf_counter(), EncodingReport()
    file = tokenizer.encode_files(
        texts.files, args.output, args.processes, args.errors, True, report, text_field=args.text_field
    )
    seconds, about = time.perf_counter() - start - sum(report.seconds.values()), file.description
    print(
        f"{about.bytes / 1e6:.1f} MB of text, {about.documents:,} documents -> {about.tokens:,} {about.dtype} tokens"
        f" ({about.bytes / about.tokens:.2f} bytes each) in {seconds:.1f} s ({about.bytes / 1e6 / seconds:.1f} MB/s)"
    )
    waited = [f"; {phase} them took {spent:.1f} s more" for phase, spent in report.seconds.items()]
    print(f"computed by {report.path}{''.join(waited)}")
    print(f"written: {file.path} and {description_path(file.path).name}")


def check_output(output: Path, texts: TextFiles, names: Sequence[str], tokenizer: str, overwrite: bool) -> None:
    """Raises InputError where the token file or its JSON file cannot be written, or would be read as text next time.

    names: the files as they were given, among them folders and globs.
    """
    for file in (output, description_path(output)):
        check_file(file, [*texts.files, tokenizer], "a token file", lambda _: is_token_file(output), overwrite)
        if (name := reads(names, file)) is not None:
            raise InputError(f"{file}: would be read as text of {name} from then on; choose another place or name")
