"""What needs a process of its own: training, and whole files; with the peak memory of each.

When encoding files, ours goes to a file, flushed to the disk, read back, compared and hashed; the others' stays in
memory.
"""

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from tokenization import END_OF_TEXT, TokenFile, Tokenizer, train_bpe
from tokenization.formats.gpt2 import bytes_to_text, text_to_bytes
from tokenizer_stages.documents import Row
from tokenizer_stages.peers import OURS, Vocabulary
from tokenizer_stages.start import peak

Prepared = tuple[Callable[[], Any], Callable[[Any], bytes]]  # what is timed, and what makes its result comparable


def measure_run(prepare: Callable[[], Prepared], warm: bool) -> Row:
    """Measures a first call, with cold caches, and where it is asked for a second one: seconds of the clock and CPU."""
    run, result_of = prepare()
    row: Row = {}
    for name in ("cold", "warm") if warm else ("cold",):
        clock, cpu = time.perf_counter(), time.process_time()
        output = run()
        row |= {name: time.perf_counter() - clock, f"{name} CPU": time.process_time() - cpu}
        row.setdefault("peak", peak())
        row.setdefault("digest", sha256(result_of(output)).hexdigest())
        del output
    return row


def ids_as_bytes(ids: Iterable[int]) -> bytes:
    return np.fromiter(ids, np.uint32).tobytes()


# --- training --------------------------------------------------------------------------------------------------------


def merges_as_bytes(merges: Iterable[tuple[bytes, bytes]]) -> bytes:
    return repr([(bytes(left), bytes(right)) for left, right in merges]).encode()


def merges_from_text(merges: Iterable[tuple[str, str]]) -> bytes:
    return merges_as_bytes((text_to_bytes(left), text_to_bytes(right)) for left, right in merges)


def train(vocabulary: Vocabulary, library: str, text: Path, size: int, threads: int) -> Prepared:
    """Prepares training; with Hugging Face's ties, as the others have no other."""
    if library == OURS:
        train_ours = partial(train_bpe, pattern=vocabulary.pattern, ties="huggingface", num_processes=threads)
        if text.stat().st_size > 4_000_000:  # as much as loads the kernels
            train_ours(text, 257, [END_OF_TEXT])
        return lambda: train_ours(text, size, [END_OF_TEXT])[1], merges_as_bytes
    if library == "tokenizers":
        return partial(train_tokenizers, vocabulary, text, size), merges_from_text
    module = importlib.import_module(library)
    if library == "gigatoken":
        return lambda: module.train_bpe(str(text), size, special_tokens=[END_OF_TEXT])[1], merges_as_bytes
    options = {"special_tokens": [END_OF_TEXT], "pretokenizer": "bytelevel", "threads": threads}
    return lambda: module.train_bpe([str(text)], size, **options)[1], merges_from_text


def train_tokenizers(vocabulary: Vocabulary, text: Path, size: int) -> list[list[str]]:
    from tokenizers import Tokenizer as Theirs
    from tokenizers import models, trainers

    tokenizer = Theirs(models.BPE())
    tokenizer.pre_tokenizer = Theirs.from_file(str(vocabulary.json)).pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=[bytes_to_text(bytes([value])) for value in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.read_bytes().decode().split(END_OF_TEXT), trainer)
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def can_train(library: str, pattern: str) -> bool:
    return pattern == "gpt2" or library in (OURS, "tokenizers")


# --- files -----------------------------------------------------------------------------------------------------------


def encode_file(vocabulary: Vocabulary, library: str, text: Path, threads: int) -> Prepared:
    """Prepares encoding a whole file with all the documents in it."""
    if library == OURS:
        return encode_ours(vocabulary, text, threads)
    if library == "gigatoken":
        theirs = importlib.import_module(library).Tokenizer.from_tiktoken(
            str(vocabulary.tiktoken), vocabulary.name, vocabulary.special
        )
        run = partial(theirs.encode_files, [str(text)], parallel=threads > 1)
        return run, lambda ids: ids_as_bytes(chain.from_iterable(document.tolist() for document in ids))
    encoding = importlib.import_module("tiktoken").Encoding(
        vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=importlib.import_module("tiktoken.load").load_tiktoken_bpe(str(vocabulary.tiktoken)),
        special_tokens=vocabulary.special,
    )
    texts = [document + END_OF_TEXT for document in text.read_bytes().decode().split(END_OF_TEXT)]
    texts[-1] = texts[-1].removesuffix(END_OF_TEXT)
    run = partial(encoding.encode_batch, texts, num_threads=threads, allowed_special="all")
    return run, lambda ids: ids_as_bytes(chain.from_iterable(ids))


def encode_ours(vocabulary: Vocabulary, text: Path, threads: int) -> Prepared:
    folder = tempfile.TemporaryDirectory()
    beginning = Path(folder.name) / "beginning.txt"
    with open(text, "rb") as file:
        beginning.write_bytes(file.read(5_000_000).decode(errors="ignore").encode())
    Tokenizer.load(vocabulary.folder).encode_files([beginning], Path(folder.name) / "beginning.bin", threads)
    tokenizer = Tokenizer.load(vocabulary.folder)  # the kernels are loaded now, its caches are empty

    outputs = (Path(folder.name) / f"ids-{number}.bin" for number in count())  # deleting an old file is not timed

    def run() -> TokenFile:
        return tokenizer.encode_files([text], next(outputs), threads)

    return run, lambda file: ids_as_bytes(file.tokens.tolist())


ENCODERS = (OURS, "gigatoken", "tiktoken")
