"""Training a vocabulary on text files: reading, counting pre-tokens in parallel, learning merges, and a report.

    files -> chunks (cut where no pre-token crosses) -> counts of pre-tokens -> learn_merges (bpe.py)

Large files are counted and merged by the compiled kernels (native/), with the same result.
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from tokenization.bpe import TIES, Merges, Vocabulary, creation_order, initial_vocabulary, learn_merges
from tokenization.errors import InputError
from tokenization.kernels import KERNELS_FROM_BYTES, have_kernels, kernels_for
from tokenization.pretokenization import GPT2_PATTERN, check_pattern, count_pretokens, cut_into_chunks
from tokenization.systems import available_cores, peak_memory
from tokenization.text.corpus import Corpus, map_in_order
from tokenization.text.documents import check_text_field


@dataclass
class TrainingReport:
    """What training did: which code ran, how long each phase took, and how large everything was."""

    path: str = ""  # which code counted and merged, and why
    seconds: dict[str, float] = field(default_factory=dict)  # of this process, by phase
    text_bytes: int = 0
    pretokens: int = 0
    unique_pretokens: int = 0
    peak_memory_bytes: int | None = None  # of this process; None where the system does not tell
    worker_memory_bytes: int | None = None  # of the largest counting process
    vocab_size: int = 0
    longest_token: bytes = b""

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        seconds = ", ".join(f"{phase} {time:.1f} s" for phase, time in self.seconds.items())
        memory = "not known on this system"
        if self.peak_memory_bytes is not None:
            memory = f"{self.peak_memory_bytes / 1e6:.0f} MB"
            if self.worker_memory_bytes:
                memory += f", and {self.worker_memory_bytes / 1e6:.0f} MB in the largest counting process"
        return [
            f"text            {self.text_bytes / 1e6:.1f} MB, {self.pretokens:,} pre-tokens,"
            f" {self.unique_pretokens:,} of them different",
            f"vocabulary      {self.vocab_size:,} tokens",
            f"computed by     {self.path}",
            f"time            {sum(self.seconds.values()):.1f} s: {seconds}",
            f"peak memory     {memory}",
            f"longest token   {len(self.longest_token)} bytes: {self.longest_token!r}",
        ]


def train_bpe(
    input_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    *,
    pattern: str = GPT2_PATTERN,
    ties: str = "lexicographic",
    num_processes: int | None = None,
    errors: str = "strict",
    text_field: str | None = None,
    progress: bool = False,
    report: TrainingReport | None = None,
) -> tuple[Vocabulary, Merges]:
    """Learns a vocabulary of at most vocab_size tokens: 256 bytes, then the special tokens, then one per merge.

    input_path: a file, folder or glob, or several; .gz, .zst, .bz2 and .xz files are decompressed. special_tokens:
    never split, never merged, and not counted where a document has one written out, so that no token is spelt like it.
    ties: which of equally frequent pairs is merged first: "lexicographic", the one whose byte strings are greater (the
    handout's rule), or "huggingface", the older one (as in Hugging Face's BpeTrainer; bytes are in the order of GPT-2's
    alphabet). num_processes: for counting (threads where the kernels count); None is one per core. errors: "strict" or
    "replace", for bytes that are not UTF-8. text_field: the field of a record that holds its text; None is "text", or
    else "content". report: filled in.

    Returns (vocab, merges), with fewer tokens than requested when the text has no more pairs. Raises InputError for
    bad arguments and unreadable or empty text. Memory grows with the number of different pre-tokens.
    """
    check_arguments(vocab_size, special_tokens, pattern, ties)
    report = report if report is not None else TrainingReport()
    inputs = [input_path] if isinstance(input_path, (str, os.PathLike)) else list(input_path)
    corpus = Corpus(inputs, errors, "counting" if progress else "", text_field)
    check_text_field(text_field, (file.name for file in corpus.files))
    size = corpus.text_bytes(KERNELS_FROM_BYTES)
    counts, native = count_files(corpus, special_tokens, pattern, num_processes, report, size)
    if not report.pretokens:
        raise InputError(f"{corpus.name}: no text to learn from; the input is empty")
    if not native and not have_kernels(pattern):  # which may merge nevertheless
        choice = kernels_for(pattern, report.text_bytes, "merging")
        if native := choice.native:
            report.path = "plain Python for the pattern, which the kernels do not know; compiled kernels for the merges"
            report.seconds[choice.phase] = choice.seconds
            counts = native.table_of(counts)
    return learn(counts, native, vocab_size, special_tokens, ties, progress, report)


def check_arguments(vocab_size: int, special_tokens: Sequence[str], pattern: str, ties: str) -> None:
    """Raises InputError for arguments that no training can follow; see train_bpe."""
    smallest = len(initial_vocabulary(special_tokens))
    if vocab_size < smallest:
        special = f"{smallest - 256} special token{'' if smallest == 257 else 's'}"
        raise InputError(f"vocab_size {vocab_size} is too small: 256 bytes and {special} need {smallest}")
    check_pattern(pattern)
    if ties not in TIES:
        raise InputError(f"ties is {ties!r}; it must be {' or '.join(TIES)}")


def count_files(
    corpus: Corpus,
    special_tokens: Sequence[str],
    pattern: str,
    num_processes: int | None,
    report: TrainingReport,
    text_bytes: int,
) -> tuple[Any, ModuleType | None]:
    """Counts the pre-tokens of all the files; fills in the report.

    text_bytes: how much text there is, which decides whether the kernels are worth loading. Returns a native.Table
    and the module with the kernels, or a Counter and None.
    """
    choice = kernels_for(pattern, text_bytes, "training")
    report.path = choice.reason
    processes = num_processes or available_cores()
    if not choice.native:
        return count_corpus(corpus, special_tokens, pattern, processes, report), None
    report.seconds[choice.phase] = choice.seconds
    return count_with_kernels(choice.native, corpus, special_tokens, pattern, processes, report), choice.native


def learn(
    counts: Any,
    native: ModuleType | None,
    vocab_size: int,
    special_tokens: Sequence[str],
    ties: str,
    progress: bool,
    report: TrainingReport,
) -> tuple[Vocabulary, Merges]:
    """Learns merges from counts, a native.Table if there is a module with kernels, or else a Counter.

    Fills in the report. Returns (vocab, merges), as train_bpe does.
    """
    if native:
        vocab, merges = merge_with_kernels(native, counts, vocab_size, special_tokens, ties, progress, report)
    else:
        vocab, merges = learn_merges(counts, vocab_size, special_tokens, ties, progress, report.seconds)
    report.vocab_size = len(vocab)
    learnt = set(vocab.values()) - {token.encode() for token in special_tokens}
    report.longest_token = max(learnt, key=lambda token: (len(token), token))
    report.peak_memory_bytes, report.worker_memory_bytes = peak_memory()
    return vocab, merges


def count_with_kernels(
    native: ModuleType,
    corpus: Corpus,
    special_tokens: Sequence[str],
    pattern: str,
    num_threads: int,
    report: TrainingReport,
) -> Any:
    """Counts by the kernels, and leaves the counts in their memory, a native.Table; fills in the report."""
    start = time.perf_counter()
    with closing(corpus):
        table = native.count_corpus(corpus, special_tokens, pattern, num_threads)
    report.seconds["reading"] = corpus.read_seconds
    report.seconds["pre-tokenizing"] = time.perf_counter() - start - corpus.read_seconds
    report.text_bytes, report.pretokens, report.unique_pretokens = corpus.num_bytes, table.total, table.unique
    return table


def merge_with_kernels(
    native: ModuleType,
    table: Any,
    vocab_size: int,
    special_tokens: Sequence[str],
    ties: str,
    progress: bool,
    report: TrainingReport,
) -> tuple[Vocabulary, Merges]:
    """Learns merges by the kernels from counts in their memory; fills in the report."""
    start = time.perf_counter()
    initial = list(initial_vocabulary(special_tokens).values())
    order = [creation_order(value) for value in range(256)] if ties == "huggingface" else None
    tokens, pairs = native.learn_merges(table, initial, vocab_size, order, progress)
    report.seconds["merges"] = time.perf_counter() - start
    return dict(enumerate(tokens)), [(tokens[left], tokens[right]) for left, right in pairs]


_counting: tuple[Sequence[str], str] = ((), GPT2_PATTERN)  # boundaries and pattern, in each counting process


def _start_counting(boundaries: Sequence[str], pattern: str) -> None:
    global _counting
    _counting = (boundaries, pattern)


def _count_chunk(chunk: str) -> Counter[bytes]:
    return count_pretokens(chunk, *_counting)


def count_corpus(
    corpus: Corpus, special_tokens: Sequence[str], pattern: str, num_processes: int, report: TrainingReport
) -> Counter[bytes]:
    """Counts each pre-token in all the files together; fills in the report."""
    start, boundaries = time.perf_counter(), corpus.boundaries(special_tokens)
    chunks = (chunk for file in corpus.files for chunk in cut_into_chunks(corpus.blocks(file), boundaries, pattern))
    counts: Counter[bytes] = Counter()
    setup = (boundaries, pattern)
    with closing(corpus):
        for _, chunk_counts in map_in_order(_count_chunk, chunks, num_processes, _start_counting, setup):
            counts.update(chunk_counts)
    report.seconds["reading"] = corpus.read_seconds
    report.seconds["pre-tokenizing"] = time.perf_counter() - start - corpus.read_seconds
    report.text_bytes = corpus.num_bytes
    report.pretokens, report.unique_pretokens = counts.total(), len(counts)
    return counts
