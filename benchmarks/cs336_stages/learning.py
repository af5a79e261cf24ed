"""Learns merges in five ways, each of which does one thing less often, and shows what merges cost by their age."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from cs336_stages.clock import Clock, repeat
from tokenization import END_OF_TEXT
from tokenization.bpe import Pair, PairCounts, initial_vocabulary, learn_merges, merge_word
from tokenization.kernels import KERNELS_FROM_BYTES, kernels_for
from tokenization.pretokenization import GPT2_PATTERN, count_pretokens

FIRST_ID = len(initial_vocabulary([END_OF_TEXT]))  # of a merge
COUNT, CHOOSE, MERGE = PHASES = ("count", "choose", "merge")
Words = dict[bytes, int]  # pre-tokens and how often each occurs
WayToLearn = Callable[[Words, int, Clock], list[Pair]]


def train(text: str, num_merges: int, enough: float) -> None:
    """Prints the seconds of each way to learn merges, by phase."""
    words = count_pretokens(text, [END_OF_TEXT])
    print(f"\n{num_merges:,} merges of {len(text.encode()) / 1e6:.2f} MB, {len(words):,} different pre-tokens")
    print(f"{'':<44}" + "".join(f"{phase + ' s':>11}" for phase in (*PHASES, "all")) + f"{'speed':>9}")
    first: list[Pair] | None = None
    slowest = 0.0
    for name, way in WAYS_TO_LEARN.items():
        pairs, seconds = repeat(partial(way, words, num_merges), enough)
        first, total = first or pairs, sum(seconds.values())
        assert pairs == first, f"{name}: other merges"
        slowest = slowest or total
        phases = "".join(f"{seconds[phase]:11.3f}" if phase in seconds else f"{'':>11}" for phase in PHASES)
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
