"""`tokenization encode`: turn text files into a token file, or a token set."""

import os
import shlex
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tokenization.commands import (
    TEXT_HELP,
    TOKENIZER_HELP,
    ArgumentParser,
    add_reading_options,
    add_scaling_options,
    announce,
    check_processes,
    command_parser,
    in_words,
    output_name,
    reporting,
    size_in_bytes,
)
from tokenization.encoding import EncodingReport
from tokenization.errors import InputError
from tokenization.outputs import check_file, check_folder
from tokenization.text.text_files import TextFiles, refuse_read_back
from tokenization.tokenizer import Tokenizer
from tokenization.tokens.document_digests import digests_path
from tokenization.tokens.token_file import TokenFile
from tokenization.tokens.token_format import description_path, is_token_file
from tokenization.tokens.token_index import INDEX, SUFFIX

HELP = """Turn text into a token file for training: raw uint16 ids (uint32 for more than 65,536 tokens), with a JSON
file beside it. <|endoftext|> is put between files, and between the documents of one file. Special tokens written
out in a record of .jsonl or .parquet are plain text there.

An output that ends with / or .tokens is a token set: a folder of such files, which is used as if it were one. A file
is never cut: each shard holds the tokens of some files, about --shard-size together. If the command is interrupted,
the same command continues with the next shard.

  tokenization encode data/tinystories-train.txt.gz --tokenizer data/tokenizer --output data/train.bin
  tokenization encode https://example.org/a.jsonl.gz --tokenizer data/tokenizer --output data/a.bin
  tokenization encode crawl/ --text-field body --tokenizer data/tokenizer --output data/train.bin
  tokenization encode crawl/*.jsonl.zst --tokenizer data/tokenizer --output data/crawl.tokens/ --shard-size 500MB

Several machines that share a disk encode one set with --engine ray, or each a part of it; see docs/machines.md:

  tokenization encode ... --output shared/crawl.tokens/ --part 0/8        and so on to 7/8, and then
  tokenization index shared/crawl.tokens
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("encode", HELP)
    parser.add_argument("text", nargs="+", help=TEXT_HELP)
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help=TOKENIZER_HELP)
    parser.add_argument(
        "--output",
        required=True,
        type=output_name,
        help="the token file to write, for example data/train.bin, or the folder of a token set, data/train.tokens/",
    )
    parser.add_argument(
        "--shard-size",
        type=size_in_bytes,
        metavar="SIZE",
        help="put about this much input into each shard of a token set, by its size on the disk (default: 1GB)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a token file or token set of this name")
    add_reading_options(parser)
    add_scaling_options(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Encodes the files and prints how much text became how many tokens, and how fast."""
    args = make_parser().parse_args(argv)
    check_processes(args.processes)
    tokenizer = Tokenizer.load(args.tokenizer)
    texts = TextFiles(args.text)
    makes_set = args.output.endswith(("/", os.sep, SUFFIX))
    check = check_set_output if makes_set else check_output
    check(args, texts)
    announce(texts)
    start, report = time.perf_counter(), EncodingReport()
    encode = encode_set if makes_set else encode_file
    file = encode(args, tokenizer, texts, report)
    if file is None:
        return
    seconds, about = time.perf_counter() - start - sum(report.seconds.values()), file.description
    documents = f"{about.documents:,} document{'' if about.documents == 1 else 's'}"
    speed = "" if report.kept else f" in {seconds:.1f} s ({about.bytes / 1e6 / seconds:.1f} MB/s)"
    print(
        f"{about.bytes / 1e6:.1f} MB of text, {documents} -> {about.tokens:,} {about.dtype} tokens"
        f" ({about.bytes / about.tokens:.2f} bytes each){speed}"
    )
    waited = [f"; {phase} them took {spent:.1f} s more" for phase, spent in report.seconds.items()]
    print(f"computed by {report.path}{''.join(waited)}")
    print(f"written: {f'{file.path} and {INDEX}' if makes_set else in_words(file.path)}")


def encode_file(args: Namespace, tokenizer: Tokenizer, texts: TextFiles, report: EncodingReport) -> TokenFile:
    """Encodes the files into one token file."""
    return tokenizer.encode_files(
        texts.files, args.output, args.processes, args.errors, True, report, text_field=args.text_field
    )


def encode_set(args: Namespace, tokenizer: Tokenizer, texts: TextFiles, report: EncodingReport) -> TokenFile | None:
    """Encodes the files into a token set, or a part of them: then there is no set yet, and None is returned."""
    from tokenization.scaling.set_encoding import replacing

    if not args.overwrite:
        return encode_into(Path(args.output), args, tokenizer, texts, report)
    with replacing(Path(args.output)) as folder:
        encode_into(folder, args, tokenizer, texts, report)
    return TokenFile.open(args.output)


def encode_into(
    folder: Path, args: Namespace, tokenizer: Tokenizer, texts: TextFiles, report: EncodingReport
) -> TokenFile | None:
    """Encodes the files into a folder, which may hold the shards that an interrupted encoding has left."""
    from tokenization.scaling.engines import choose_engine
    from tokenization.scaling.plan import GROUP_BYTES
    from tokenization.scaling.set_encoding import SetEncoding
    from tokenization.scaling.tasks import Reading

    reading = Reading(args.processes, args.errors, args.text_field, progress=True)
    engine = choose_engine(args.engine, args.part, args.processes)
    encoding = SetEncoding(tokenizer, texts.files, folder, args.shard_size or GROUP_BYTES, reading, engine)
    with reporting(encoding, "shards"):
        file = encoding.run(report)
    if file is None:
        print(f"when all are done: tokenization index {shlex.quote(str(folder))}")
    return file


def check_set_output(args: Namespace, texts: TextFiles) -> None:
    """Raises InputError where the folder cannot be written, or its files would be read as text next time."""
    check_folder(Path(args.output))
    if args.overwrite and args.part is not None:
        raise InputError(f"--overwrite: not with --part, because several parts run at once; delete {args.output} first")
    refuse_read_back(args.text, Path(args.output, "00000.bin"), args.output)


def check_output(args: Namespace, texts: TextFiles) -> None:
    """Raises InputError where the token file or its JSON file cannot be written, or would be read as text next time."""
    output = Path(args.output)
    given = {"shard-size": args.shard_size, "part": args.part is not None, "engine": args.engine != "threads"}
    for option, value in given.items():
        if value:
            raise InputError(
                f"--{option}: is for a token set; {output} is one file, {output.stem}.tokens/ would be a set"
            )
    for file in (output, description_path(output), digests_path(output)):
        inputs = [*texts.files, args.tokenizer]
        check_file(file, inputs, "a token file", lambda _: is_token_file(output), args.overwrite)
        refuse_read_back(args.text, file)
