"""Proves that temperature, top-k, top-p, min-p and the repetition penalty keep and scale what a brute-force reading of
their definitions, or transformers, does."""

import math
import random

import pytest
import torch
import transformers

from lm.generation.sampling import (
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_token_probabilities,
    penalize_repetition,
)
from lm.generation.sampling import draw as draw_tokens
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


SHARES = (0.0, 5e-324, 1e-46, 1e-30, 1e-8, 0.5, 1 - 1e-9, 1.0)


@pytest.mark.parametrize("seed", range(100))
def test_no_setting_draws_what_it_should_not(seed):
    """Extreme settings and logits: a draw is a token that the definition keeps, and the likeliest is one of these."""
    rng = random.Random(seed)
    scale = rng.choice([1e-6, 1.0, 30.0, 1e4, 1e30, 3e38])
    values = [rng.uniform(-1, 1) * scale for _ in range(rng.choice([1, 2, 5, 300]))]
    values = [-math.inf if rng.random() < 0.2 else value for value in values]
    values[rng.randrange(len(values))] = rng.choice([0.0, scale])  # one at least can be drawn
    logits = torch.tensor(values).to(rng.choice([torch.float32, torch.bfloat16])).float()
    sampling = Sampling(
        temperature=rng.choice([0, 0.001, 0.7, 1.0, 1e6]),
        top_k=rng.choice([None, 1, 2, 10**9]),
        top_p=rng.choice(SHARES),
        min_p=rng.choice(SHARES),
        repetition_penalty=rng.choice([1e-6, 0.5, 1.0, 1.3, 1e6]),
    )
    text = [rng.randrange(len(values)) for _ in range(3)]
    scored = penalize_repetition(logits, torch.tensor(text), sampling.repetition_penalty).tolist()
    assert all(math.isfinite(after) == math.isfinite(before) for before, after in zip(values, scored, strict=True))
    best, temperature = max(scored), sampling.temperature or 1.0
    likeliest = {i for i, value in enumerate(scored) if torch.tensor((value - best) / temperature).float() == 0}
    allowed = {index for index, value in enumerate(scored) if value > -math.inf}
    if sampling.temperature == 0 or sampling.top_p <= 1e-30 or sampling.min_p == 1 or sampling.top_k == 1:
        allowed = likeliest
    probabilities = next_token_probabilities(torch.tensor(scored), sampling)
    kept = set(probabilities.nonzero().flatten().tolist())
    assert kept <= allowed
    assert kept & likeliest
    assert probabilities.sum() == pytest.approx(1)
    drawn = draw_tokens(
        logits.expand(20, -1), sampling, [text] * 20, [torch.Generator().manual_seed(i) for i in range(20)]
    )
    assert set(drawn) <= kept


def test_greedy():
    logits = torch.tensor([[1.0, 5.0, 4.9], [7.0, -1.0, 0.0]])
    assert next_token_probabilities(logits, Sampling(0)).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert next_token_probabilities(torch.tensor([2.0, 2.0, 1.0]), Sampling(0)).sum() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": 1e-300}, "temperature 1e-300"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": 0}, "top_k 0"),
        ({"temperature": 1e300}, "temperature 1e"),
        ({"top_p": -0.1}, "top_p -0.1"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"min_p": 1.1}, "min_p 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": 1e300}, "repetition_penalty 1e"),
    ],
)
def test_values_that_make_no_sense(wrong, message):
    with pytest.raises(InputError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_of_equally_likely_tokens_keeps_as_many_as_transformers(p):
    generator = torch.Generator().manual_seed(1)
    logits = torch.cat([torch.randint(0, 5, (40, 50), generator=generator).float(), torch.zeros(1, 50)])
    theirs = transformers.TopPLogitsWarper(p)(None, logits)
    ours = keep_top_p(logits, p)
    assert torch.equal(ours.isfinite().sum(dim=1), theirs.isfinite().sum(dim=1))
    for row, kept in zip(logits, ours.isfinite(), strict=True):
        order = sorted(range(50), key=lambda index: (-row[index].item(), index))
        assert kept.nonzero().flatten().tolist() == sorted(order[: int(kept.sum())])
    assert torch.equal(keep_top_p(logits.bfloat16(), p), ours.bfloat16())


def test_top_p_of_many_tokens():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0):
        logits = torch.randn(2, 3000, generator=generator) * scale
        for row, kept in zip(logits, keep_top_p(logits, 0.9), strict=True):
            ordered, order = row.double().softmax(-1).sort(descending=True)
            expected = order[: int((ordered.cumsum(0) < 0.9).sum()) + 1]
            assert set(kept.isfinite().nonzero().flatten().tolist()) == set(expected.tolist())
            assert torch.equal(kept[expected], row[expected])


def test_min_p_and_repetition_penalty_are_those_of_transformers():
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 3
    seen = torch.tensor([3, 7, 7, 11])
    for p in (0.02, 0.3, 1.0):
        torch.testing.assert_close(keep_min_p(logits, p), transformers.MinPLogitsWarper(p)(seen[None], logits[None])[0])
    for penalty in (1.5, 0.5):
        theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(seen[None], logits[None].clone())[0]
        torch.testing.assert_close(penalize_repetition(logits, seen, penalty), theirs)
    plain = next_token_probabilities(logits, Sampling(1.0, None, 1.0, repetition_penalty=2.0))
    torch.testing.assert_close(plain, torch.softmax(logits, -1))  # no text, no penalty
