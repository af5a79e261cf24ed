"""Proves that temperature, top-k and top-p keep and scale what a brute-force reading of their definitions does, and
that generation is repeatable, slides, stops, and never draws an id that the tokenizer lacks."""

import math
import random
from collections import Counter

import pytest
import torch
from torch import nn

from lm.generation import Sampling, generate, keep_top_k, keep_top_p, next_token_probabilities
from lm.transformer import TransformerLM
from tokenization import InputError


def brute_force(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> list[float]:
    """The definition, for logits without equals: sort, keep, renormalise."""
    order = sorted(range(len(logits)), key=lambda index: -logits[index])[:top_k]
    weights = {index: math.exp((logits[index] - logits[order[0]]) / temperature) for index in order}
    total, kept, reached = sum(weights.values()), {}, 0.0
    for index in order:
        kept[index] = weights[index] / total
        reached += kept[index]
        if reached >= top_p:
            break
    return [kept.get(index, 0.0) / sum(kept.values()) for index in range(len(logits))]


@pytest.mark.parametrize("seed", range(40))
def test_random_distributions(seed):
    rng = random.Random(seed)
    logits = [rng.gauss(0, 3) for _ in range(rng.randint(1, 30))]
    temperature, top_k = rng.uniform(0.2, 3), rng.choice([None, 1, 2, 5, 100])
    top_p = rng.choice([1.0, rng.uniform(0.01, 0.99)])
    probabilities = next_token_probabilities(torch.tensor(logits), Sampling(temperature, top_k, top_p))
    assert probabilities.tolist() == pytest.approx(brute_force(logits, temperature, top_k, top_p), abs=1e-5)


def test_each_row_by_itself():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(0.7, 5, 0.6)
    whole = next_token_probabilities(logits, sampling)
    for row, expected in zip(logits.view(-1, 11), whole.view(-1, 11), strict=True):
        torch.testing.assert_close(next_token_probabilities(row, sampling), expected)
    assert next_token_probabilities(logits.bfloat16(), sampling).dtype == torch.float32


def test_top_k_keeps_equals_and_top_p_the_fewest():
    assert keep_top_k(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2).tolist() == [-math.inf, 3, 2, 2]
    logits = torch.tensor([0.125, 0.5, 0.25, 0.125]).log()
    for p, kept in ((0.01, {1}), (0.5, {1}), (0.51, {1, 2}), (0.75, {1, 2}), (0.9999, {0, 1, 2, 3})):
        assert set(keep_top_p(logits, p).isfinite().nonzero().flatten().tolist()) == kept


def test_greedy():
    logits = torch.tensor([[1.0, 5.0, 4.9], [7.0, -1.0, 0.0]])
    assert next_token_probabilities(logits, Sampling(0)).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert next_token_probabilities(torch.tensor([2.0, 2.0, 1.0]), Sampling(0)).sum() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": math.nan}, "top_p nan"),
    ],
)
def test_values_that_make_no_sense(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


class Scripted(nn.Module):
    """Knows one distribution, whatever it reads, and remembers what that was."""

    def __init__(self, probabilities: list[float], context_length: int = 4):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.context_length = context_length
        self.windows: list[list[int]] = []

    def forward(self, token_ids):
        self.windows.append(token_ids[0].tolist())
        return self.logits.expand(*token_ids.shape, -1)


def test_the_frequencies_are_the_probabilities():
    counts = Counter(generate(Scripted([0.1, 0.2, 0.7]), [0], 3000, Sampling(1.0, None, 1.0)))
    assert counts[1] / 3000 == pytest.approx(0.2, abs=0.03)
    assert counts[2] / 3000 == pytest.approx(0.7, abs=0.03)


def test_the_window_slides():
    model = Scripted([0.25] * 4)
    new = list(generate(model, [0, 1], 6, Sampling(1.0, None, 1.0)))
    text = [0, 1, *new]
    assert len(new) == 6
    assert model.windows == [text[max(0, end - 4) : end] for end in range(2, 8)]
    model.windows.clear()
    list(generate(model, [3, 2, 1, 0, 1, 2], 1, Sampling()))
    assert model.windows == [[1, 0, 1, 2]]


def test_it_stops_before_the_stop_token_and_draws_lazily():
    assert list(generate(Scripted([0.0, 1.0]), [0], 5, Sampling(), stop_id=1)) == []
    model = Scripted([0.5, 0.3, 0.2])
    free = list(generate(model, [0], 50, Sampling(1.0, None, 1.0), seed=4))
    stopped = list(generate(model, [0], 50, Sampling(1.0, None, 1.0), seed=4, stop_id=2))
    assert stopped == free[: free.index(2)]
    model.windows.clear()
    drawing = generate(model, [0], 50, Sampling())
    assert not model.windows
    next(drawing)
    assert len(model.windows) == 1


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_ids_that_the_tokenizer_lacks_are_never_drawn(temperature):
    model = Scripted([0.001, 0.002, 0.3, 0.697])
    drawn = set(generate(model, [0], 200, Sampling(temperature, None, 1.0), vocab_size=2))
    assert drawn == ({1} if temperature == 0 else {0, 1})


def test_the_seed_alone_decides():
    torch.manual_seed(0)
    model = TransformerLM(30, 8, 16, 1, 2)
    first = list(generate(model, [1, 2], 20, Sampling(), seed=7))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert list(generate(model, [1, 2], 20, Sampling(), seed=7)) == first
    assert torch.equal(torch.get_rng_state(), state)  # training draws nothing else because of it
    assert list(generate(model, [1, 2], 20, Sampling(), seed=8)) != first
    assert all(parameter.grad is None for parameter in model.parameters())


def test_greedy_is_the_argmax_of_the_model_at_each_step():
    torch.manual_seed(0)
    model, text = TransformerLM(30, 8, 16, 1, 2), [1, 2, 3]
    for token_id in generate(model, [1, 2, 3], 12, Sampling(0)):
        assert token_id == model(torch.tensor([text[-8:]]))[0, -1].argmax()
        text.append(token_id)
    assert len(text) == 15


def test_a_model_that_has_diverged_is_said_to_have():
    for value in (math.nan, math.inf):
        model = Scripted([0.5, 0.5])
        model.logits.data[0] = value
        with pytest.raises(InputError, match="not numbers; its training has diverged"):
            list(generate(model, [0], 5, Sampling()))
