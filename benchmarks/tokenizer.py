"""Measures this package and the fast libraries that are installed: who encodes what, and how fast.

  python benchmarks/tokenizer.py --data FOLDER --json results.json --markdown docs/tokenizer-speed.md     half an hour
  python benchmarks/tokenizer.py --data FOLDER --sections documents kinds                 some sections
  python benchmarks/tokenizer.py --small                                                  the script itself tried out

  documents   English of 100 B to 10 MB, as lists and arrays; lines in batches and as a stream; decoding
  kinds       English, many languages, source code, CJK with each vocabulary: the first time, and again
  start       import, load, first call
  train       learning 32,000 tokens
  files       whole files

Libraries: tiktoken, tokenizers, gigatoken, fastokens, quicktok-v1, toktok-rs, gigabpe. Those that are missing are named
and left out, and so is whoever gives other ids. FOLDER holds texts and published vocabularies, see
tokenizer_stages/texts.py; without it there are this repository's stories, random words, and small vocabularies made
here. Times of documents are CPU seconds, taken in turn in one process, so that a machine whose speed drifts slows all.
Results are written after every job, so that a run that is interrupted loses nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

from tokenizer_stages.peers import LOAD, OURS, TRAINERS, Vocabulary, installed, takes

SECTIONS = ("documents", "kinds", "start", "train", "files")
VOCABULARIES = ("gpt2", "cl100k", "o200k")  # the kinds of text are measured with all of them,
BY_SIZE = ("gpt2", "cl100k")  # documents by size and training with these, whole files with the first
ONCE_FROM_SECONDS = 10  # what takes as long as this is not repeated
Job = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="texts and vocabularies")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="(default: all)")
    parser.add_argument("--only", nargs="+", metavar="LIBRARY", help="these libraries beside ours (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the tables into this file: between its two marks, or all of it where there are none (default: print"
        " them)",
    )
    parser.add_argument("--megabytes", type=float, default=100, help="of text to train on and to encode (default: 100)")
    parser.add_argument("--vocab-size", type=int, default=32000, help="to train (default: 32000)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--repeat", type=int, default=2, help="processes for each start, training, file (default: 2)")
    parser.add_argument("--small", action="store_true", help="small texts, once: seconds, and figures of no worth")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # JSON: what a process measures
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # for its files
    args = parser.parse_args()
    if args.job:
        print(json.dumps(work(json.loads(args.job), args)))
        return
    check(args)
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
        args.folder = Path(folder)
        results = measure(args)
    if not args.markdown:
        from tokenizer_stages.tables import tables

        print(tables(results))


def check(args: argparse.Namespace) -> None:
    """Refuses, with one line, what cannot be followed."""
    known = {*LOAD, *TRAINERS} - {OURS}
    if args.data is not None and not args.data.is_dir():
        refuse(f"--data {args.data}: no such folder; name one with english*.txt and so on, or leave it out")
    if unknown := set(args.only or ()) - known:
        refuse(f"--only {' '.join(sorted(unknown))}: no such library; there are {', '.join(sorted(known))}")
    for option, path in (("json", args.json), ("markdown", args.markdown)):
        if path is not None and not path.absolute().parent.is_dir():
            refuse(f"--{option} {path}: in a folder that does not exist; make it first")
    if not 0 < args.megabytes < float("inf"):
        refuse(f"--megabytes {args.megabytes:g}: must be more than 0")
    if args.vocab_size < 257:
        refuse(f"--vocab-size {args.vocab_size}: 256 bytes and <|endoftext|> need 257")
    for option, number in (("threads", min(args.threads)), ("repeat", args.repeat)):
        if number < 1:
            refuse(f"--{option} {number}: at least one is needed")


def refuse(message: str) -> NoReturn:
    print(f"tokenizer.py: {message}", file=sys.stderr)
    sys.exit(2)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all jobs one after another, each as a process, and returns their rows and what they ran on."""
    from tokenizer_stages.texts import write_english, write_vocabularies

    if args.small:
        args.megabytes, args.vocab_size, args.repeat, args.threads = 0.1, 400, 1, [1]
    say("texts and vocabularies")
    write_vocabularies(args.folder, args.data, VOCABULARIES[:1] if args.small else VOCABULARIES)
    write_english(args.folder / "english.txt", args.data, int(args.megabytes * 1e6))
    versions = installed(args.only)
    absent = [name for name in (*LOAD, *TRAINERS) if name not in versions and (not args.only or name in args.only)]
    results: dict[str, Any] = {
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "versions": versions,
        "absent": sorted(set(absent)),
        "arguments": sys.argv[1:],
        "rows": [],
    }
    seconds: dict[str, float] = {}
    todo = jobs(args, list(versions))
    try:
        for number, job in enumerate(todo, start=1):
            title, start = " ".join(map(str, job.values())), time.perf_counter()
            if seconds.get(title, 0) < ONCE_FROM_SECONDS:
                say(f"{number}/{len(todo)} {title}", end=" ")
                results["rows"] += run_process(job, args)
                seconds[title] = time.perf_counter() - start
                say(f"{seconds[title]:.1f} s")
                write(results, args)
    except KeyboardInterrupt:
        say("interrupted; what follows is what was measured until then")
    results["rows"] = agreeing(results["rows"], announce=True)
    write(results, args)
    return results


def write(results: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes what has been measured so far into the files that were asked for."""
    from marks import into_document
    from tokenizer_stages.tables import tables

    from tokenization.files import write_text

    results = results | {"rows": agreeing(results["rows"])}
    if args.json:
        write_text(args.json, json.dumps(results, indent=1) + "\n")
    if args.markdown:
        document = args.markdown.read_text(encoding="utf-8") if args.markdown.exists() else ""
        write_text(args.markdown, into_document(tables(results), document, "tokenizer.py"))


def jobs(args: argparse.Namespace, libraries: list[str]) -> list[Job]:
    """Lists what is to be measured; what is repeated is taken in turn."""
    from tokenizer_stages.processes import ENCODERS, can_train
    from tokenizer_stages.texts import KINDS

    all_of_them = Vocabulary.read(args.folder)
    by_size = [name for name in BY_SIZE if name in all_of_them]
    kinds = KINDS[:1] if args.small else KINDS
    found: list[Job] = [{"section": "documents", "vocabulary": name} for name in by_size]
    found += [{"section": "kinds", "vocabulary": name, "text": kind} for name in all_of_them for kind in kinds]
    for _ in range(args.repeat):
        for name, vocabulary in all_of_them.items():
            loading = [library for library in libraries if library in LOAD and takes(library, vocabulary)]
            start = {"section": "start", "vocabulary": name}
            found += [start | {"library": library} for library in loading]
            found.append(start | {"library": OURS, "fresh": "the first time"})
        for name in by_size:
            training = [library for library in libraries if library in TRAINERS and can_train(library, name)]
            job = {"section": "train", "vocabulary": name}
            found += [job | {"library": library, "threads": max(args.threads)} for library in training]
        encoding = [library for library in libraries if library in ENCODERS]
        for job in ({"section": "files", "vocabulary": name} for name in by_size[:1]):
            found += [job | {"library": library, "threads": count} for count in args.threads for library in encoding]
    return [job for job in found if job["section"] in args.sections]


def run_process(job: Job, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what a process of its own measures: {**job, figures} for each row; none where a peer fails."""
    threads = str(job.get("threads", 1))
    command = [sys.executable, __file__, *sys.argv[1:], "--job", json.dumps(job), "--folder", str(args.folder)]
    variables = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": str(threads != "1").lower()}
    root = str(Path(__file__).parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, check=False)
    if done.returncode == 0:
        return [job | row for row in json.loads(done.stdout.splitlines()[-1])]
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if job.get("library", OURS) == OURS:
        say("")
        print(f"tokenizer.py: {' '.join(map(str, job.values()))}: {reason}", file=sys.stderr)
        sys.exit(1)
    say(f"failed: {reason};", end=" ")
    return []


def agreeing(rows: list[dict[str, Any]], announce: bool = False) -> list[dict[str, Any]]:
    """Leaves out whoever gives other ids than ours at the start or for a file. Merges may differ; tables say so."""
    ours = {(row["section"], row["vocabulary"]): row["digest"] for row in rows if row.get("library") == OURS}
    kept = []
    for row in rows:
        if row["section"] in ("start", "files") and row["digest"] != ours[row["section"], row["vocabulary"]]:
            if announce:
                say(f"left out, for its ids differ from ours: {row['library']}, {row['section']}, {row['vocabulary']}")
        else:
            kept.append(row)
    return kept


def work(job: Job, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one job, in its process."""
    vocabulary = Vocabulary.read(args.folder)[job["vocabulary"]]
    if job["section"] == "start":  # before anything is imported
        from tokenizer_stages.start import measure_start

        return [measure_start(vocabulary, job["library"], "fresh" in job)]
    from tokenizer_stages.documents import measure_documents, measure_kind
    from tokenizer_stages.processes import encode_file, measure_run, train

    libraries = list(installed(args.only))
    if job["section"] == "documents":
        return measure_documents(vocabulary, libraries, args.data, args.small)
    if job["section"] == "kinds":
        return measure_kind(vocabulary, job["text"], libraries, args.data, args.small)
    text, size = args.folder / "english.txt", 400 if args.small else args.vocab_size
    about = {"megabytes": text.stat().st_size / 1e6, "size": size}
    if job["section"] == "train":
        run = measure_run(lambda: train(vocabulary, job["library"], text, size, job["threads"]), warm=False)
    else:
        run = measure_run(lambda: encode_file(vocabulary, job["library"], text, job["threads"]), warm=True)
    return [about | run]


def processor() -> str:
    """Returns the name of the processor."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
