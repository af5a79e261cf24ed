"""The command `tokenization`, or `python -m tokenization`: train, encode, decode, inspect, compare, import, export."""

import argparse
import io
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenization.bpe import TIES, TrainingReport, train_bpe
from tokenization.corpus import Corpus
from tokenization.errors import ArgumentParser, InputError, describe_os_error, drop_stdout
from tokenization.folder import CONFIG_FILE, FILES, VOCAB_FILE, is_own_config, is_verified
from tokenization.interchange import (
    KNOWN_SPECIAL_TOKENS,
    export_huggingface,
    export_tiktoken,
    import_huggingface,
    import_tiktoken,
    is_huggingface,
    is_tiktoken,
)
from tokenization.outputs import check_file, check_folder, output_path
from tokenization.pretokenization import END_OF_TEXT, KERNELS_FROM_BYTES, PATTERNS
from tokenization.texts import Texts, reads
from tokenization.token_file import TokenFile, description_path, is_token_file
from tokenization.tokenizer import EncodingReport, Tokenizer

PILE_BYTES = 825e9  # the handout's yardstick for throughput

TRAIN_HELP = """Learn a byte-level BPE vocabulary from text and write it as a folder with vocab.json and merges.txt
(GPT-2's format) and tokenizer_config.json.

  tokenization train data/tinystories-train.txt.gz --vocab-size 10000 --output data/tokenizer
"""
ENCODE_HELP = """Turn text into a token file for training: raw uint16 ids (uint32 beyond 65,536) and a JSON beside it.
Several files are kept apart by <|endoftext|>.

  tokenization encode data/tinystories-train.txt.gz --tokenizer data/tokenizer --output data/train.bin
"""
DECODE_HELP = """Print the text of a token file, or a part of it.

  tokenization decode data/train.bin --tokenizer data/tokenizer --limit 200
"""
INSPECT_HELP = """Show what a tokenizer has learnt: its longest tokens, its first and its last merges.

  tokenization inspect data/tokenizer
"""
COMPARE_HELP = """Encode the beginning of each text with each tokenizer: bytes per token (more is better compression),
tokens per byte, the throughput of one core with warm caches, and the hours that the 825 GB of the Pile would take.
Throughput is that of large texts: a short one is repeated until it is one.

  tokenization compare data/tokenizer other/tokenizer --text stories.txt books.txt.gz
"""
IMPORT_HELP = """Make a tokenizer's folder of a Hugging Face tokenizer.json, of tiktoken's ranks, or of an older or a
foreign folder with vocab.json and merges.txt. A .tiktoken file has neither its pattern nor its special tokens in it:
--pattern gpt2, cl100k or o200k brings both. What would give other ids here is refused by name.

  tokenization import tokenizer.json --output data/theirs
  tokenization import cl100k_base.tiktoken --pattern cl100k --output data/cl100k
"""
EXPORT_HELP = """Write a tokenizer for other tools: a file named *.tiktoken for tiktoken, any other for Hugging Face.

  tokenization export data/tokenizer --output tokenizer.json
  tokenization export data/tokenizer --output mine.tiktoken
"""


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="tokenization", description=__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{train,encode,decode,inspect,compare,import,export}"
    )

    def add(name: str, run, text: str) -> ArgumentParser:
        command = commands.add_parser(
            name, help=text.split("\n")[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(run=run)
        return command

    train = add("train", run_train, TRAIN_HELP)
    train.add_argument("text", nargs="+", help="files, folders (their .txt, .txt.gz and .txt.zst) or globs")
    train.add_argument("--vocab-size", type=int, required=True, help="tokens in all: 256 bytes, special tokens, merges")
    train.add_argument(
        "--special-token",
        action="append",
        metavar="T",
        dest="special_tokens",
        help=f"a text that is always one token; may be repeated (default: {END_OF_TEXT})",
    )
    train.add_argument(
        "--pattern",
        default="gpt2",
        help="how text is split before merging: gpt2, cl100k, o200k, or a regular expression, whose matches are kept"
        " apart from what lies between them; a plain word as one is put in brackets, (word) (default: gpt2)",
    )
    train.add_argument(
        "--ties",
        choices=TIES,
        default=TIES[0],
        help="of equally frequent pairs, take the one whose bytes are greater, or the older one, as Hugging Face's"
        " trainer does (default: lexicographic)",
    )
    train.add_argument("--output", required=True, type=output_path, help="the folder to write")
    train.add_argument("--overwrite", action="store_true", help="replace a tokenizer that the folder already holds")

    encode = add("encode", run_encode, ENCODE_HELP)
    encode.add_argument("text", nargs="+", help="files, folders (their .txt, .txt.gz and .txt.zst) or globs")
    encode.add_argument("--tokenizer", required=True, help="a tokenizer's folder")
    encode.add_argument(
        "--output", required=True, type=output_path, help="the token file to write, for example data/train.bin"
    )
    encode.add_argument("--overwrite", action="store_true", help="replace a token file of this name")
    for command in (train, encode):
        command.add_argument(
            "--processes",
            "--threads",
            type=int,
            help="how many work at the same time (default: one per core); the result does not depend on it",
        )
        command.add_argument(
            "--errors",
            choices=("strict", "replace"),
            default="strict",
            help="bytes that are not UTF-8: stop and say where, or put U+FFFD (default: strict)",
        )

    decode = add("decode", run_decode, DECODE_HELP)
    decode.add_argument("tokens", help="a token file")
    decode.add_argument("--tokenizer", required=True, help="the folder of the tokenizer that made it")
    decode.add_argument("--start", type=int, default=0, help="the first token to print (default: 0)")
    decode.add_argument("--limit", type=int, help="how many tokens to print (default: all)")

    inspect = add("inspect", run_inspect, INSPECT_HELP)
    inspect.add_argument("tokenizer", help="a tokenizer's folder")
    inspect.add_argument("--count", type=int, default=10, help="how many of each to show (default: 10)")

    imported = add("import", run_import, IMPORT_HELP)
    imported.add_argument("source", help="a tokenizer.json, a *.tiktoken file, or a tokenizer's folder")
    imported.add_argument("--pattern", help="of a .tiktoken file: gpt2, cl100k, o200k, or a regular expression")
    imported.add_argument("--output", required=True, type=output_path, help="the folder to write")
    imported.add_argument("--overwrite", action="store_true", help="replace a tokenizer that the folder already holds")

    exported = add("export", run_export, EXPORT_HELP)
    exported.add_argument("tokenizer", help="a tokenizer's folder")
    exported.add_argument("--output", required=True, type=output_path, help="the file to write")
    exported.add_argument("--overwrite", action="store_true", help="replace a file of the same kind")

    compare = add("compare", run_compare, COMPARE_HELP)
    compare.add_argument("tokenizers", nargs="+", metavar="DIR", help="tokenizers' folders")
    compare.add_argument("--text", nargs="+", required=True, help="files, folders or globs")
    compare.add_argument("--megabytes", type=float, default=5.0, help="how much of each text (default: 5)")
    return parser


def check_new_tokenizer(folder: Path, inputs: Iterable[str | os.PathLike], overwrite: bool) -> None:
    """Said before the work is done, not after it."""
    check_folder(folder, inputs, FILES)
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        what = "a tokenizer" if VOCAB_FILE in held else f"a file {held[0]}"
        raise InputError(f"{folder}: already holds {what}; name another folder, or replace it with --overwrite")
    if not is_own_config(folder / CONFIG_FILE):
        raise InputError(f"{folder}: holds the {CONFIG_FILE} of another program; name another folder")


def announce(texts: Texts) -> None:
    """How many files there are, and what is passed over; not where each of them was named."""
    if texts.passed_over or texts.second_names or len(texts.files) != texts.num_inputs:
        print(texts.describe(), flush=True)


def read_pattern(argument: str) -> str:
    """A pattern by its name, or a regular expression; a plain word is taken for a name that does not exist."""
    if argument in PATTERNS:
        return PATTERNS[argument]
    if re.fullmatch(r"\w[\w.-]*|", argument):
        raise InputError(
            f"--pattern {argument!r}: no such pattern; there are {', '.join(PATTERNS)}, and regular expressions"
            f" (one that is a plain word is put in brackets: '({argument})')"
        )
    return argument


def run_train(args: argparse.Namespace) -> None:
    pattern = read_pattern(args.pattern)
    check_processes(args.processes)
    texts = Texts(args.text)
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
        progress=True,
        report=report,
    )
    Tokenizer(vocab, merges, special_tokens, pattern).save(args.output)
    if len(vocab) < args.vocab_size:
        print(f"the text has no more pairs to merge: {len(vocab):,} tokens, not {args.vocab_size:,}")
    print(*report.lines(), f"written         {args.output}", sep="\n")


def check_token_file(path: Path, texts: Texts, args: argparse.Namespace) -> None:
    for file in (path, description_path(path)):
        check_file(file, [*texts.files, args.tokenizer], "a token file", lambda _: is_token_file(path), args.overwrite)
        if (name := reads(args.text, file)) is not None:
            raise InputError(f"{file}: would be read as text of {name} from then on; choose another place or name")


def run_encode(args: argparse.Namespace) -> None:
    check_processes(args.processes)
    tokenizer = Tokenizer.load(args.tokenizer)
    texts = Texts(args.text)
    check_token_file(args.output, texts, args)
    announce(texts)
    start, report = time.perf_counter(), EncodingReport()
    file = tokenizer.encode_files(texts.files, args.output, args.processes, args.errors, progress=True, report=report)
    seconds, about = time.perf_counter() - start - report.compile_seconds, file.description
    print(
        f"{about.bytes / 1e6:.1f} MB of text, {about.documents:,} documents -> {about.tokens:,} {about.dtype} tokens"
        f" ({about.bytes / about.tokens:.2f} bytes each) in {seconds:.1f} s ({about.bytes / 1e6 / seconds:.1f} MB/s)"
    )
    compiling = f"; to load or to compile them took {report.compile_seconds:.1f} s more"
    print(f"computed by {report.path}{compiling if report.compile_seconds else ''}")
    print(f"written: {file.path} and {description_path(file.path).name}")


def run_decode(args: argparse.Namespace) -> None:
    tokenizer, file = Tokenizer.load(args.tokenizer), TokenFile.open(args.tokens)
    if file.description.tokenizer_sha256 != tokenizer.digest:
        raise InputError(f"{args.tokens}: was made by another tokenizer than {args.tokenizer}; name that one")
    if args.start < 0 or (args.limit or 0) < 0:
        raise InputError(f"--start {args.start} and --limit {args.limit} must not be negative")
    if args.start >= len(file):
        print(f"{args.tokens}: has {len(file):,} tokens, none from --start {args.start:,} on", file=sys.stderr)
    end = len(file) if args.limit is None else min(len(file), args.start + args.limit)

    def token_ids(chunk: int = 1 << 16) -> Iterator[int]:
        for start in range(args.start, end, chunk):
            yield from file.tokens[start : min(end, start + chunk)].tolist()

    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    for text in tokenizer.decode_iterable(token_ids()):
        sys.stdout.write(text)


def run_inspect(args: argparse.Namespace) -> None:
    if args.count < 1:
        raise InputError(f"--count {args.count}: at least one is needed")
    tokenizer = Tokenizer.load(args.tokenizer)
    special_tokens = {token.encode() for token in tokenizer.special_tokens}
    learnt = [token for token in tokenizer.vocab.values() if token not in special_tokens]
    print(f"{args.tokenizer}: {len(tokenizer.vocab):,} tokens, {len(tokenizer.merges):,} merges")
    print(f"special tokens: {' '.join(tokenizer.special_tokens) or 'none'}")
    print(f"pattern: {tokenizer.pattern}")
    print("digest:", "its files are as they were written" if is_verified(args.tokenizer) else "none, so unverified")
    print(
        "longest tokens:",
        *(f"  {len(token):3}  {show(token)}" for token in sorted(learnt, key=len, reverse=True)[: args.count]),
        sep="\n",
    )
    for title, merges in (("first", tokenizer.merges[: args.count]), ("last", tokenizer.merges[-args.count :])):
        print(f"{title} merges:", *(f"  {show(left)} + {show(right)}" for left, right in merges), sep="\n")


def run_compare(args: argparse.Namespace) -> None:
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
            kernels = tokenizer.code_for(KERNELS_FROM_BYTES).native
            repeats = math.ceil(KERNELS_FROM_BYTES / len(text)) if kernels else 1
            tokenizer.encode(text * repeats)  # fills the caches
            start = time.perf_counter()
            tokenizer.encode(text * repeats)
            speed = num_bytes * repeats / (time.perf_counter() - start)
            print(
                f"{folder:{width}}  {name:{text_width}}  {num_bytes / num_tokens:11.3f}  {num_tokens / num_bytes:11.4f}"
                f"  {speed / 1e6:6.2f}  {PILE_BYTES / speed / 3600:16.1f}"
            )


def run_import(args: argparse.Namespace) -> None:
    check_new_tokenizer(args.output, [args.source], args.overwrite)
    if args.source.endswith(".tiktoken"):
        if args.pattern is None:
            raise InputError(f"{args.source}: a .tiktoken file does not hold its pattern; give --pattern, e.g. cl100k")
        special_tokens = KNOWN_SPECIAL_TOKENS.get(args.pattern, {})
        tokenizer = import_tiktoken(args.source, read_pattern(args.pattern), special_tokens)
    else:
        if args.pattern is not None:
            raise InputError(f"{args.source}: a tokenizer.json holds its own pattern; leave --pattern out")
        tokenizer = (Tokenizer.load if Path(args.source).is_dir() else import_huggingface)(args.source)
    tokenizer.save(args.output)
    print(f"{len(tokenizer.vocab):,} tokens, {len(tokenizer.merges):,} merges -> {args.output}")
    if not is_verified(args.source):
        print(f"{args.source} has no digest: nothing tells whether it is as it was published")


def run_export(args: argparse.Namespace) -> None:
    tiktoken = args.output.name.endswith(".tiktoken")
    kind, is_kind = ("a tiktoken file", is_tiktoken) if tiktoken else ("a tokenizer.json", is_huggingface)
    check_file(args.output, [args.tokenizer], kind, is_kind, args.overwrite)
    tokenizer = Tokenizer.load(args.tokenizer)
    (export_tiktoken if tiktoken else export_huggingface)(tokenizer, args.output)
    print(f"{len(tokenizer.vocab):,} tokens -> {args.output}")
    if tiktoken and tokenizer.pattern not in PATTERNS.values():
        print(f"tiktoken drops what lies between matches of its pattern, here {tokenizer.pattern!r}")


def beginning(name: str, num_bytes: int) -> str:
    """The first num_bytes of text, give or take a block."""
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


def show(token: bytes) -> str:
    """Readable on one line, whatever the bytes: text in quotes, escapes for what is not UTF-8."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def check_processes(num_processes: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise InputError(f"--processes {num_processes}: at least one is needed")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = " ".join(["tokenization", *argv[:1]])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a token that the terminal's encoding lacks
    try:
        args = build_parser().parse_args(argv)
        args.run(args)
        sys.stdout.flush()
    except InputError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has left, as `head` does
        drop_stdout()
        return 141
    except OSError as error:
        print(f"{command}: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{command}: the memory does not suffice; raise its limit, or use fewer --processes", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted; no unfinished file is left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
