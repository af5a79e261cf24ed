"""Proves that the tokens counted for a smaller vocabulary are those of a tokenizer that was cut there and encodes."""

import random

import pytest

from tokenization import END_OF_TEXT, Tokenizer, vocabulary_sizes
from tokenization.bpe import learn_merges
from tokenization.vocabulary_sizes import Size, choose_cuts, tokens_by_size


def cut(tokenizer: Tokenizer, num_merges: int) -> Tokenizer:
    """Returns the tokenizer without its later merges and the tokens that only they make."""
    kept, special = tokenizer.merges[:num_merges], {token.encode() for token in tokenizer.special_tokens}
    made = {left + right for left, right in kept}
    later = {left + right for left, right in tokenizer.merges} - made - special
    vocab = {token_id: token for token_id, token in tokenizer.vocab.items() if token not in later}
    kept = [pair for pair in kept if not later & set(pair)]  # shuffled: a part that is made later only
    return Tokenizer(vocab, kept, tokenizer.special_tokens, tokenizer.pattern)


@pytest.fixture
def every_size(monkeypatch):
    monkeypatch.setattr(vocabulary_sizes, "choose_cuts", lambda sizes: range(len(sizes)))


def expected(tokenizer: Tokenizer, texts: list[str], num_merges: int) -> Size:
    smaller = cut(tokenizer, num_merges)
    return Size(len(smaller), num_merges, sum(len(smaller.encode(text)) for text in texts))


def test_every_size_of_a_trained_tokenizer(small, random_text, every_size):
    texts = ["The cat rained.", *(f"{random_text(seed, 300)}{END_OF_TEXT * (seed % 3)} cat's" for seed in range(20))]
    sizes = tokens_by_size(small, texts)
    assert sizes == [expected(small, texts, num_merges) for num_merges in range(len(small.merges) + 1)]
    assert sizes[0].tokens == sum(len(text.replace(END_OF_TEXT, "x").encode()) for text in texts)
    assert sizes[-1].tokens == sum(len(small.encode(text)) for text in texts)


@pytest.mark.parametrize("seed", range(20))
def test_every_size_where_merges_spell_the_same_token_or_are_out_of_order(seed, every_size):
    """There the ranks of a pre-token's merges fall as well as rise."""
    rng = random.Random(seed)
    words = {bytes(rng.choices(b"abc", k=rng.randint(2, 8))): rng.randint(1, 9) for _ in range(40)}
    vocab, merges = learn_merges(words, 280)
    tokens = set(vocab.values())
    splits = ((token[:place], token[place:]) for token in sorted(tokens) for place in range(1, len(token)))
    merges += [pair for pair in splits if tokens.issuperset(pair) and rng.random() < 0.7]
    rng.shuffle(merges)
    tokenizer = Tokenizer(vocab, merges, ["ab", "|"], r"\w+")
    texts = ["".join(rng.choices("abc| ", (5, 5, 5, 1, 2), k=200)) for _ in range(3)]
    sizes = tokens_by_size(tokenizer, texts)
    assert sizes == [expected(tokenizer, texts, num_merges) for num_merges in range(len(merges) + 1)]


def test_the_sizes_of_gpt2(gpt2):
    texts = ["It is unbelievable!\n\n\n1999 naïve cafés; the 漢字 of 😀" + END_OF_TEXT, "def f(x):\n    return x\n" * 3]
    sizes = tokens_by_size(gpt2, texts)
    assert [size.vocab_size for size in sizes] == [257, *(1 << power for power in range(9, 16)), 50257]
    assert sizes == [expected(gpt2, texts, size.merges) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [
        ([257], [0]),
        ([257, 258], [0, 1]),
        (list(range(257, 513)), [0, 255]),
        (list(range(257, 514)), [0, 255, 256]),
        ([*range(257, 513), 512, 512, 513], [0, 257, 258]),  # merges that make no new token
        ([300, 300], [0, 1]),
    ],
)
def test_cuts_are_at_the_powers_of_two(sizes, cuts):
    assert choose_cuts(sizes) == cuts
