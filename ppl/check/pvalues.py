"""P-values for a level of one in a million, and what each of them assumes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special, stats


def kolmogorov(x: Float[Any, " draws"], y: Float[Any, " draws"]) -> tuple[float, float]:
    """Compare two samples of one size: the greatest distance of their ECDFs, and its p-value.

    **Meaning.** The p-value is exact for independent draws of any one continuous law, and too large
    (so valid) for laws with atoms. NaN counts as a value above all others.

    Returns:
        Distance and p-value.

    Source: Gnedenko and Korolyuk (1951): P(D >= k / n) = 2 sum_j (-1)^(j + 1) C(2n, n - jk) /
    C(2n, n), by reflection of paths.
    """
    n = len(x)
    x, y = np.sort(x), np.sort(y)
    both = np.concatenate([x, y])
    steps = np.searchsorted(x, both, side="right") - np.searchsorted(y, both, side="right")
    k = int(np.max(np.abs(steps)))
    return k / n, _reflection(n, k)


def _reflection(n: int, k: int) -> float:
    if k == 0:
        return 1.0
    last = int(np.sqrt(800.0 * n) / k)  # later terms are below exp(-800)
    j = np.arange(1, min(n // k, last) + 1)
    log_terms = special.gammaln([n + 1.0]) * 2 - (
        special.gammaln(n - j * k + 1.0) + special.gammaln(n + j * k + 1.0)
    )
    return float(np.clip(2 * np.sum((-1.0) ** (j + 1) * np.exp(log_terms)), 0.0, 1.0))


def kolmogorov_distance(n: int, p: float) -> float:
    """The distance two samples of size n have with probability about p (Smirnov's limit)."""
    return float(np.sqrt(np.log(2 / p) / n))


class Moments(NamedTuple):
    """Mean, variance, third absolute central moment of draws, by column; and their number."""

    mean: Any
    variance: Any
    third: Any
    num: int


def moments(x: Float[Any, "draws columns"]) -> Moments:
    """Take the moments that a test of means needs."""
    mean = x.mean(axis=0)
    centred = np.abs(x - mean)
    return Moments(mean, (centred**2).mean(axis=0), (centred**3).mean(axis=0), len(x))


class Contrast(NamedTuple):
    """Differences of means by column, their standard errors, skewness and p-values."""

    difference: Any
    error: Any
    skewness: Any
    p_value: Any


def contrast(first: Moments, second: Moments, slack: Any = 0.0) -> Contrast:
    """Compare means of two independent samples.

    **Meaning.** The normal tail of the studentised difference x, raised by the factor
    exp(A x^3 / 3), A = sum_s (third absolute moment / n^2) / se^3: the leading term of Cramér's
    moderate deviations for studentised sums (Jing, Shao and Wang 2003), with the absolute moment in
    place of the signed one. As a tail can only fall, x stops at 1 / A: where few draws carry the
    sum, A is large and no difference is significant. Assumes that the third moments are finite and
    that the sample shows them; an unseen event of great weight cannot be excluded.

    Args:
        first: moments of one sample.
        second: of the other.
        slack: differences up to this are rounding errors.
    """
    difference = first.mean - second.mean
    error = np.sqrt(first.variance / first.num + second.variance / second.num)
    third = first.third / first.num**2 + second.third / second.num**2
    with np.errstate(divide="ignore", invalid="ignore"):
        cubed = error**3
        skewness = np.where(cubed > 0, third / cubed, 0.0)
        excess = np.maximum(np.abs(difference) - slack, 0.0)
        z = np.where(excess > 0, excess / error, 0.0)
    return Contrast(difference, error, skewness, np.exp(log_tail(z, skewness)))


def known_mean(sample: Moments, exact: Any, slack: Any = 0.0) -> Contrast:
    """Compare means with exact values; see `contrast`."""
    zero = np.zeros_like(sample.mean)
    return contrast(sample, Moments(zero + exact, zero, zero, 1), slack)


def log_tail(z: Any, skewness: Any) -> Any:
    """The log p-value of a studentised difference, after Cramér's correction."""
    with np.errstate(divide="ignore"):
        x = np.minimum(z, 1.0 / np.asarray(skewness, np.float64))
    # 1 / A = inf only where A = 0: a constant sample, for which any difference is certain.
    growth = np.where(np.isfinite(x), skewness * np.where(np.isfinite(x), x, 0.0) ** 3 / 3, 0.0)
    return np.minimum(np.log(2.0) + stats.norm.logsf(x) + growth, 0.0)


def detectable(error: Any, skewness: Any, p: float) -> Any:
    """The difference that would have had the p-value p; infinite where none would."""
    low, high = np.zeros(np.shape(error)), np.full(np.shape(error), 60.0)
    reachable = log_tail(high, skewness) <= np.log(p)
    for _ in range(40):
        middle = (low + high) / 2
        small = log_tail(middle, skewness) <= np.log(p)
        low, high = np.where(small, low, middle), np.where(small, middle, high)
    return np.where(reachable, high * error, np.inf)
