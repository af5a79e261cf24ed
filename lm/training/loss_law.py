"""Foretells where a loss curve ends, from its beginning and from the whole curves of earlier runs.

    training loss      L(t) = E + A s(t)^-0.3 + B r(t)
    validation loss    L(t) + G + H p(t)

r(t) is the learning rate as a share of its peak, s(t) the tokens so far, in millions, each weighted by r, and p(t) the
passes over the text. E is what no training removes, A what more steps remove, B what a falling rate removes: the noise
that large steps add (a simplification of Tissue et al. 2024, arXiv 2408.11029). G and H are the gap to the validation
text, at first and as passes add up. With the exponent fixed the law is linear in its five numbers, so that their
posterior is a Gaussian in closed form (Bayesian linear regression), and with it the loss at the end:

    prior       the mean and the covariance of the numbers that fit earlier runs; a wide one if there are none
    noise       of a step: from the second differences of neighbouring losses, in which a steady fall cancels

Batches differ in difficulty, by far more than the curves of two runs do. Where earlier runs have read the same batches,
their mean deviation from their laws is taken off first: what remains is the run's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPONENT = 0.3
WARM = 0.05  # of the run at least, before which the law does not hold
MEAN = np.array([1.5, 0.9, 0.5, 0.0, 0.05])  # E, A, B in nats, G, H, before any run has been seen
WIDE = np.diag([0.7, 0.25, 0.15, 0.05, 0.05]) ** 2
SCATTER = np.diag([0.1, 0.1, 0.1, 0.02, 0.03]) ** 2  # between runs of one kind, before two of them have been seen
BELIEF = 1  # as many runs as this counts for
LEAST_NOISE, VALIDATION_NOISE = 0.02, 0.01  # nats; the law is not exact
BAND = 1.2816  # standard deviations that hold 80 % of a Gaussian
FEWEST = 4  # losses for a forecast


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

    def features(self, steps: np.ndarray, validated: bool) -> np.ndarray:
        """Returns what the law multiplies E, A, B, G and H by: (n,) steps -> (n, 5)."""
        weighted = np.cumsum(self.rates * np.diff(self.tokens, prepend=0)) / 1e6
        at, shown = steps - 1, float(validated)
        ones = np.ones(len(steps))
        columns = (ones, weighted[at] ** -EXPONENT, self.rates[at], shown * ones, shown * self.passes[at])
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Losses:
    """A run's curves as far as they go: {step: nats per token}."""

    course: Course
    training: dict[int, float]
    validation: dict[int, float]
    batches: str = ""  # a name for the batches read, the same for runs that read the same; empty if unknown
    text: str = ""  # a name for the validation text

    @property
    def finished(self) -> bool:
        return self.course.steps in self.validation


@dataclass(frozen=True)
class Numbers:
    """A Gaussian over the law's five numbers."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Foretold:
    """A run's final validation loss, with the bounds of an 80 % band, nats per token."""

    loss: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"final loss about {self.loss:.2f} ({self.low:.2f} to {self.high:.2f})"


def foretell(run: Losses, earlier: Sequence[Losses] = ()) -> Foretold | None:
    """Returns the validation loss at the run's last step; None where the losses are too few, or no curve."""
    fitted = [fit(other, Numbers(MEAN, WIDE)) for other in earlier]
    pairs = zip(earlier, fitted, strict=True)
    usual = deviations([(other, numbers) for other, numbers in pairs if run.batches and other.batches == run.batches])
    if len(known(run)[0]) + len(run.validation) < FEWEST:
        return None
    numbers = fit(run, prior_of(fitted), usual)
    last = run.course.features(np.array([run.course.steps]), validated=True)[0]
    loss = float(last @ numbers.mean)
    width = BAND * math.sqrt(last @ numbers.covariance @ last + VALIDATION_NOISE**2)
    return Foretold(loss, loss - width, loss + width) if math.isfinite(loss + width) else None


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


def prior_of(fitted: Sequence[Numbers]) -> Numbers:
    """Returns what earlier runs make one expect of another: their mean, and their scatter around it."""
    if not fitted:
        return Numbers(MEAN, WIDE)
    means, count = np.array([numbers.mean for numbers in fitted]), len(fitted)
    around = means - means.mean(axis=0)
    scatter = (BELIEF * SCATTER + around.T @ around) / (BELIEF + count - 1)
    return Numbers(means.mean(axis=0), scatter * (1 + 1 / count))


def deviations(runs: Sequence[tuple[Losses, Numbers]]) -> dict[int, float]:
    """Returns the mean deviation of the runs' training losses from their laws, at each step that all have logged."""
    found: dict[int, list[float]] = {}
    for run, numbers in runs:
        steps, losses = known(run)
        off = losses - run.course.features(steps, validated=False) @ numbers.mean
        for step, deviation in zip(steps.tolist(), off.tolist(), strict=True):
            found.setdefault(step, []).append(deviation)
    return {step: sum(values) / len(values) for step, values in found.items() if len(values) == len(runs)}
