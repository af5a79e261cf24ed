"""`tokenization adopt`: take in a token file of another program."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from tokenization.adopting import Vocabulary, adopt
from tokenization.commands import TOKENIZER_HELP, ArgumentParser, command_parser, in_words, output_path
from tokenization.errors import InputError
from tokenization.outputs import check_file
from tokenization.tokenizer import Tokenizer
from tokenization.tokens.document_digests import digests_path
from tokenization.tokens.token_format import DTYPES, description_path, is_token_file
from tokenization.tokens.token_index import SUFFIX

HELP = """Convert a token file of another program: check every id, and write a token file for training. The
content tells the format: a .npy of one dimension, a .bin with the header of llm.c (and of modded-nanogpt), or a raw
.bin such as nanoGPT's. If a raw file could be either uint16 or uint32, give --dtype.

  tokenization adopt fineweb_train_000001.bin --tokenizer gpt2 --output data/fineweb/000001.bin
  tokenization adopt ids.npy --tokenizer data/tokenizer --output data/train.bin
  tokenization adopt train.bin --vocab-size 50257 --separator-id 50256 --output data/train.bin

`tokenization import` makes the folder of GPT-2's or another tokenizer, which `lm` needs: a file that was adopted with
--vocab-size alone is for other programs that read our format. `tokenization index` makes one set of many files.
"""


def make_parser() -> ArgumentParser:
    """Returns the parser of this command."""
    parser = command_parser("adopt", HELP)
    parser.add_argument("file", type=Path, help="the other program's token file")
    made_by = parser.add_mutually_exclusive_group(required=True)
    made_by.add_argument("--tokenizer", metavar="DIR", help=f"{TOKENIZER_HELP} that made it")
    made_by.add_argument("--vocab-size", type=int, metavar="N", help="how many ids there are, if the tokenizer is lost")
    parser.add_argument("--output", required=True, type=output_path, help="the token file to write")
    parser.add_argument("--dtype", choices=DTYPES, help="type of a raw file's ids, if its content does not show it")
    parser.add_argument(
        "--separator-id",
        type=int,
        metavar="N",
        help="the token between documents, to count them, 50256 in GPT-2's files (default: the tokenizer's"
        " <|endoftext|>)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a token file of this name")
    return parser


def run(argv: Sequence[str]) -> None:
    """Takes the file in, and prints what it was and what it has become."""
    args = make_parser().parse_args(argv)
    vocabulary = read_vocabulary(args)
    separator_id = args.separator_id
    if separator_id is None and vocabulary.tokenizer is not None:
        separator_id = vocabulary.tokenizer.end_of_text_id
    if separator_id is not None and not 0 <= separator_id < vocabulary.size:
        raise InputError(f"--separator-id {separator_id}: is not in the vocabulary of {vocabulary.size:,} tokens")
    check_output(args)
    foreign, file = adopt(args.file, args.output, vocabulary, args.dtype, separator_id)
    about = file.description
    documents = "" if separator_id is None else f", {about.documents:,} documents"
    text = f", {about.bytes / 1e6:.1f} MB of text" if vocabulary.tokenizer is not None else ""
    kind = f"{foreign.kind} {foreign.dtype.name} ids"
    print(f"{args.file}: {kind} -> {about.tokens:,} {about.dtype} tokens{documents}{text}")
    print(f"written: {in_words(file.path)}")


def read_vocabulary(args: argparse.Namespace) -> Vocabulary:
    """Returns the vocabulary that the ids must be in."""
    if args.tokenizer is not None:
        tokenizer = Tokenizer.load(args.tokenizer)
        return Vocabulary(tokenizer.vocab_size, tokenizer)
    if not 1 <= args.vocab_size <= 1 << 32:
        raise InputError(f"--vocab-size {args.vocab_size}: must be from 1 to {1 << 32:,}")
    return Vocabulary(args.vocab_size)


def check_output(args: argparse.Namespace) -> None:
    """Raises InputError where the token file or its JSON file cannot be written."""
    if args.output.suffix == SUFFIX:
        raise InputError(
            f"{args.output}: is the name of a token set, and this makes one token file; write {args.output}{os.sep}"
            f"{args.file.stem}.bin, and then run `tokenization index {shlex.quote(str(args.output))}`"
        )
    inputs = [args.file, *([args.tokenizer] if args.tokenizer is not None else [])]
    for path in (args.output, description_path(args.output), digests_path(args.output)):
        check_file(path, inputs, "a token file", lambda _: is_token_file(args.output), args.overwrite)
