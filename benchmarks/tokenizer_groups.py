"""Times counting and encoding in groups on one machine, as `--work` and token sets do it, beside the direct way.

  python benchmarks/tokenizer_groups.py english.txt --tokenizer DIR --pairs 10

Both ways take turns in one process, with kernels that are loaded, on the text cut into some files. A ratio is
groups / direct within a pair, by the clock, and in CPU seconds, which suffer less from other programs. Merges and ids
must be equal before any number is printed.

  train       train_bpe of all files          GroupCounting into a work folder, and learning
  encode      encode_files to one file        SetEncoding to a token set, its index included
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
CUT_AT = b"\n\n"  # a file ends before it, and the next one begins with it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 file of more than 4 MB, better some 100 MB")
    parser.add_argument("--tokenizer", type=Path, required=True, help="to encode with: a folder of `tokenization`")
    parser.add_argument("--files", type=int, default=4, help="that the text is cut into (default: 4)")
    parser.add_argument("--groups", type=int, default=1, help="of files, and shards (default: 1)")
    parser.add_argument("--vocab-size", type=int, default=32000, help="to train (default: 32000)")
    parser.add_argument("--threads", type=int, help="(default: one per core)")
    parser.add_argument("--pairs", type=int, default=10, help="(default: 10)")
    args = parser.parse_args()
    check(args)
    with tempfile.TemporaryDirectory() as name:
        files = cut(args.text, args.files, Path(name))
        for title, ways in (("train", training(args, files)), ("encode", encoding(args, files))):
            print(title, *compare(*ways, Path(name), args.pairs), sep="\n")


def check(args: argparse.Namespace) -> None:
    """Refuses, with one line, what cannot be followed."""
    if not args.text.is_file():
        refuse(f"{args.text}: no such file")
    if not (args.tokenizer / "vocab.json").is_file():
        refuse(f"{args.tokenizer}: holds no tokenizer; make one with `tokenization train` or `tokenization import`")
    for option, number in (("files", args.files), ("groups", args.groups), ("pairs", args.pairs)):
        if number < 1:
            refuse(f"--{option} {number}: at least one is needed")


def refuse(message: str) -> NoReturn:
    print(f"tokenizer_groups.py: {message}", file=sys.stderr)
    sys.exit(2)


def cut(text: Path, count: int, folder: Path) -> list[Path]:
    """Writes a text as several files of about one size."""
    data, begin, files = text.read_bytes(), 0, []
    for number in range(count):
        end = data.find(CUT_AT, len(data) * (number + 1) // count) if number < count - 1 else -1
        files.append(folder / f"{number:03}.txt")
        files[-1].write_bytes(data[begin : end if end >= 0 else None])
        begin = end if end >= 0 else len(data)
    return [file for file in files if file.stat().st_size]


Way = Callable[[Path], object]  # what it makes in a folder; equal for both ways


def training(args: argparse.Namespace, files: list[Path]) -> tuple[Way, Way]:
    from tokenization import END_OF_TEXT, GPT2_PATTERN, TrainingReport, train_bpe
    from tokenization.bpe import TIES
    from tokenization.scaling.counting import GroupCounting
    from tokenization.scaling.tasks import Reading
    from tokenization.training import learn

    special, size = [END_OF_TEXT], group_bytes(files, args.groups)

    def direct(folder: Path) -> object:
        return train_bpe(files, args.vocab_size, special, num_processes=args.threads)

    def groups(folder: Path) -> object:
        reading = Reading(args.threads)
        counts = GroupCounting(files, special, GPT2_PATTERN, folder / "work", size, reading).run()
        assert counts is not None
        return learn(*counts, args.vocab_size, special, TIES[0], False, TrainingReport())

    return direct, groups


def encoding(args: argparse.Namespace, files: list[Path]) -> tuple[Way, Way]:
    from tokenization import Tokenizer
    from tokenization.scaling.set_encoding import SetEncoding
    from tokenization.scaling.tasks import Reading

    tokenizer, size = Tokenizer.load(args.tokenizer), group_bytes(files, args.groups)

    def direct(folder: Path) -> object:
        return tokenizer.encode_files(files, folder / "ids.bin", args.threads).description

    def groups(folder: Path) -> object:
        file = SetEncoding(tokenizer, files, folder / "ids.tokens", size, Reading(args.threads)).run()
        assert file is not None
        return file.description

    return direct, groups


def group_bytes(files: list[Path], count: int) -> int:
    """Returns the size of groups of which there are about so many."""
    return -(-sum(file.stat().st_size for file in files) // count)


def compare(direct: Way, groups: Way, folder: Path, pairs: int) -> list[str]:
    """Runs both ways in turn, the first pair uncounted, and returns lines of times and ratios."""
    seconds = []
    for _ in range(pairs + 1):
        pair = [measure(way, folder) for way in (direct, groups)]
        if pair[0][0] != pair[1][0]:
            sys.exit("the merges or ids of the two ways differ; nothing is reported")
        seconds.append([times for _, times in pair])
    lines = [f"{'':10}{'direct':>8}{'groups':>8}   groups / direct: median, least, greatest"]
    for row, name in enumerate(("clock", "CPU")):
        before, after = ([times[row] for times in way] for way in zip(*seconds[1:], strict=True))
        ratios = [new / old for old, new in zip(before, after, strict=True)]
        middle = statistics.median(ratios)
        lines.append(
            f"{name:10}{statistics.median(before):8.2f}{statistics.median(after):8.2f}"
            f"{middle:18.3f}{min(ratios):8.3f}{max(ratios):8.3f}"
        )
    return lines


def measure(way: Way, folder: Path) -> tuple[object, tuple[float, float]]:
    """Returns what a way makes, in a new folder, and its seconds by the clock and the processor."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        start = time.perf_counter(), time.process_time()
        result = way(Path(empty))
        return result, (time.perf_counter() - start[0], time.process_time() - start[1])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
