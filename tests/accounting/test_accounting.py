"""Proves the accounting against the handout's numbers, and against torch's FLOP counter."""

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lm.accounting import costs
from lm.accounting.activations import make_model
from lm.accounting.costs import (
    PARTS,
    adamw_flops,
    forward_flops,
    handout_activations,
    largest_batch,
    preset,
    state_bytes,
)
from lm.experiments.shares import shares
from lm.model.transformer import TransformerLM
from lm.optim.adamw import AdamW, adamw_update
from lm.optim.muon import Muon

# Presets and editions: parameters, forward FLOPs, and the shares of feed-forward, projections, scores and head in
# percent; those of the handout's analysis (transformer_accounting).
PUBLISHED = [
    ("gpt2-xl", 2025, 2_127_057_600, 4.513e12, (66.9, 22.3, 7.1, 3.6)),
    ("gpt2-xl", 2026, 1_640_452_800, 3.517e12, (57.5, 28.6, 9.2, 4.7)),
    ("gpt2-xl-16k", 2025, 2_127_057_600, 1.495e14, (32.3, 10.8, 55.2, 1.8)),
    ("gpt2-xl-16k", 2026, 1_640_452_800, 1.336e14, (24.2, 12.1, 61.7, 2.0)),
    ("tinystories", 2026, 22_696_448, 9.534e9, None),
]


@pytest.mark.parametrize(("name", "edition", "parameters", "flops", "percent"), PUBLISHED)
def test_published_numbers(name, edition, parameters, flops, percent):
    model = make_model(preset(name, edition))
    forward = forward_flops(model)
    total = sum(forward.values())
    assert sum(costs.parameters_by_part(model).values()) == parameters == model.num_parameters()
    assert total == pytest.approx(flops, rel=2e-4)
    if percent:
        parts = ("feed-forward", "projections", "scores", "head")
        assert [round(100 * forward[part] / total, 1) for part in parts] == list(percent)
    vocab, length, d_model, layers, d_ff = (
        preset(name, edition)[key] for key in ("vocab_size", "context_length", "d_model", "num_layers", "d_ff")
    )
    block = 8 * length * d_model**2 + 4 * length**2 * d_model + 6 * length * d_model * d_ff
    assert total == layers * block + 2 * length * d_model * vocab


def test_the_convention_without_gains_and_head():
    """As the first notes on this model counted."""
    model, long = (make_model(preset(name, 2025)) for name in ("gpt2-xl", "gpt2-xl-16k"))
    counts = costs.parameters_by_part(model)
    assert (counts["norms"], model.num_parameters() - counts["norms"]) == (155_200, 2_126_902_400)
    for other, head, rest in ((model, 1.647e11, 4.349e12), (long, 2.635e12, 1.469e14)):
        flops = forward_flops(other)
        assert flops["head"] == pytest.approx(head, rel=3e-4)
        assert sum(flops.values()) - flops["head"] == pytest.approx(rest, rel=3e-4)


def test_tinystories_without_embeddings():
    counts = costs.parameters_by_part(make_model(preset("tinystories")))
    total = sum(counts.values())
    assert total - counts["embeddings"] == 17_576_448
    assert total - counts["embeddings"] - counts["head"] == 12_456_448
    assert costs.training_flops_per_token(make_model(preset("tinystories"))) == pytest.approx(1.117e8, rel=1e-3)
    silu = make_model({**preset("tinystories"), "feed_forward": "silu", "d_ff": 2048})
    assert silu.num_parameters() == 22_827_520


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_the_optimizers_keep(optimizer):
    """Counted in their state after a step."""
    model = TransformerLM(50, 8, 16, 2, num_heads=2)
    chosen = AdamW(model.parameters(), lr=0.1) if optimizer == "adamw" else Muon(model.named_parameters(), lr=0.1)
    model(torch.arange(8)).sum().backward()
    chosen.step()
    kept = [value for state in chosen.state.values() for value in state.values() if torch.is_tensor(value)]
    numbers = sum(value.numel() for value in kept if value.ndim)
    assert state_bytes(model, optimizer)["optimizer state"] == 4 * numbers


def test_memory_as_the_handout_counts():
    """4 B [L (16 T d + 2 h T^2) + T d + 2 T V] and 16 P bytes in 2025; and the batch that fits."""
    model = make_model(preset("gpt2-xl", 2025))
    length, d_model, heads, layers, vocab = 1024, 1600, 25, 48, 50257
    per_text = 4 * sum(handout_activations(model, 2025).values())
    block = 16 * length * d_model + 2 * heads * length**2
    assert per_text == 4 * (layers * block + length * d_model + 2 * length * vocab)
    fixed = sum(state_bytes(model).values())
    assert (per_text / 1e9, fixed / 1e9) == (pytest.approx(15.518, abs=1e-3), pytest.approx(34.03, abs=5e-3))
    assert [largest_batch(memory, fixed, per_text) for memory in (80e9, 80 * 2**30)] == [2, 3]
    assert largest_batch(fixed / 2, fixed, per_text) == 0
    newer = make_model(preset("gpt2-xl", 2026))
    block = 8 * length * d_model + 2 * heads * length**2 + 4 * length * 4288  # norms 2, attention 5, W2 1
    expected = 4 * (layers * block + length * d_model + 2 * length * vocab)
    assert 4 * sum(handout_activations(newer, 2026).values()) == expected


def test_days_as_the_handout_asks():
    """400,000 steps of 1,024 texts at an MFU of a half."""
    tokens = 4e5 * 1024 * 1024
    old, new = (make_model(preset("gpt2-xl", edition)) for edition in (2025, 2026))
    assert costs.training_seconds(old, tokens, 19.5e12, 0.5) == pytest.approx(5.69e8, rel=1e-3)
    assert costs.training_seconds(old, tokens, 19.5e12, 0.5) / 86400 == pytest.approx(6.58e3, rel=1e-3)
    assert costs.training_seconds(new, tokens, 495e12, 0.5) / 3600 == pytest.approx(4.85e3, rel=1e-3)


class Counting:
    """A number that counts what is computed with it."""

    done = 0

    def __init__(self, value: float):
        self.value = value

    def _operate(self, function, other):
        Counting.done += 1
        return Counting(function(self.value, getattr(other, "value", other)))

    def __add__(self, other):
        return self._operate(lambda a, b: a + b, other)

    def __sub__(self, other):
        return self._operate(lambda a, b: a - b, other)

    def __mul__(self, other):
        return self._operate(lambda a, b: a * b, other)

    def __truediv__(self, other):
        return self._operate(lambda a, b: a / b, other)

    def sqrt(self):
        return self._operate(lambda a, _: math.sqrt(a), 0.0)


def test_adamw_flops_by_counting():
    """The handout's formulas on one parameter, each operation counted; and the result is that of our optimizer."""
    weight, gradient, m, v = (Counting(value) for value in (0.5, 0.3, 0.1, 0.2))
    lr, beta1, beta2, eps, decay, t = 1e-2, 0.9, 0.95, 1e-8, 0.1, 3
    a_t, shrink = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t), lr * decay
    tensors = [torch.tensor([x.value], dtype=torch.float64) for x in (weight, gradient, m, v)]
    m = m * beta1 + gradient * (1 - beta1)
    v = v * beta2 + gradient * gradient * (1 - beta2)
    weight = weight - weight * shrink
    weight = weight - m * a_t / (v.sqrt() + eps)
    assert Counting.done == adamw_flops(1) == 14
    adamw_update(*tensors, t, lr, (beta1, beta2), eps, decay)
    assert weight.value == pytest.approx(tensors[0].item(), rel=1e-12)


SMALL = {"vocab_size": 100, "context_length": 24, "d_model": 32, "num_layers": 3, "num_heads": 4}


@pytest.mark.parametrize("feed_forward", ["swiglu", "silu", "relu2"])
def test_flops_are_those_that_torch_counts(feed_forward):
    model = make_model({**SMALL, "feed_forward": feed_forward}).to_empty(device="cpu")
    tokens = torch.zeros(2, 25, dtype=torch.int64)
    with FlopCounterMode(display=False) as forward:
        loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = 2 * sum(forward_flops(model).values())
    assert forward.get_total_flops() == expected
    assert backward.get_total_flops() == 2 * expected
    assert costs.training_flops_per_token(model) * 2 * 24 == 3 * expected


class ProductsOfTorch(TorchDispatchMode):
    """Counts the matrix products that torch computes, by (rows, inner, columns)."""

    def __init__(self):
        super().__init__()
        self.times: Counter = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            left, right = arguments
            self.times[(*left.shape[-2:], right.shape[-1])] += math.prod(left.shape[:-2])
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("feed_forward", ["swiglu", "silu"])
def test_products_are_those_that_torch_computes(feed_forward):
    model = make_model({**SMALL, "feed_forward": feed_forward}).to_empty(device="cpu")
    with torch.no_grad(), ProductsOfTorch() as computed:
        model(torch.zeros(1, 24, dtype=torch.int64))
    counted: Counter = Counter()
    for product, times in costs.matrix_products(model).items():
        counted[product.rows, product.inner, product.columns] += times
    assert counted == computed.times


@pytest.mark.parametrize("norm_position", ["pre", "post", "none"])
@pytest.mark.parametrize("feed_forward", ["swiglu", "silu"])
def test_parameters_by_part_of_a_model_with_weights(norm_position, feed_forward):
    from lm.model.transformer import TransformerLM

    settings = {**SMALL, "norm_position": norm_position, "feed_forward": feed_forward, "vocab_multiple": 64}
    counts = costs.parameters_by_part(make_model(settings))
    d_ff = 64 if feed_forward == "swiglu" else 128
    norms = {"pre": 7, "post": 6, "none": 0}[norm_position] * 32
    products = 3 if feed_forward == "swiglu" else 2
    expected = (128 * 32, norms, 3 * 4 * 32 * 32, 0, 3 * products * 32 * d_ff, 128 * 32)
    assert tuple(counts.values()) == expected
    assert sum(expected) == sum(weight.numel() for weight in TransformerLM(**settings).parameters())
    assert tuple(counts) == PARTS


def test_shares_move_to_the_scores_with_the_context():
    settings = preset("gpt2-small")
    short, long = (shares({**settings, "context_length": length}) for length in (128, 16384))
    assert sum(short.values()) == pytest.approx(1)
    assert long["scores"] > 0.5 > 0.1 > short["scores"]
    flops = forward_flops(make_model(settings))
    assert shares(settings) == pytest.approx({part: count / sum(flops.values()) for part, count in flops.items()})
