"""Tells how surely two settings differ, from the losses of a few seeds each.

    t  = (mean a - mean b) / sqrt(v_a + v_b)                     v = variance / runs
    df = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))
    p  = probability of |t| at least this large by Student's distribution with df degrees of freedom

That is Welch's test (Welch 1947), two-sided. It compares two groups of runs and does not pair them by seed: settings of
other shapes draw other weights from the same seed, and with three seeds a pairing leaves 2 degrees of freedom, where
Welch's test has up to 4. It takes the losses of one setting to be normally distributed over seeds, which a few runs
cannot show. A permutation test takes nothing for granted, and so its p-value cannot be small: `lowest_by_permutation`.
"""

import math
import statistics
from collections.abc import Sequence

TERMS, PRECISE, TINY = 1000, 1e-14, 1e-300


def standard_error(losses: Sequence[float]) -> float | None:
    """Returns the standard error of the mean; None for fewer than two losses."""
    return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None


def p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of Welch's test; None with fewer than two values in a group, or no spread."""
    if min(len(a), len(b)) < 2:
        return None
    v_a, v_b = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if not v_a + v_b:
        return None
    t = (statistics.fmean(a) - statistics.fmean(b)) / math.sqrt(v_a + v_b)
    return t_tails(t, (v_a + v_b) ** 2 / (v_a**2 / (len(a) - 1) + v_b**2 / (len(b) - 1)))


def lowest_by_permutation(a: int, b: int) -> float:
    """Returns the lowest two-sided p-value of an exact permutation test of a and b runs: 0.1 for three and three."""
    return (2 if a == b else 1) / math.comb(a + b, a)


def t_tails(t: float, df: float) -> float:
    """Returns the probability that Student's t with df degrees of freedom is at least |t| from 0, on either side.

    It is the regularised incomplete beta function I_x(df / 2, 1 / 2) at x = df / (df + t^2) (DLMF 8.17; Press et al.,
    Numerical Recipes, 6.4).
    """
    x = df / (df + t * t)
    return incomplete_beta(x, df / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Returns I_x(a, b), regularised, for 0 <= x <= 1 and positive a and b."""
    if x in (0, 1):
        return x
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    if x < (a + 1) / (a + b + 2):  # where the fraction converges fast
        return math.exp(front) * _fraction(x, a, b) / a
    return 1 - math.exp(front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Returns the continued fraction of DLMF 8.17.22, by Lentz's method from the front."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _nonzero(1 + term * d), _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < PRECISE:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > TINY else TINY
