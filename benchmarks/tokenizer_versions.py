"""Times the tokenizer of two checkouts in turn: CPU seconds of whole processes and of what they do, and ratios by pair.

  python benchmarks/tokenizer_versions.py OLD_CHECKOUT english.txt --vocab vocab.json --merges merges.txt --pairs 10

A checkout of an older version: `git worktree add ../old COMMIT`. Every measurement is a process of its own, the older
version and this one in turn, so that a machine whose speed drifts slows both. A ratio is new / old within a pair. The
first pair, which is not counted, compiles the kernels into a cache folder of its own for each version; with --compile
every pair does. Merges and ids must be equal before any number is printed.

  start     imports, and loading the kernels (or compiling them): the first training less the second one
  train     the second training
  encode    the second encoding with GPT-2's vocabulary, to a file
  process   everything, the interpreter's start and both first times among it
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

ROWS = ("start", "train", "encode", "process")

MEASURE = """
import json, sys, tempfile, time
from hashlib import sha256
from pathlib import Path
from tokenization import END_OF_TEXT, Tokenizer, TrainingReport, train_bpe

text, vocab, merges, size, threads = sys.argv[1:]
marks = [0.0]
for _ in range(2):
    report = TrainingReport()
    learnt = train_bpe(text, int(size), [END_OF_TEXT], num_processes=int(threads), report=report)[1]
    marks.append(time.process_time())
assert report.path == "compiled kernels", report.path
tokenizer = Tokenizer.from_files(vocab, merges, [END_OF_TEXT])
digests = [sha256(repr(learnt).encode()).hexdigest()]
with tempfile.TemporaryDirectory() as folder:
    for _ in range(2):
        marks.append(time.process_time())
        tokenizer.encode_files([text], Path(folder) / "ids.bin", int(threads))
    encode = time.process_time() - marks[-1]
    digests.append(sha256((Path(folder) / "ids.bin").read_bytes()).hexdigest())
train = marks[2] - marks[1]
print(json.dumps({"start": marks[1] - train, "train": train, "encode": encode, "digests": digests}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the checkout to compare with")
    parser.add_argument("text", type=Path, help="a UTF-8 file of more than 4 MB, better some 100 MB")
    parser.add_argument("--new", type=Path, default=Path(__file__).parent.parent, help="(default: this checkout)")
    parser.add_argument("--vocab", type=Path, required=True, help="GPT-2's vocab.json")
    parser.add_argument("--merges", type=Path, required=True, help="GPT-2's merges.txt")
    parser.add_argument("--vocab-size", type=int, default=32000, help="to train (default: 32000)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--pairs", type=int, default=10, help="(default: 10)")
    parser.add_argument("--compile", action="store_true", help="compile in every process, instead of loading a cache")
    args = parser.parse_args()
    check(args)
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            [measure(checkout, Path(folder) / name, args) for name, checkout in (("old", args.old), ("new", args.new))]
            for _ in range(args.pairs + 1)
        ][1:]
    digests = {tuple(run["digests"]) for pair in pairs for run in pair}
    if len(digests) > 1:
        sys.exit("the merges or ids of the two versions differ; nothing is reported")
    print(f"{args.text.name}, {args.vocab_size:,} tokens, {args.threads} threads, {args.pairs} pairs; CPU seconds")
    print(f"{'':10}{'old':>8}{'new':>8}   new / old: median, least, greatest")
    for row in ROWS:
        old, new = ([run[row] for run in runs] for runs in zip(*pairs, strict=True))
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        middle = statistics.median(ratios)
        print(
            f"{row:10}{statistics.median(old):8.2f}{statistics.median(new):8.2f}"
            f"{middle:14.3f}{min(ratios):8.3f}{max(ratios):8.3f}"
        )


def check(args: argparse.Namespace) -> None:
    """Refuses, with one line, what cannot be followed."""
    for checkout in (args.old, args.new):
        if not (checkout / "tokenization" / "__init__.py").is_file():
            refuse(f"{checkout}: is no checkout of this package; make one with `git worktree add {checkout} COMMIT`")
    for path in (args.text, args.vocab, args.merges):
        if not path.is_file():
            refuse(f"{path}: no such file")
    for option, number in (("pairs", args.pairs), ("threads", args.threads)):
        if number < 1:
            refuse(f"--{option} {number}: at least one is needed")


def refuse(message: str) -> NoReturn:
    print(f"tokenizer_versions.py: {message}", file=sys.stderr)
    sys.exit(2)


def measure(checkout: Path, cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs MEASURE in a process of its own; adds the CPU seconds of the whole process."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    files = (str(path.resolve()) for path in (args.text, args.vocab, args.merges))
    command = [sys.executable, "-c", MEASURE, *files, str(args.vocab_size), str(args.threads)]
    with tempfile.TemporaryDirectory() as empty:
        folder = empty if args.compile else str(cache)
        environment |= {"TOKENIZATION_CACHE_DIR": folder, "NUMBA_CACHE_DIR": folder}  # older versions ask Numba's
        before = os.times()
        # cwd: Python looks for packages in the current folder before PYTHONPATH
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=empty, check=False)
        after = os.times()
    if done.returncode:
        refuse(f"{checkout}: {(done.stderr.strip().splitlines() or ['ended without a word'])[-1]}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"process": seconds}


if __name__ == "__main__":
    main()
