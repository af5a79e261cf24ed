"""Bytes per token against the size of the vocabulary: one tokenizer with its merges stands for all smaller ones.

Cut after its first k merges, a tokenizer is what training would have given at that size. Encoding with the first k is
the beginning of encoding with all: both apply the merge of the lowest rank there is, until the longer list comes to a
rank of k or more. So a pre-token is merged once, noting the ranks, and the merges up to the first rank of k or more are
those that the smaller tokenizer would apply; each leaves one token fewer. Ranks mostly rise within a pre-token. Where
two merges spell one token they may fall, and so the highest rank up to a merge is what counts.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tokenization.bpe import Merges, merge_by_rank, rank_merges
from tokenization.plots import curve_colour, curve_style, new_figure, plain, save
from tokenization.pretokenization import CHUNK_CHARACTERS, cut_into_chunks, pretokenize, split_on_special_tokens
from tokenization.tokenizer import Tokenizer, to_utf8


class Size(NamedTuple):
    """A tokenizer cut after its first merges, and the number of tokens that a text has then."""

    vocab_size: int
    merges: int
    tokens: int


def tokens_by_size(tokenizer: Tokenizer, texts: Sequence[str], progress: bool = False) -> list[Size]:
    """Returns the tokens of all the texts together for some cuts: no merges, vocabularies of powers of 2, all merges.

    Each text is encoded by itself. Raises InputError for a lone surrogate.
    """
    pretokens: Counter[str] = Counter()
    num_special = 0
    for chunk in chunks(texts, tokenizer, progress):
        stretches = split_on_special_tokens(chunk, tokenizer.special_tokens)
        num_special += len(stretches) // 2
        for stretch in stretches[::2]:
            pretokens.update(pretokenize(stretch, tokenizer.pattern))
    num_bytes = sum(len(pretoken.encode()) * count for pretoken, count in pretokens.items())
    applied = count_applied(tokenizer.merges, pretokens, progress)
    saved = list(accumulate((applied[rank] for rank in range(len(tokenizer.merges))), initial=0))
    sizes = vocabulary_sizes(tokenizer)
    return [Size(sizes[cut], cut, num_special + num_bytes - saved[cut]) for cut in choose_cuts(sizes)]


def chunks(texts: Sequence[str], tokenizer: Tokenizer, progress: bool) -> Iterator[str]:
    """Yields the texts, the long ones in pieces that can be tokenized one by one."""
    total = sum(map(len, texts))
    with tqdm(
        total=total, desc="splitting", unit=" characters", unit_scale=True, disable=not progress, delay=0.5
    ) as bar:
        for text in texts:
            to_utf8(text)
            blocks = (text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS))
            for chunk in cut_into_chunks(blocks, tokenizer.special_tokens, tokenizer.pattern):
                yield chunk
                bar.update(len(chunk))


def count_applied(merges: Merges, pretokens: Mapping[str, int], progress: bool = False) -> Counter[int]:
    """Returns, for each rank, how many merges in all the pre-tokens need that merge, and none of a higher rank."""
    numbers = {bytes([value]): value for value in range(256)}
    spelt = ((left, right, left + right) for left, right in merges)
    rows = [[numbers.setdefault(token, len(numbers)) for token in tokens] for tokens in spelt]
    ranks = rank_merges(np.array(rows, np.int64).reshape(-1, 3))
    needed: Counter[int] = Counter()
    bar = tqdm(pretokens.items(), desc="merging", unit="pre-token", unit_scale=True, disable=not progress, delay=0.5)
    for pretoken, count in bar:
        applied: list[int] = []
        merge_by_rank(list(pretoken.encode()), ranks, applied)
        for rank in accumulate(applied, max):
            needed[rank] += count
    return needed


def vocabulary_sizes(tokenizer: Tokenizer) -> list[int]:
    """Returns the number of tokens after no merge, after the first, ..., after all; several may spell one token."""
    known = {token.encode() for token in tokenizer.special_tokens}
    sizes = [len(tokenizer.vocab) - len({left + right for left, right in tokenizer.merges} - known)]
    for left, right in tokenizer.merges:
        sizes.append(sizes[-1] + (left + right not in known))
        known.add(left + right)
    return sizes


def choose_cuts(sizes: Sequence[int]) -> list[int]:
    """Returns numbers of merges: none, those that fill a vocabulary of a power of 2, and all."""
    powers = [1 << exponent for exponent in range(sizes[-1].bit_length()) if sizes[0] < 1 << exponent < sizes[-1]]
    return list(dict.fromkeys([0, *(bisect_right(sizes, power) - 1 for power in powers), len(sizes) - 1]))


def draw_sizes(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Draws bytes per token by size of vocabulary as a PNG; curves: by their name in the legend."""
    with new_figure(7, 4.5) as figure:
        axes = figure.subplots()
        for place, (name, points) in enumerate(curves.items()):
            line = axes.plot(*zip(*points, strict=True), curve_style(place), color=curve_colour(place), marker=".")
            line[0].set_label(plain(name))
        axes.set_xscale("log", base=2)
        ticks = sorted({size for points in curves.values() for size, _ in points if size.bit_count() == 1})
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.set(xlabel="tokens in the vocabulary", ylabel="bytes per token")
        axes.legend()
        save(figure, path)
