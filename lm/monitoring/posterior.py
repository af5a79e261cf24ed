"""Forecasts a run's last validation loss from its curves so far and from earlier runs, by the law of loss_law.py.

prior    the numbers of the law are a Gaussian process over the settings: runs of the same settings have the same
         numbers, but for the scatter of seeds, and each setting that differs makes them less alike
             covariance of runs i and j = C k(i, j),  k(i, j) = (1 - SEEDS) exp(-distance(i, j) / REACH),  k(i, i) = 1
         C is estimated from the earlier runs; their mean is unknown, so that it is ordinary kriging
band     each earlier run is cut where this one stands and forecast from the others; the band is as wide as it would
         have had to be to hold 80 % of their true results
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.monitoring.loss_law import UNSEEN, VALIDATION_NOISE, Losses, Numbers, deviations, fit, fit_together, known

SCATTER = np.diag([0.1, 0.1, 0.1, 0.02, 0.03]) ** 2  # between unlike runs, before two of them have been seen
BELIEF = 1  # as many runs as this counts for
SEEDS, REACH = 0.3, 3.0
LAW_NOISE = 0.01  # nats, by which the law misses the last loss
BAND = 1.2816  # standard deviations that hold 80 % of a Gaussian
TRUST = 4  # as many earlier runs as the posterior's own width counts for
FEWEST_LOSSES = 4


@dataclass(frozen=True)
class Forecast:
    """A run's final validation loss, with the bounds of an 80 % band, nats per token."""

    loss: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"final loss about {self.loss:.2f} ({self.low:.2f} to {self.high:.2f})"


def forecast_loss(run: Losses, earlier: Sequence[Losses] = ()) -> Forecast | None:
    """Returns the validation loss at the run's last step; None where the losses are too few, or no curve."""
    if not enough(run):
        return None
    fitted, covariances = fit_together(earlier), alike([*earlier, run])
    loss, deviation = expected(run, earlier, fitted, covariances)
    missed = []
    share = max([*run.training, *run.validation]) / run.course.steps
    for number, other in enumerate(earlier):
        cut = other.until(share)
        if enough(cut):
            rest = [index for index in range(len(earlier)) if index != number]
            others, among = [*rest, number], ([earlier[index] for index in rest], [fitted[index] for index in rest])
            mean, width = expected(cut, *among, covariances[np.ix_(others, others)])
            missed.append(((other.validation[other.course.steps] - mean) / width) ** 2)
    half = BAND * deviation * math.sqrt((TRUST + sum(missed)) / (TRUST + len(missed)))
    return Forecast(loss, loss - half, loss + half) if math.isfinite(loss + half) else None


def enough(run: Losses) -> bool:
    """Returns whether a run has the losses for a forecast."""
    return len(known(run)[0]) + len(run.validation) >= FEWEST_LOSSES


def expected(
    run: Losses, earlier: Sequence[Losses], fitted: Sequence[Numbers], covariances: np.ndarray
) -> tuple[float, float]:
    """Returns the mean and the standard deviation of the last validation loss, as the posterior has them.

    covariances: `alike` of the earlier runs and, last, this one.
    """
    pairs = zip(earlier, fitted, strict=True)
    usual = deviations([(other, numbers) for other, numbers in pairs if run.batches and other.batches == run.batches])
    numbers = fit(run, prior_of(fitted, covariances), usual)
    last = run.course.features(np.array([run.course.steps]), validated=True)[0]
    variance = float(last @ numbers.covariance @ last) + VALIDATION_NOISE**2 + LAW_NOISE**2
    return float(last @ numbers.mean), math.sqrt(variance)


def prior_of(fitted: Sequence[Numbers], covariances: np.ndarray) -> Numbers:
    """Returns what the numbers of earlier runs make one expect of another's, the last in covariances."""
    if not fitted:
        return UNSEEN
    count, means = len(fitted), np.array([numbers.mean for numbers in fitted])
    among, to_run = np.linalg.inv(covariances[:-1, :-1]), covariances[:-1, -1]
    weights = among.sum(axis=0) / among.sum()
    around = means - weights @ means
    scatter = (BELIEF * SCATTER + around.T @ among @ around) / (BELIEF + count - 1)
    unknown = 1 - to_run @ among @ to_run + (1 - among.sum(axis=0) @ to_run) ** 2 / among.sum()
    return Numbers(weights @ means + to_run @ among @ around, scatter * unknown)


def alike(runs: Sequence[Losses]) -> np.ndarray:
    """Returns k of each run with each: (n, n), positive definite."""
    distances = np.array([[distance(one.settings, other.settings) for other in runs] for one in runs])
    values, vectors = np.linalg.eigh(np.exp(-distances / REACH))
    likeness = (vectors * np.maximum(values, 0)) @ vectors.T  # below 0 where the runs have not all the same settings
    covariances: np.ndarray = (1 - SEEDS) * likeness + SEEDS * np.eye(len(runs))
    return covariances


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Adds up how much settings differ, each by 1 for a factor of 2 or another word; by 0 if one lacks it."""
    return sum(difference(one[name], other[name]) for name in one.keys() & other.keys())


def difference(one: Any, other: Any) -> float:
    """Returns how much two values of a setting differ: 0 if not, the binary logarithm of their ratio, or 1."""
    if one == other:
        return 0.0
    numbers = all(isinstance(value, (int, float)) and value > 0 for value in (one, other))
    return abs(math.log2(one) - math.log2(other)) if numbers else 1.0
