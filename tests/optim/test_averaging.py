"""Proves that the average is the weighted sum of all weights so far, and that it and the weights keep their places."""

import pytest
import torch
from torch import nn

from lm.optim.averaging import WeightAverage

STEPS = 30


def decays(decay: float) -> list[float]:
    return [min(decay, (1 + t) / (10 + t)) for t in range(1, STEPS + 1)]


def weighted_sum(history, decay):
    """Each weight's share written out: (1 - d) of its own step times the d of all steps after it."""
    d = decays(decay)
    shares = [1.0 if t == 0 else 1 - d[t] for t in range(STEPS)]
    for t in range(STEPS):
        for later in range(t + 1, STEPS):
            shares[t] *= d[later]
    assert sum(shares) == pytest.approx(1)
    return [sum(s * w[i].double() for s, w in zip(shares, history, strict=True)) for i in range(len(history[0]))]


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_weighted_sum(decay):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    average, history = WeightAverage(weights, decay), []
    for _ in range(STEPS):
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight))
        average.update()
        history.append([weight.detach().clone() for weight in weights])
    for other, expected in zip(average.others, weighted_sum(history, decay), strict=True):
        torch.testing.assert_close(other.double(), expected, rtol=0, atol=1e-5)
        assert not other.requires_grad


def test_exchanging_and_states():
    embedding = nn.Parameter(torch.tensor([1.0]))
    state = {"a": embedding, "tied": embedding, "table": torch.tensor([7.0])}
    average = WeightAverage([embedding], 0.5)
    average.exchange()  # before any step there is nothing to show
    assert (embedding.item(), average.in_model) == (1.0, False)
    average.update()
    with torch.no_grad():
        embedding.fill_(3.0)
    average.update()  # d = 3 / 12
    for _ in range(2):
        shown, trained = average.states(state)
        assert {name: float(value) for name, value in shown.items()} == {"a": 2.5, "tied": 2.5, "table": 7.0}
        assert {name: float(value) for name, value in trained.items()} == {"a": 3.0, "tied": 3.0, "table": 7.0}
        average.exchange()
        assert embedding.item() == (2.5 if average.in_model else 3.0)
    again = WeightAverage([embedding], 0.5)
    again.load(state, average.states(state)[0], average.steps)
    assert (again.steps, [float(other) for other in again.others]) == (2, [2.5])
    again.others[0].zero_()
    assert float(average.others[0]) == 2.5  # a copy


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none(decay):
    with pytest.raises(ValueError, match=r"ema_decay is .*; it must be at least 0"):
        WeightAverage([], decay)
