"""Runs the small tokenizer experiments of docs/cs336.md and prints their tables, in seconds of the processor.

  python benchmarks/cs336.py                              on data/tinystories-train.txt.gz
  python benchmarks/cs336.py --small corpus.en            the course's own small text

train    243 merges of a small text, and 2,000 of the whole one, learnt in five ways: each does one thing less often
later    how many words a merge touches, early and late
encode   a short text in six ways

All ways must give the same merges and the same ids before a number is printed.
"""

import argparse
import gzip
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

from tokenization import END_OF_TEXT, Tokenizer
from tokenization.bpe import (
    Pair,
    PairCounts,
    find_merge_ids,
    initial_vocabulary,
    learn_merges,
    merge_by_rank,
    merge_word,
    rank_merges,
)
from tokenization.kernels import KERNELS_FROM_BYTES, kernels_for
from tokenization.pretokenization import GPT2_PATTERN, count_pretokens, pretokenize

DATA = Path(__file__).parent.parent / "data"
FIRST_ID = len(initial_vocabulary([END_OF_TEXT]))  # of a merge
COUNT, CHOOSE, MERGE = PHASES = ("count", "choose", "merge")
PairRanks = dict[Pair, tuple[int, int]]  # (left id, right id) -> (rank, merged id)
Words = dict[bytes, int]  # pre-tokens and how often each occurs
WayToLearn = Callable[[Words, int, "Clock"], list[Pair]]


class Clock:
    """Adds up the processor's seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[phase] += time.process_time() - start


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=DATA / "tinystories-train.txt.gz", help="(default: %(default)s)")
    parser.add_argument("--small", type=Path, help="the small text (default: the first 130,000 characters of --text)")
    parser.add_argument("--merges", type=int, nargs=2, default=[243, 2000], help="(default: 243 2000)")
    parser.add_argument("--vocab-size", type=int, default=10_000, help="for later and encode (default: 10000)")
    parser.add_argument("--characters", type=int, default=2000, help="to encode in the slow ways (default: 2000)")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    text = read(args.text)
    small = read(args.small) if args.small else text[:130_000]
    for part, num_merges in zip((small, text), args.merges, strict=True):
        train(part, num_merges)
    vocab, merges = later(count_pretokens(text, [END_OF_TEXT]), args.vocab_size)
    encode(Tokenizer(vocab, merges, [END_OF_TEXT]), text, args.characters)


def read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


# --- training --------------------------------------------------------------------------------------------------------


def train(text: str, num_merges: int) -> None:
    """Prints the seconds of each way to learn merges, by phase."""
    words = count_pretokens(text, [END_OF_TEXT])
    print(f"\n{num_merges:,} merges of {len(text.encode()) / 1e6:.2f} MB, {len(words):,} different pre-tokens")
    print(f"{'':<44}" + "".join(f"{phase + ' s':>11}" for phase in (*PHASES, "all")) + f"{'speed':>9}")
    first: list[Pair] | None = None
    slowest = 0.0
    for name, way in WAYS_TO_LEARN.items():
        clock = Clock()
        pairs = way(words, num_merges, clock)
        first, total = first or pairs, sum(clock.seconds.values())
        assert pairs == first, f"{name}: other merges"
        slowest = slowest or total
        phases = "".join(f"{clock.seconds[phase]:11.3f}" if phase in clock.seconds else f"{'':>11}" for phase in PHASES)
        print(f"{name:<44}{phases}{total:11.3f}{slowest / total:>8,.0f}x")


class Anew:
    """Counts all pairs anew for every merge, and searches every word for the pair."""

    def __init__(self, words: list[list[int]], frequencies: list[int], vocab: dict[int, bytes], ties: str):
        self.words, self.frequencies, self.spelt = words, frequencies, dict(vocab)
        self.counts: dict[Pair, int] = {}

    def count(self) -> None:
        self.counts = defaultdict(int)
        for word, frequency in zip(self.words, self.frequencies, strict=True):
            for pair in pairwise(word):
                self.counts[pair] += frequency

    def most_frequent(self) -> Pair | None:
        return max(self.counts, key=lambda pair: (self.counts[pair], self.spelt[pair[0]], self.spelt[pair[1]]))

    def merge(self, pair: Pair, new_id: int, new_token: bytes) -> None:
        self.words = [merge_word(word, pair, new_id) for word in self.words]
        self.spelt[new_id] = new_token


class Corrected(Anew):
    """Counts once, and corrects the counts where a merge changes a word; every word is searched for the pair."""

    def count(self) -> None:
        if not self.counts:
            super().count()

    def merge(self, pair: Pair, new_id: int, new_token: bytes) -> None:
        for index, word in enumerate(self.words):
            if pair in pairwise(word):
                self.words[index] = merge_word(word, pair, new_id)
                for old in pairwise(word):
                    self.counts[old] -= self.frequencies[index]
                for new in pairwise(self.words[index]):
                    self.counts[new] += self.frequencies[index]
        self.spelt[new_id] = new_token


class Heaped(PairCounts):
    """What bpe.py does: it counts when it is made, knows which words hold a pair, and keeps a heap of the pairs."""

    def count(self) -> None:
        pass


class Scanned(Heaped):
    """The same without the heap: looks at all pairs for the most frequent one."""

    def most_frequent(self) -> Pair | None:
        return min(self.counts, key=self._entry)


def learn(kind: type[Anew | Heaped], words: Words, num_merges: int, clock: Clock) -> list[Pair]:
    """Returns the merges as pairs of ids."""
    spelt, learnt = initial_vocabulary([END_OF_TEXT]), []
    with clock(COUNT):
        pairs = kind([list(word) for word in words], list(words.values()), spelt, "lexicographic")
    for new_id in range(FIRST_ID, FIRST_ID + num_merges):
        with clock(COUNT):
            pairs.count()
        with clock(CHOOSE):
            pair = pairs.most_frequent()
        assert pair is not None, "the text has no more pairs"
        spelt[new_id] = spelt[pair[0]] + spelt[pair[1]]
        with clock(MERGE):
            pairs.merge(pair, new_id, spelt[new_id])
        learnt.append(pair)
    return learnt


def by_kernels(words: Words, num_merges: int, clock: Clock) -> list[Pair]:
    native = kernels_for(GPT2_PATTERN, KERNELS_FROM_BYTES, "merging").native
    assert native is not None, "the kernels cannot be loaded here"
    initial = list(initial_vocabulary([END_OF_TEXT]).values())
    with clock("kernels"):
        pairs: list[Pair] = native.learn_merges(native.table_of(words), initial, FIRST_ID + num_merges, None, False)[1]
    return pairs


WAYS_TO_LEARN: dict[str, WayToLearn] = {
    "counted anew for each merge": partial(learn, Anew),
    "counts corrected, all words searched": partial(learn, Corrected),
    "a map from pairs to the words that hold them": partial(learn, Scanned),
    "and a heap of the pairs (bpe.py)": partial(learn, Heaped),
    "kernels (native/learning.py)": by_kernels,
}


def later(words: Words, vocab_size: int) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Prints what merges cost, by their age, and returns the vocabulary and the merges."""
    vocab, merges = learn_merges(words, vocab_size, [END_OF_TEXT])
    ids = {token: token_id for token_id, token in vocab.items()}
    pairs = PairCounts([list(word) for word in words], list(words.values()), vocab, "lexicographic")
    print(f"\n{'merges':<16}{'words touched, mean':>20}{'occurrences, mean':>20}{'microseconds, mean':>20}")
    start, bounds = 0, [bound for bound in (10, 100, 1000) if bound < len(merges)]
    for end in [*bounds, len(merges)]:
        touched, occurrences, clock = 0, 0, Clock()
        for left, right in merges[start:end]:
            pair = ids[left], ids[right]
            touched, occurrences = touched + len(pairs.where[pair]), occurrences + pairs.counts[pair]
            with clock(MERGE):
                pairs.merge(pair, ids[left + right], left + right)
        number = end - start
        cells = (touched / number, occurrences / number, clock.seconds[MERGE] / number * 1e6)
        print(f"{f'{start + 1:,} to {end:,}':<16}" + "".join(f"{cell:20,.1f}" for cell in cells))
        start = end
    return vocab, merges


# --- encoding --------------------------------------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, text: str, num_characters: int) -> None:
    """Prints the bytes that each way encodes in a second of the processor."""
    ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
    ranks = {(ids[a], ids[b]): (rank, ids[a + b]) for rank, (a, b) in enumerate(tokenizer.merges)}
    packed = rank_merges(find_merge_ids(tokenizer.merges, ids))
    ways: dict[str, Callable[[list[int]], list[int]]] = {
        "every merge is tried": lambda word: all_merges(word, ranks),
        "merges whose pair is absent are passed over": lambda word: present_merges(word, ranks),
        "only the pairs of the word are looked up": lambda word: earliest_pair(word, ranks),
        "a heap of them, by the age of the merge (bpe.py)": lambda word: merge_by_rank(word, packed),
    }
    short = text[:num_characters]
    expected = tokenizer.encode_plainly(short)
    print(f"\n{f'encoding, {len(ids):,} tokens':<58}{'bytes/s':>14}{'speed':>10}")
    slowest = 0.0

    def show(name: str, size: int, seconds: float) -> None:
        nonlocal slowest
        slowest = slowest or size / seconds
        print(f"{name:<58}{size / seconds:14,.0f}{size / seconds / slowest:>9,.0f}x")

    pretokens = [list(pretoken.encode()) for part in short.split(END_OF_TEXT) for pretoken in pretokenize(part)]
    for name, way in ways.items():
        start = time.process_time()
        found = list(chain.from_iterable(way(pretoken) for pretoken in pretokens))
        show(name, len(short.encode()), time.process_time() - start)
        assert found == [token_id for token_id in expected if token_id != ids[END_OF_TEXT.encode()]], name
    size = len(text.encode())
    start = time.process_time()
    whole = tokenizer.encode_plainly(text)
    show("the heap, and known words from a table (tokenizer.py)", size, time.process_time() - start)
    tokenizer.encode_to_numpy(text)  # loads the kernels
    start = time.process_time()
    array = tokenizer.encode_to_numpy(text)
    show(f"kernels (native/encoding.py), {size / 1e6:.1f} MB", size, time.process_time() - start)
    assert array.tolist() == whole


def all_merges(word: list[int], ranks: PairRanks) -> list[int]:
    """Tries every merge, the oldest first."""
    for pair, (_, merged) in ranks.items():
        word = merge_word(word, pair, merged)
    return word


def present_merges(word: list[int], ranks: PairRanks) -> list[int]:
    """Passes over the merges whose pair is not in the word."""
    present = set(pairwise(word))
    for pair, (_, merged) in ranks.items():
        if pair in present:
            word = merge_word(word, pair, merged)
            present = set(pairwise(word))
    return word


def earliest_pair(word: list[int], ranks: PairRanks) -> list[int]:
    """Looks up the merges of the word's own pairs, and does the oldest."""
    while known := [pair for pair in pairwise(word) if pair in ranks]:
        pair = min(known, key=lambda pair: ranks[pair])
        word = merge_word(word, pair, ranks[pair][1])
    return word


if __name__ == "__main__":
    main()
