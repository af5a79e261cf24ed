"""The commands of `tokenization`, one file each, and what they share.

Every file has HELP, `make_parser` and `run`, which takes the arguments after the command's name and prints the result.
`run` raises InputError before it begins to work where the arguments, an input or an output will not do.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tokenization.errors import InputError, did_you_mean
from tokenization.numerals import decimal_number, whole_number
from tokenization.pretokenization import PATTERNS
from tokenization.text.places import is_url
from tokenization.text.text_files import TextFiles
from tokenization.tokens.document_digests import digests_path
from tokenization.tokens.token_format import description_path

if TYPE_CHECKING:
    from tokenization.scaling.work import Work

Number = TypeVar("Number", int, float)

TEXT_HELP = (
    "files, folders (their .txt, .md, .jsonl, .ndjson and .parquet files), globs or URLs, compressed (.gz, .zst,"
    " .bz2, .xz) or not; each record of .jsonl, .ndjson and .parquet is a document"
)
UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3}
TOKENIZER_HELP = "the folder of a tokenizer"
PATTERNS_HELP = f"{', '.join(PATTERNS)}, or a regular expression"
REPLACE_TOKENIZER_HELP = "replace the tokenizer that the folder holds"


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises InputError, with one line, instead of printing its usage and leaving.

    Numbers are read as numerals.py reads them.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self.register("type", int, lambda text: _number(whole_number, text, "digits alone, as in 10000"))
        self.register("type", float, lambda text: _number(decimal_number, text, "a number such as 0.5 or 1e-3"))

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w.-]+)", message)
        message += did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        raise InputError(f"{message}; `{self.prog} --help` lists what there is")


def _number(read: Callable[[str], Number], text: str, remedy: str) -> Number:
    try:
        return read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write {remedy}") from None


def command_parser(name: str, description: str) -> ArgumentParser:
    """Returns a parser without arguments for `tokenization NAME`, which shows the description as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    return ArgumentParser(prog=f"tokenization {name}", description=description, formatter_class=raw)


def output_path(text: str) -> Path:
    """Converts the value of an option that names an output; an empty one comes from an unset shell variable.

    A URL is refused: as a path, s3://a/b would be a local folder s3:, in which nobody looks.
    """
    if not text:
        raise argparse.ArgumentTypeError("is empty; name what is to be written")
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL, and only text is read from those; name one on a disk")
    return Path(text)


def output_name(text: str) -> str:
    """Converts the value of --output, and keeps a / at its end."""
    output_path(text)
    return text


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the commands that read whole files in parallel."""
    parser.add_argument(
        "--processes",
        "--threads",
        type=int,
        metavar="N",
        help="the number of processes or threads (default: one per core; in a task on Ray: one); the result does not"
        " depend on it",
    )
    add_text_options(parser)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how text is read: where it stands in a record, and what to do where it is not UTF-8."""
    parser.add_argument(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="what to do with bytes that are not UTF-8: stop and say where, or insert U+FFFD (default: strict)",
    )
    parser.add_argument(
        "--text-field",
        metavar="NAME",
        help="the field of a record that holds its text, such as body or message.content (default: text or content)",
    )


def add_scaling_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the commands whose work can be given to several processes or machines."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--engine",
        default="threads",
        metavar="ENGINE",
        help="what runs the tasks: threads, in this process; ray, on the cluster that RAY_ADDRESS names or that runs"
        " here, or else on this machine's cores; ray://HOST:PORT, on that cluster (default: threads)",
    )
    group.add_argument(
        "--part",
        metavar="I/N",
        help="do the I-th of N parts, counted from 0, for a SLURM array or an indexed job of Kubernetes",
    )


@contextmanager
def reporting(work: "Work", what: str) -> Iterator[None]:
    """Prints what is done already and what is made anew; in the end, or after Ctrl-C, how far the work has come."""
    total = len(work.plan.groups)
    if work.done:
        print(f"resuming: {len(work.done):,} of {total:,} {what} are done", flush=True)
    if work.outdated:
        print(f"{what} of other inputs or settings, made again: {len(work.outdated):,}", flush=True)
    try:
        yield
    except KeyboardInterrupt:
        done = f"{len(work.done):,} of {total:,} {what} are done"
        print(f"{done}; the same command resumes with the next", file=sys.stderr)
        raise
    finally:
        if work.mended:
            print(f"damaged or missing, made again: {', '.join(work.mended)}")
    if not work.engine.takes_all:
        print(f"{len(work.done):,} of {total:,} {what} are done")


def size_in_bytes(text: str) -> int:
    """Converts the value of an option that is a size: "500MB" -> 500,000,000."""
    match = re.fullmatch(r"([0-9]{1,9}) ?([KMG]?)B?", text.strip().upper())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; 500MB is 500,000,000 bytes")
    return size


def check_processes(num_processes: int | None) -> None:
    """Raises InputError for a number of processes below 1."""
    if num_processes is not None and num_processes < 1:
        raise InputError(f"--processes {num_processes}: at least one is needed")


def read_pattern(argument: str) -> str:
    """Returns the pattern of this name, or the argument itself if it is a regular expression.

    A plain word that is no name raises InputError: it is a misspelt name more often than a pattern.
    """
    if argument in PATTERNS:
        return PATTERNS[argument]
    if re.fullmatch(r"\w[\w.-]*|", argument):
        raise InputError(
            f"--pattern {argument!r}: no such pattern; there are {', '.join(PATTERNS)}, and regular expressions"
            f" (put one that is a plain word in parentheses: '({argument})')"
        )
    return argument


def announce(texts: TextFiles) -> None:
    """Prints what is read and what is passed over, unless every file was named by itself."""
    if texts.passed_over or texts.second_names or len(texts.files) != texts.num_inputs:
        print(texts.summary(), flush=True)


def in_words(token_file: Path) -> str:
    """Names a token file and the files that stand beside it."""
    beside = (description_path(token_file), digests_path(token_file))
    *names, last = [str(token_file), *(path.name for path in beside if path.exists())]
    return f"{', '.join(names)} and {last}"
