"""Proves that the learning rate follows the handout's formula at and around its corners, and torch's own cosine
schedule between them."""

import math

import pytest
import torch

from lm.optim.schedule import SCHEDULES, cosine_warmup, trapezoid
from lm.training.module import LanguageModel


@pytest.mark.parametrize(
    ("step", "expected"),
    # the course's own example: maximum 1, minimum 0.1, 7 warmup steps, the cosine ends at 21
    [
        *((step, step / 7) for step in range(8)),
        *((step, 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 7) / 14))) for step in range(8, 22)),
        *((step, 0.1) for step in range(22, 25)),
    ],
)
def test_by_hand(step, expected):
    assert cosine_warmup(step, 1.0, 0.1, 7, 21) == pytest.approx(expected, rel=1e-12)


def test_corners():
    assert cosine_warmup(0, 3e-3, 3e-4, 100, 1000) == 0
    assert cosine_warmup(100, 3e-3, 3e-4, 100, 1000) == 3e-3
    assert cosine_warmup(550, 3e-3, 3e-4, 100, 1000) == pytest.approx((3e-3 + 3e-4) / 2)
    assert cosine_warmup(1000, 3e-3, 3e-4, 100, 1000) == pytest.approx(3e-4)
    assert cosine_warmup(1001, 3e-3, 3e-4, 100, 1000) == 3e-4
    assert cosine_warmup(0, 3e-3, 3e-4, 0, 1000) == 3e-3  # no warmup
    assert cosine_warmup(5, 1.0, 0.1, 5, 5) == 1.0  # nothing but warmup
    assert cosine_warmup(6, 1.0, 0.1, 5, 5) == 0.1
    rates = [cosine_warmup(step, 1.0, 0.0, 30, 200) for step in range(250)]
    assert rates.index(max(rates)) == 30
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_against_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.05)
    for step in range(41):
        assert cosine_warmup(step + 10, 0.5, 0.05, 10, 50) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_schedule.step()


def test_the_trapezoid():
    assert [trapezoid(step, 1.0, 0.1, 4, 24, 0.5) for step in (0, 1, 4, 5, 14, 24, 25)] == pytest.approx(
        [0, 0.25, 1, 1, 1, 0.1, 0.1]
    )
    assert trapezoid(19, 1.0, 0.1, 4, 24, 0.5) == pytest.approx(0.55)  # in the middle of its line
    assert [trapezoid(step, 1.0, 0.1, 4, 24, 0.3) for step in range(18)] == [
        trapezoid(step, 1.0, 0.1, 4, 240, 0.3) for step in range(18)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_run_that_is_all_warmup_reaches_the_peak(schedule):
    rates = [schedule(step, 1.0, 0.1, 5, 5) for step in range(7)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.1])
    assert schedule(0, 1.0, 0.1, 0, 5) == 1.0  # and one without


@pytest.mark.parametrize("warmup", [0, 10])
def test_linear_is_torchs(warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    torch_schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=40)
    linear = SCHEDULES["linear"]
    assert [linear(step, 0.5, 0.05, 10, 50) for step in range(0, 10, 5)] == [0, 0.25]
    for step in range(45):
        assert linear(step + warmup, 0.5, 0.05, warmup, 40 + warmup) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_schedule.step()
    assert linear(40, 0.5, 0.0, 10, 40) == 0.0


SHAPE = {"vocab_size": 40, "context_length": 8, "d_model": 16, "num_layers": 1, "num_heads": 2}


def test_the_run_takes_the_schedule_and_its_share():
    settings = {"learning_rate": 1.0, "min_learning_rate": 0.1, "warmup_steps": 4, "max_steps": 24}
    for schedule, middle in {"cosine": 0.55, "linear": 0.55, "trapezoid": 1.0}.items():
        assert LanguageModel(**SHAPE, **settings, schedule=schedule).learning_rate(14) == pytest.approx(middle)
    early = LanguageModel(**SHAPE, **settings, schedule="trapezoid", decay_share=0.8)
    assert [early.learning_rate(step) for step in (8, 16, 24)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"schedule": "trapezoid", "decay_share": 0.0}, "decay_share is 0.0; it must be above 0 and at most 1"),
        ({"schedule": "linear", "decay_share": 0.5}, "decay_share is 0.5, which has no effect on schedule linear"),
        ({"schedule": "step"}, "schedule is 'step'; it can be cosine, linear, trapezoid"),
    ],
)
def test_what_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        LanguageModel(**SHAPE, **wrong)
