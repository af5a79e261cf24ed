"""Proves that the merges shown for a word and a token are those of encoding, against the handout's example and against
`Tokenizer.encode`, whose merging is another algorithm."""

import random

import pytest

from tokenization import Tokenizer
from tokenization.bpe import learn_merges
from tokenization.derivation import merge_steps, origins, rank_pairs

HANDOUT = [
    *((b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")),
    *((b"ne", b"west"), (b"w", b"i"), (b"wi", b"d"), (b"wid", b"est"), (b"low", b"e"), (b"lowe", b"r")),
]


def test_the_handouts_newest_after_six_merges():
    steps = list(merge_steps(b"newest", rank_pairs(HANDOUT[:6])))
    assert [step.rank for step in steps] == [0, 1, 4, 5]
    assert [b" ".join(step.parts) for step in steps] == [b"n e w e st", b"n e w est", b"n e west", b"ne west"]
    assert (steps[2].left, steps[2].right) == (b"w", b"est")


def test_equal_pairs_are_merged_from_the_left():
    steps = list(merge_steps(b"aaaaa", rank_pairs([(b"a", b"a"), (b"aa", b"aa"), (b"a", b"a")])))
    assert [b" ".join(step.parts) for step in steps] == [b"aa a a a", b"aa aa a", b"aaaa a"]
    assert [step.rank for step in steps] == [0, 0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_steps_end_where_encoding_does_whatever_the_order_of_the_merges(seed):
    rng = random.Random(seed)
    counts = {bytes(rng.choices(b"abc", k=rng.randint(1, 8))): rng.randint(1, 9) for _ in range(30)}
    vocab, merges = learn_merges(counts, 290)
    merges += [(left[:-1], left[-1:] + right) for left, right in merges if left[:-1] and left[-1:] + right in counts]
    vocab |= dict(enumerate({part for pair in merges for part in pair} - set(vocab.values()), len(vocab)))
    if seed % 2:
        rng.shuffle(merges)
    tokenizer = Tokenizer(vocab, merges, [], "(?s:.+)")
    for _ in range(30):
        word = bytes(rng.choices(b"abc", k=rng.randint(1, 12)))
        steps = list(merge_steps(word, rank_pairs(merges)))
        parts = steps[-1].parts if steps else [word[place : place + 1] for place in range(len(word))]
        assert parts == [vocab[token_id] for token_id in tokenizer.encode(word.decode())]


def test_the_tree_behind_a_token():
    assert list(origins(b"newest", HANDOUT)) == [
        *((0, b"newest", 6), (1, b"ne", 5), (2, b"n", None), (2, b"e", None), (1, b"west", 4), (2, b"w", None)),
        *((2, b"est", 1), (3, b"e", None), (3, b"st", 0), (4, b"s", None), (4, b"t", None)),
    ]


def test_the_first_of_two_merges_that_spell_a_token_counts_and_an_empty_part_is_no_part():
    merges = [(b"", b"a"), (b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc"), (b"abc", b"")]
    assert [(token, rank) for _, token, rank in origins(b"abc", merges)] == [
        *((b"abc", 3), (b"ab", 1), (b"a", None), (b"b", None), (b"c", None)),
    ]


def test_a_token_as_deep_as_it_is_long():
    merges = [(b"a" * length, b"a") for length in range(1, 3000)]
    tree = list(origins(b"a" * 3000, merges))
    assert max(depth for depth, *_ in tree) == 2999
    assert b"".join(token for _, token, rank in tree if rank is None) == b"a" * 3000
