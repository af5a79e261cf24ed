"""Proves that pre-tokens are cut only where no merge can join two characters: the ids stay those of plain Python."""

import random
from itertools import pairwise, product

import numpy as np
import pytest

from tokenization import Tokenizer, native
from tokenization.bpe import find_merge_ids, learn_merges, merge_by_rank, rank_merges
from tokenization.native.joints import JOINTS_SIZE, find_joint, joints_of
from tokenization.native.memory import address_of
from tokenization.native.merging import JOINTS
from tokenization.pretokenization import PATTERNS, count_pretokens

# Characters of three bytes that share their bytes in all ways, and some of other lengths, letters all.
WIDE = [bytes(parts).decode() for parts in product((0xE4, 0xE5, 0xE8), (0x80, 0x81, 0xBF), (0x80, 0x81, 0xBF))]
OTHERS = ["a", "B", "é", "я", "\U00020000", "ก", "क", "한"]
BYTES = {value: bytes([value]) for value in range(256)}


def random_word(source: random.Random, length: int = 60) -> str:
    pool = source.choice([WIDE, WIDE[:3], source.sample(WIDE, 6), source.sample(WIDE, 6) + OTHERS])
    return "".join(source.choices(pool, k=source.randrange(1, length)))


def learnt(source: random.Random, pattern: str) -> Tokenizer:
    """Merges that some words taught."""
    words = " ".join(random_word(source, 12) for _ in range(30))
    return Tokenizer(*learn_merges(count_pretokens(words, [], pattern), source.choice([270, 300, 500])), [], pattern)


def at_random(source: random.Random, pattern: str) -> Tokenizer:
    """Merges of tokens of any bytes, in any order: parts of characters, and tokens that only a later merge makes."""
    tokens = [bytes([value]) for value in "".join(WIDE).encode()]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(source.randrange(60)):
        left, right = source.choice(tokens[-40:]), source.choice(tokens)
        if (left, right) not in merges and len(left + right) < 12:
            merges.append((left, right))
            tokens.append(left + right)
    if source.random() < 0.2:
        source.shuffle(merges)
    vocab = dict(enumerate(dict.fromkeys([*BYTES.values(), *tokens])))
    return Tokenizer(vocab, merges, [], pattern)


def of_characters(source: random.Random, pattern: str) -> Tokenizer:
    """Merges that make whole characters first and then join some of them, as published vocabularies do."""
    characters = [character.encode() for character in WIDE]
    merges = dict.fromkeys(pair for c in characters for pair in ((c[:1], c[1:2]), (c[:2], c[2:])))
    tokens = [*characters, *source.choices([b"\x80", b"\xe4", b"\xe5\x81", b"\x81\xbf"], k=source.randrange(3))]
    for _ in range(source.randrange(80)):
        left, right = source.choice(tokens), source.choice(tokens)
        if left + right not in tokens and len(left + right) < 16:
            merges[left, right] = None
            tokens.append(left + right)
    vocab = dict(enumerate(dict.fromkeys([*BYTES.values(), *tokens, *map(b"".join, merges)])))
    return Tokenizer(vocab, list(merges), [], pattern)


def encoder_of(tokenizer: Tokenizer) -> native.Encoder:
    return tokenizer.switch.encoder_of(native)


@pytest.mark.parametrize("make", [learnt, at_random, of_characters])
@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
@pytest.mark.parametrize("number", [15, pytest.param(400, marks=pytest.mark.slow)])
def test_ids_are_those_of_whole_pretokens(name, make, number):
    source = random.Random(f"{name} {make.__name__}")
    for _ in range(number):
        tokenizer = make(source, PATTERNS[name])
        encoder = encoder_of(tokenizer)
        for _ in range(30):
            text = "".join(f"{random_word(source)}{source.choice([' ', '', '。', chr(10)])}" for _ in range(4))
            assert encoder.encode_text(text.encode()) == tokenizer.plain.encode(text), ascii(text)


def test_a_pretoken_longer_than_any_chunk():
    source = random.Random(1)
    for _ in range(5):
        tokenizer = of_characters(source, PATTERNS["o200k"])
        for length in (300, 341, 342, 350, 700, 3000):
            for text in (
                "".join(source.choices(WIDE, k=length)),
                "".join(source.choices(OTHERS[-3:] + WIDE, k=length)),
            ):
                assert encoder_of(tokenizer).encode_text(f"x {text}".encode()) == tokenizer.plain.encode(f"x {text}")


@pytest.mark.parametrize("make", [at_random, of_characters])
def test_no_merge_crosses_a_cut_and_most_places_are_cut(make):
    """By the tokens themselves: of every word, and of every two characters side by side."""
    source, places, cuts = random.Random(2), 0, 0
    for _ in range(40):
        tokenizer = make(source, PATTERNS["gpt2"])
        joints, ranks = joints_of(tokenizer._byte_ids, tokenizer._merge_ids), rank_merges(tokenizer._merge_ids)
        for word in ["".join(pair) for pair in product(WIDE, WIDE)][::7] + [random_word(source) for _ in range(20)]:
            data, found = word.encode() + bytes(8), []
            buffer, position = np.frombuffer(data, np.uint8), 0
            start = address_of(buffer)
            while position < len(data) - 8:
                position = find_joint(start + position, start + len(data) - 8, address_of(joints)) - start
                found.append(position)
            sizes = [len(tokenizer.vocab[i]) for i in merge_by_rank([tokenizer._byte_ids[b] for b in data[:-8]], ranks)]
            assert set(found) <= set(np.cumsum(sizes).tolist()), ascii(word)
            places += sum(len(a.encode()) == len(b.encode()) == 3 for a, b in pairwise(word))
            cuts += len(found) - 1
    assert places > cuts > (0.3 * places if make == of_characters else 500)


def test_a_table_without_joints_gives_other_ids():
    """So the test of the ids would notice a joint that is missing."""
    source, different = random.Random(3), 0
    for _ in range(10):
        tokenizer = of_characters(source, PATTERNS["gpt2"])
        encoder = encoder_of(tokenizer)
        encoder._head.arrays[JOINTS][:] = 0
        texts = [random_word(source) for _ in range(10)]
        different += any(encoder.encode_text(text.encode()) != tokenizer.plain.encode(text) for text in texts)
    assert different > 5


def test_a_merge_of_a_token_that_a_later_merge_makes_forbids_all_cuts():
    merges = [(b"\xe4\x80\x80", b"\xe5\x80\x80"), (b"\xe4\x80", b"\x80"), (b"\xe5\x80", b"\x80")]
    merges += [(b"\xe4", b"\x80"), (b"\xe5", b"\x80")]
    vocab = dict(enumerate([*BYTES.values(), *(left + right for left, right in merges)]))
    ids = {token: token_id for token_id, token in vocab.items()}
    assert (joints_of(range(256), find_merge_ids(merges, ids)) == 255).sum() == JOINTS_SIZE
    tokenizer = Tokenizer(vocab, merges)
    text = "\u4000\u5000" * 5
    assert encoder_of(tokenizer).encode_text(text.encode()) == tokenizer.plain.encode(text) == [256] * 5
