"""Trains and encodes one text with this package and with the fast libraries that are installed, all in one run.

  python benchmarks/tokenizer.py english.txt --vocab vocab.json --merges merges.txt

Each measurement is a process of its own, so that its peak memory is its own. `load`: seconds until a library is ready,
with the vocabulary read and the kernels loaded (compiled before, once per installation). `seconds`: the first call
after that, with cold caches; `warm`: the second call. Ids must agree before any number is printed. When encoding, ours
goes to a file on the disk, the others' stays in memory.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tokenization import END_OF_TEXT, GPT2_PATTERN, TokenFile, Tokenizer, kernels, train_bpe
from tokenization.formats import bytes_to_text, text_to_bytes

TRAINERS = ("tokenization", "gigabpe", "gigatoken", "tokenizers")
ENCODERS = ("tokenization", "gigatoken", "tiktoken", "tokenizers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 file, some 100 MB")
    parser.add_argument("--vocab", type=Path, help="GPT-2's vocab.json; without it, encoding is not measured")
    parser.add_argument("--merges", type=Path, help="GPT-2's merges.txt")
    parser.add_argument("--vocab-size", type=int, default=32000, help="to train (default: 32000)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each, of which the fastest counts (default: 2)")
    parser.add_argument("--only", nargs="+", help="these libraries beside ours (default: all)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # (task, library, threads): what a process measures
    args = parser.parse_args()
    if args.one:
        measure(args.one[0], args.one[1], int(args.one[2]), args)
        return
    report("train", TRAINERS, [max(args.threads)], args)
    if args.vocab:
        report("encode", ENCODERS, args.threads, args)


def report(task: str, libraries: tuple[str, ...], thread_counts: list[int], args: argparse.Namespace) -> None:
    """Runs all that are installed, in turn and several times, and prints a table."""
    wanted = ["tokenization", *(args.only or libraries)]
    installed = [name for name in libraries if importlib.util.find_spec(name) and name in wanted]
    runs: dict[tuple[str, int], list[dict]] = {(name, count): [] for count in thread_counts for name in installed}
    for _ in range(args.repeat):
        for (name, count), results in runs.items():
            results.append(run_process(task, name, count))
    check_agreement(task, runs)
    megabytes = args.text.stat().st_size / 1e6
    title = f"{args.vocab_size:,} tokens" if task == "train" else "GPT-2's vocabulary"
    print(f"\n{task}: {args.text.name}, {megabytes:.1f} MB, {title}")
    print(f"{'library':14} threads     load  seconds     MB/s  warm MB/s  peak MB  time / ours")
    for (name, count), results in runs.items():
        load, cold, warm = (min(result[name] for result in results) for name in ("load", "cold", "warm"))
        ours = min(result["cold"] for result in runs["tokenization", count])
        peak = max(result["peak"] for result in results)
        speeds = f"{megabytes / cold:8.1f}  {megabytes / warm:9.1f}"
        print(f"{name:14} {count:7} {load:8.2f} {cold:8.2f} {speeds} {peak:8.0f} {cold / ours:12.2f}")


def run_process(task: str, library: str, threads: int) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", task, library, str(threads)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check_agreement(task: str, runs: dict[tuple[str, int], list[dict]]) -> None:
    """Everybody's ids must be the same; merges may differ where a library counts in its own way, and that is said."""
    expected = next(results[0]["digest"] for (name, _), results in runs.items() if name == "tokenization")
    different = {name for (name, _), results in runs.items() if any(one["digest"] != expected for one in results)}
    if different and task == "encode":
        sys.exit(f"the ids of {', '.join(sorted(different))} differ from those of tokenization; nothing is reported")
    same = sorted({name for name, _ in runs} - different - {"tokenization"})
    if task == "train":
        print(
            f"\nthe same merges as ours: {', '.join(same) or 'none'}; others: {', '.join(sorted(different)) or 'none'}"
        )


def measure(task: str, library: str, threads: int, args: argparse.Namespace) -> None:
    """Prints {load, cold, warm, peak, digest} as JSON: seconds, MB, the digest of ids or merges."""
    start = time.perf_counter()
    run, result_of = PREPARE[task, library](threads, args)
    load = time.perf_counter() - start
    start = time.perf_counter()
    output = run()
    cold = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    content = result_of(output)
    del output
    start = time.perf_counter()
    run()
    warm = time.perf_counter() - start
    print(json.dumps({"load": load, "cold": cold, "warm": warm, "peak": peak, "digest": sha256(content).hexdigest()}))


Prepared = tuple[Callable[[], Any], Callable[[Any], bytes]]  # what is timed, and what makes its result comparable


def merges_as_bytes(merges: Iterable[tuple[bytes, bytes]]) -> bytes:
    return repr([(bytes(left), bytes(right)) for left, right in merges]).encode()


def merges_from_text(merges: Iterable[tuple[str, str]]) -> bytes:
    return merges_as_bytes((text_to_bytes(left), text_to_bytes(right)) for left, right in merges)


def ids_as_bytes(ids: Iterable[int]) -> bytes:
    return np.fromiter(ids, np.uint32).tobytes()


def documents(path: Path) -> list[str]:
    """With their <|endoftext|>, for libraries that want strings."""
    return path.read_bytes().decode().split(END_OF_TEXT)


def load_kernels(folder: str) -> None:
    """Trains and encodes a few bytes with the kernels, which are for large texts only otherwise."""
    kernels.KERNELS_FROM_BYTES, usual = 0, kernels.KERNELS_FROM_BYTES
    text = Path(folder) / "text.txt"
    text.write_text("a few words, a few words")
    tokenizer = Tokenizer(*train_bpe(text, 260))
    tokenizer.encode_files([text], Path(folder) / "ids.bin")
    kernels.KERNELS_FROM_BYTES = usual


def train_ours(threads: int, args: argparse.Namespace) -> Prepared:
    """With Hugging Face's ties, as the others have no other."""
    with tempfile.TemporaryDirectory() as folder:
        load_kernels(folder)

    def run() -> list[tuple[bytes, bytes]]:
        return train_bpe(args.text, args.vocab_size, [END_OF_TEXT], ties="huggingface", num_processes=threads)[1]

    return run, merges_as_bytes


def train_gigabpe(threads: int, args: argparse.Namespace) -> Prepared:
    import gigabpe

    def run() -> list[tuple[str, str]]:
        return gigabpe.train_bpe(
            [str(args.text)], args.vocab_size, special_tokens=[END_OF_TEXT], pretokenizer="bytelevel", threads=threads
        )[1]

    return run, merges_from_text


def train_gigatoken(threads: int, args: argparse.Namespace) -> Prepared:
    import gigatoken

    def run() -> list[tuple[bytes, bytes]]:
        return gigatoken.train_bpe(str(args.text), args.vocab_size, special_tokens=[END_OF_TEXT])[1]

    return run, merges_as_bytes


def train_tokenizers(threads: int, args: argparse.Namespace) -> Prepared:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers, trainers

    def run() -> list[list[str]]:
        tokenizer = Theirs(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=args.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents(args.text), trainer)
        return json.loads(tokenizer.to_str())["model"]["merges"]

    return run, merges_from_text


def encode_ours(threads: int, args: argparse.Namespace) -> Prepared:
    """To a file, as it is used: with checksums, and flushed to the disk."""
    folder = tempfile.TemporaryDirectory()
    load_kernels(folder.name)
    tokenizer = Tokenizer.from_files(args.vocab, args.merges, [END_OF_TEXT])

    def run() -> TokenFile:
        return tokenizer.encode_files([args.text], Path(folder.name) / "ids.bin", threads)

    return run, lambda file: ids_as_bytes(file.tokens.tolist())


def encode_gigatoken(threads: int, args: argparse.Namespace) -> Prepared:
    import gigatoken

    with tempfile.TemporaryDirectory() as folder:
        huggingface_tokenizer(args).save(f"{folder}/tokenizer.json")
        tokenizer = gigatoken.Tokenizer(f"{folder}/tokenizer.json")
    run = partial(tokenizer.encode_files, [str(args.text)], parallel=threads > 1)
    return run, lambda ids: ids_as_bytes(chain.from_iterable(document.tolist() for document in ids))


def encode_tiktoken(threads: int, args: argparse.Namespace) -> Prepared:
    import tiktoken

    ours = Tokenizer.from_files(args.vocab, args.merges, [END_OF_TEXT])
    ranks = {token: token_id for token_id, token in ours.vocab.items() if token_id != ours.end_of_text_id}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: ours.end_of_text_id}
    )
    texts = [document + END_OF_TEXT for document in documents(args.text)]
    texts[-1] = texts[-1].removesuffix(END_OF_TEXT)
    if threads == 1:
        run: Callable = lambda: [encoding.encode(text, allowed_special="all") for text in texts]  # noqa: E731
    else:
        run = partial(encoding.encode_batch, texts, num_threads=threads, allowed_special="all")
    return run, lambda ids: ids_as_bytes(chain.from_iterable(ids))


def encode_tokenizers(threads: int, args: argparse.Namespace) -> Prepared:
    tokenizer = huggingface_tokenizer(args)
    texts = [document + END_OF_TEXT for document in documents(args.text)]
    texts[-1] = texts[-1].removesuffix(END_OF_TEXT)
    run = partial(tokenizer.encode_batch_fast, texts)
    return run, lambda encodings: ids_as_bytes(chain.from_iterable(encoding.ids for encoding in encodings))


def huggingface_tokenizer(args: argparse.Namespace):
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, pre_tokenizers

    ours = Tokenizer.from_files(args.vocab, args.merges, [END_OF_TEXT])
    vocab = {bytes_to_text(token): token_id for token_id, token in ours.vocab.items()}
    vocab[END_OF_TEXT] = ours.end_of_text_id
    merges = [(bytes_to_text(left), bytes_to_text(right)) for left, right in ours.merges]
    theirs = Theirs(models.BPE(vocab, merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_special_tokens([END_OF_TEXT])
    return theirs


PREPARE: dict[tuple[str, str], Callable[[int, argparse.Namespace], Prepared]] = {
    ("train", "tokenization"): train_ours,
    ("train", "gigabpe"): train_gigabpe,
    ("train", "gigatoken"): train_gigatoken,
    ("train", "tokenizers"): train_tokenizers,
    ("encode", "tokenization"): encode_ours,
    ("encode", "gigatoken"): encode_gigatoken,
    ("encode", "tiktoken"): encode_tiktoken,
    ("encode", "tokenizers"): encode_tokenizers,
}

if __name__ == "__main__":
    main()
