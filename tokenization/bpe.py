"""Training a byte-level BPE vocabulary (Sennrich et al. 2016; handout, section 2): the plain-Python reference.

    1. count the pre-tokens of the text, in parallel processes        (count_corpus)
    2. write each as a list of byte tokens, and count adjacent pairs  (PairCounts)
    3. merge the most frequent pair into a new token, everywhere; of equally frequent pairs the one whose byte
       strings are lexicographically greater, or the older one; repeat (learn_merges)

A merge only touches the words that hold the pair, so the counts are corrected there and never taken again. Two
merges that spell the same bytes give one token: the vocabulary maps ids to distinct byte strings.

Large texts take the compiled kernels (native.py), which give the same result.
"""

import heapq
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType

from tqdm import tqdm

from tokenization.corpus import Corpus, available_cores, map_in_order
from tokenization.errors import InputError
from tokenization.pretokenization import (
    GPT2_PATTERN,
    check_pattern,
    check_special_tokens,
    count_pretokens,
    cut_into_pieces,
    kernels_for,
)

Vocabulary = dict[int, bytes]
Merges = list[tuple[bytes, bytes]]
Pair = tuple[int, int]
TIES = ("lexicographic", "huggingface")


@dataclass
class TrainingReport:
    """Where the time went, in seconds of this process, and what came out."""

    path: str = ""  # which code counted and merged, and why
    seconds: dict[str, float] = field(default_factory=dict)
    text_bytes: int = 0
    pretokens: int = 0
    unique_pretokens: int = 0
    peak_memory_bytes: int | None = None  # of this process; None where the system does not tell
    worker_memory_bytes: int | None = None  # of the largest counting process
    vocab_size: int = 0
    longest_token: bytes = b""

    def lines(self) -> list[str]:
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
    progress: bool = False,
    report: TrainingReport | None = None,
) -> tuple[Vocabulary, Merges]:
    """Learns a vocabulary of at most vocab_size tokens: 256 bytes, then the special tokens, then one per merge.

    input_path: a file, folder or glob, or several; .gz is unpacked. special_tokens: never split, never merged.
    ties: of equally frequent pairs, "lexicographic" takes the one whose byte strings are greater (the handout's rule),
    "huggingface" the older one (the merges of Hugging Face's BpeTrainer; bytes are in the order of GPT-2's alphabet).
    num_processes: for counting (the kernels take as many threads); None is one per core.
    errors: "strict" or "replace", for bytes that are not UTF-8.
    report: filled in. Returns (vocab, merges); fewer tokens than asked for when the text has no more pairs.
    Raises InputError for what the user can put right. Memory grows with the number of different pre-tokens.
    """
    smallest = len(initial_vocabulary(special_tokens))
    if vocab_size < smallest:
        raise InputError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {smallest - 256} special tokens need {smallest}"
        )
    check_pattern(pattern)
    if ties not in TIES:
        raise InputError(f"ties is {ties!r}; it must be {' or '.join(TIES)}")
    report = report if report is not None else TrainingReport()
    inputs = [input_path] if isinstance(input_path, (str, os.PathLike)) else list(input_path)
    corpus = Corpus(inputs, errors, "counting" if progress else "")
    choice = kernels_for(pattern, corpus.file_bytes, "training")
    report.path = choice.reason
    processes = num_processes or available_cores()
    if choice.native:
        report.seconds["compiling"] = choice.seconds
        vocab, merges = train_with_kernels(
            choice.native, corpus, vocab_size, special_tokens, ties, processes, progress, report
        )
    else:
        counts = count_corpus(corpus, special_tokens, pattern, processes, report)
        vocab, merges = learn_merges(counts, vocab_size, special_tokens, ties, progress, report)
    if not report.pretokens:
        raise InputError(f"{corpus.name}: no text to learn from; the input is empty")
    report.vocab_size = len(vocab)
    learnt = set(vocab.values()) - {token.encode() for token in special_tokens}
    report.longest_token = max(learnt, key=lambda token: (len(token), token))
    report.peak_memory_bytes, report.worker_memory_bytes = peak_memory()
    return vocab, merges


def train_with_kernels(
    native: ModuleType,
    corpus: Corpus,
    vocab_size: int,
    special_tokens: Sequence[str],
    ties: str,
    num_threads: int,
    progress: bool,
    report: TrainingReport,
) -> tuple[Vocabulary, Merges]:
    """count_corpus and learn_merges in one, the counts staying in the kernels' memory."""
    start = time.perf_counter()
    with closing(corpus):
        counts = native.count_corpus(corpus, special_tokens, num_threads)
    counted = time.perf_counter()
    report.seconds["reading"] = corpus.read_seconds
    report.seconds["pre-tokenizing"] = counted - start - corpus.read_seconds
    report.text_bytes, report.pretokens, report.unique_pretokens = corpus.num_bytes, counts.total, counts.unique
    initial = list(initial_vocabulary(special_tokens).values())
    order = [creation_order(value) for value in range(256)] if ties == "huggingface" else None
    tokens, pairs = native.learn_merges(counts, initial, vocab_size, order, progress)
    report.seconds["merges"] = time.perf_counter() - counted
    return dict(enumerate(tokens)), [(tokens[left], tokens[right]) for left, right in pairs]


def initial_vocabulary(special_tokens: Sequence[str]) -> Vocabulary:
    """The id of a byte is its value; special tokens follow. One of a single byte is that byte's token."""
    check_special_tokens(special_tokens)
    tokens = dict.fromkeys([bytes([value]) for value in range(256)] + [token.encode() for token in special_tokens])
    return dict(enumerate(tokens))


_counting: tuple[Sequence[str], str] = ((), GPT2_PATTERN)  # special tokens and pattern, in each counting process


def _start_counting(special_tokens: Sequence[str], pattern: str) -> None:
    global _counting
    _counting = (special_tokens, pattern)


def _count_piece(piece: str) -> Counter[bytes]:
    return count_pretokens(piece, *_counting)


def count_corpus(
    corpus: Corpus, special_tokens: Sequence[str], pattern: str, num_processes: int, report: TrainingReport
) -> Counter[bytes]:
    """How often each pre-token occurs in all the files together."""
    start = time.perf_counter()
    pieces = (piece for file in corpus.files for piece in cut_into_pieces(corpus.blocks(file), special_tokens, pattern))
    counts: Counter[bytes] = Counter()
    setup = (special_tokens, pattern)
    with closing(corpus):
        for _, piece_counts in map_in_order(_count_piece, pieces, num_processes, _start_counting, setup):
            counts.update(piece_counts)
    report.seconds["reading"] = corpus.read_seconds
    report.seconds["pre-tokenizing"] = time.perf_counter() - start - corpus.read_seconds
    report.text_bytes = corpus.num_bytes
    report.pretokens, report.unique_pretokens = counts.total(), len(counts)
    return counts


class PairCounts:
    """How often each adjacent pair of tokens occurs, in which words, and which pair comes next.

    The heap holds (-count, order of the first token, order of the second, pair). Whenever a count changes, the pair
    is pushed again; what was pushed before is stale, and is thrown away when it comes up.
    """

    def __init__(self, words: list[list[int]], frequencies: list[int], vocab: Vocabulary, ties: str):
        self.words, self.frequencies = words, frequencies
        self.ties = ties
        self.order: dict[int, str | int] = {}
        for token_id, token in vocab.items():
            self.add_token(token_id, token)
        self.counts: dict[Pair, int] = defaultdict(int)
        self.where: dict[Pair, set[int]] = defaultdict(set)
        for index, (word, frequency) in enumerate(zip(words, frequencies, strict=True)):
            for pair in pairwise(word):
                self.counts[pair] += frequency
                self.where[pair].add(index)
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

    def add_token(self, token_id: int, token: bytes) -> None:
        self.order[token_id] = creation_order(token_id) if self.ties == "huggingface" else descending_order(token)

    def _entry(self, pair: Pair) -> tuple[int, str | int, str | int, Pair]:
        return -self.counts[pair], self.order[pair[0]], self.order[pair[1]], pair

    def most_frequent(self) -> Pair | None:
        """The next pair to merge; None when every word is a single token."""
        while self.heap:
            entry = heapq.heappop(self.heap)
            if self.counts.get(entry[-1]) == -entry[0]:
                return entry[-1]
        return None

    def merge(self, pair: Pair, new_id: int, new_token: bytes) -> None:
        self.add_token(new_id, new_token)
        changed: dict[Pair, int] = defaultdict(int)
        for index in self.where.pop(pair):
            old, frequency = self.words[index], self.frequencies[index]
            new = self.words[index] = merge_word(old, pair, new_id)
            for old_pair in pairwise(old):
                changed[old_pair] -= frequency
            for new_pair in pairwise(new):
                changed[new_pair] += frequency
                self.where[new_pair].add(index)
        for changed_pair, change in changed.items():
            if change:
                self.counts[changed_pair] += change
                if self.counts[changed_pair]:
                    heapq.heappush(self.heap, self._entry(changed_pair))
                else:
                    del self.counts[changed_pair]
                    self.where.pop(changed_pair, None)


_COMPLEMENT = bytes(range(255, -1, -1))


def descending_order(token: bytes) -> str:
    """A sort key under which the lexicographically greater byte string comes first: heapq takes the smallest.

    Complementing each byte reverses the order but for prefixes; the mark at the end puts "ab" before "a".
    """
    return token.translate(_COMPLEMENT).decode("latin-1") + "\u0100"


def creation_order(token_id: int) -> int:
    """Hugging Face's order of ids: bytes as their characters in GPT-2's alphabet, the printable first; then by age."""
    if 33 <= token_id <= 126 or 161 <= token_id <= 172 or 174 <= token_id <= 255:
        return token_id - 512
    return token_id - 256 if token_id < 256 else token_id


def merge_word(word: list[int], pair: Pair, new_id: int) -> list[int]:
    """[1, 2, 3, 1, 2], (1, 2) -> 9: [9, 3, 9]; from the left, so that "aaa" becomes "aa", "a"."""
    merged: list[int] = []
    position, last = 0, len(word) - 1
    while position <= last:
        if position < last and (word[position], word[position + 1]) == pair:
            merged.append(new_id)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


def learn_merges(
    counts: Mapping[bytes, int],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    ties: str = "lexicographic",
    progress: bool = False,
    report: TrainingReport | None = None,
) -> tuple[Vocabulary, Merges]:
    """Merges pairs of the pre-tokens in `counts` until the vocabulary is full or there are no pairs left."""
    start = time.perf_counter()
    vocab = initial_vocabulary(special_tokens)
    ids = {token: token_id for token_id, token in vocab.items()}
    merges: Merges = []
    pairs = PairCounts([list(pretoken) for pretoken in counts], list(counts.values()), vocab, ties)
    counted = time.perf_counter()
    with tqdm(total=vocab_size - len(vocab), desc="merging", unit="merge", disable=not progress, delay=0.5) as bar:
        while len(vocab) < vocab_size and (pair := pairs.most_frequent()) is not None:
            left, right = vocab[pair[0]], vocab[pair[1]]
            merges.append((left, right))
            new_id = ids.setdefault(left + right, len(vocab))
            if new_id == len(vocab):
                vocab[new_id] = left + right
                bar.update()
            pairs.merge(pair, new_id, left + right)
    if report is not None:
        report.seconds["initial counts"] = counted - start
        report.seconds["merges"] = time.perf_counter() - counted
    return vocab, merges


def peak_memory() -> tuple[int | None, int | None]:
    """The largest resident size, in bytes, of this process and of its largest finished child."""
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    unit = 1 if sys.platform == "darwin" else 1024
    usage = [resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return usage[0], usage[1]
