"""The law that joins a run's losses, and its fit to their curves.

    training loss      L(t) = E + A s(t)^-0.3 + B r(t)
    validation loss    L(t) + G + H p(t)

r(t) is the learning rate as a share of its peak, s(t) the tokens so far, in millions, each weighted by r, and p(t) the
passes over the text. E is what no training removes, A what more steps remove, B what a falling rate removes: the noise
that large steps add (a simplification of Tissue et al. 2024, arXiv 2408.11029). G and H are the gap to the validation
text, at first and as passes add up. With the exponent fixed the law is linear in its five numbers, so that their
posterior is a Gaussian in closed form (Bayesian linear regression). The noise of a loss comes from the second
differences of neighbouring losses, in which a steady fall cancels.

Batches differ in difficulty, by far more than the curves of two runs do. Where runs have read the same batches, their
mean deviation from their laws is taken off: what remains is the run's own. What the law makes of earlier runs, and
its forecast, is in posterior.py.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EXPONENT = 0.3
WARM = 0.05  # of the run at least, before which the law does not hold
LEAST_NOISE, VALIDATION_NOISE = 0.02, 0.01  # nats
MISFIT = 3  # the law is not exact, and neighbouring losses are off alike: training losses count as this much noisier
FEWEST = 3  # runs whose mean deviation is that of the batches


@dataclass(frozen=True)
class Course:
    """What a run's losses depend on besides its weights, for each step from 1 to the last, float64 arrays.

    rates: the learning rate by its peak; tokens: seen so far; passes: over the training text.
    """

    rates: np.ndarray
    tokens: np.ndarray
    passes: np.ndarray
    warmup: int  # steps

    @property
    def steps(self) -> int:
        return len(self.rates)

    @functools.cached_property
    def weighted(self) -> np.ndarray:
        """The tokens seen so far, in millions, each weighted by its step's rate."""
        return np.cumsum(self.rates * np.diff(self.tokens, prepend=0)) / 1e6

    def features(self, steps: np.ndarray, validated: bool) -> np.ndarray:
        """Returns what the law multiplies E, A, B, G and H by: (n,) steps -> (n, 5)."""
        at, shown = steps - 1, float(validated)
        ones = np.ones(len(steps))
        columns = (ones, self.weighted[at] ** -EXPONENT, self.rates[at], shown * ones, shown * self.passes[at])
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Losses:
    """A run's curves as far as they go: {step: nats per token}."""

    course: Course
    training: dict[int, float]
    validation: dict[int, float]
    batches: str = ""  # a name for the batches read, the same for runs that read the same; empty if unknown
    text: str = ""  # a name for the validation text
    settings: Mapping[str, Any] = field(default_factory=dict)  # of which the law's numbers depend

    @property
    def finished(self) -> bool:
        return math.isfinite(self.validation.get(self.course.steps, math.nan))

    def until(self, share: float) -> "Losses":
        """Returns the run as it was at a share of its steps."""
        training, validation = (
            {step: loss for step, loss in curve.items() if step <= share * self.course.steps}
            for curve in (self.training, self.validation)
        )
        return dataclasses.replace(self, training=training, validation=validation)


@dataclass(frozen=True)
class Numbers:
    """A Gaussian over the law's five numbers."""

    mean: np.ndarray
    covariance: np.ndarray


# What is expected of E, A and B in nats, G and H before any run has been seen.
UNSEEN = Numbers(np.array([1.5, 0.9, 0.5, 0.0, 0.05]), np.diag([0.7, 0.25, 0.15, 0.05, 0.05]) ** 2)


def known(run: Losses) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps, in order, and the training losses that the law is for: after the warmup, and finite."""
    begin = max(run.course.warmup, WARM * run.course.steps)
    points = sorted((t, loss) for t, loss in run.training.items() if t > begin and math.isfinite(loss))
    return np.array([t for t, _ in points], np.int64), np.array([loss for _, loss in points])


def fit(run: Losses, prior: Numbers, usual: dict[int, float] | None = None) -> Numbers:
    """Returns the posterior of the law's numbers. usual: by how much the batch of a step deviates, in any run."""
    steps, losses = known(run)
    if usual:
        shared = np.array([t in usual for t in steps.tolist()], bool)
        steps, losses = steps[shared], losses[shared] - [usual[t] for t in steps[shared].tolist()]
    noise = LEAST_NOISE
    if len(losses) > 2:
        noise = max(noise, math.sqrt(float(np.mean(np.diff(losses, n=2) ** 2)) / 6))
    noise *= MISFIT
    validated = [(t, loss) for t, loss in run.validation.items() if t > run.course.warmup and math.isfinite(loss)]
    features = np.concatenate(
        [
            run.course.features(steps, validated=False) / noise,
            run.course.features(np.array([t for t, _ in validated], np.int64), validated=True) / VALIDATION_NOISE,
        ]
    )
    values = np.concatenate([losses / noise, np.array([loss for _, loss in validated]) / VALIDATION_NOISE])
    precision = np.linalg.inv(prior.covariance)
    covariance = np.linalg.inv(precision + features.T @ features)
    return Numbers(covariance @ (precision @ prior.mean + features.T @ values), covariance)


def fit_together(runs: Sequence[Losses]) -> list[Numbers]:
    """Fits each run by itself; then again, less the deviations of its batches, if FEWEST runs have read them."""
    pairs = [(run, fit(run, UNSEEN)) for run in runs]
    usual = {}
    for name in {run.batches for run in runs if run.batches}:
        readers = [pair for pair in pairs if pair[0].batches == name]
        if len(readers) >= FEWEST:
            usual[name] = deviations(readers)
    return [fit(run, UNSEEN, usual[run.batches]) if run.batches in usual else numbers for run, numbers in pairs]


def deviations(runs: Sequence[tuple[Losses, Numbers]]) -> dict[int, float]:
    """Returns the mean deviation of the runs' training losses from their laws, at each step that all have logged."""
    found: dict[int, list[float]] = {}
    for run, numbers in runs:
        steps, losses = known(run)
        off = losses - run.course.features(steps, validated=False) @ numbers.mean
        for step, deviation in zip(steps.tolist(), off.tolist(), strict=True):
            found.setdefault(step, []).append(deviation)
    return {step: sum(values) / len(values) for step, values in found.items() if len(values) == len(runs)}
