"""Are ranks uniform? Exact simultaneous bands for their empirical distribution function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

_POINTS = 64
_TINY = 1e-10


class Uniformity(NamedTuple):
    """The smallest pointwise p-value of an ECDF against the uniform, and where it was found."""

    level: float
    at: float
    distance: float


class Band(NamedTuple):
    """Where an ECDF of uniform ranks stays with a stated probability: limits at points."""

    points: Float[Any, " points"]
    low: Float[Any, " points"]
    high: Float[Any, " points"]


def grid(num_draws: int) -> Int[Any, " points"]:
    """The ranks r at which P(rank < r) is looked at: all, or evenly spaced ones."""
    return np.unique(np.linspace(1, num_draws, min(num_draws, _POINTS)).round().astype(int))


def uniformity(ranks: Int[Any, " simulations"], num_draws: int) -> Uniformity:
    """Compare counts of ranks with their binomial laws, point by point."""
    points = grid(num_draws)
    n, z = len(ranks), points / (num_draws + 1)
    counts = np.searchsorted(np.sort(ranks), points)
    tails = np.minimum(stats.binom.cdf(counts, n, z), stats.binom.sf(counts - 1, n, z))
    worst = int(np.argmin(tails))
    distance = float(np.max(np.abs(counts / n - z)))
    return Uniformity(min(1.0, 2 * float(tails[worst])), float(z[worst]), distance)


def simultaneous(level: float, num: int, num_draws: int) -> float:
    """The probability that uniform ranks have a pointwise p-value of at most `level` anywhere.

    **Meaning.** Exact for independent ranks, uniform on 0, ..., num_draws, up to rounding (1e-13);
    below 1e-10, where rounding would show, the sum over the points, which is a bound.
    The counts at rising points are a Markov chain with binomial steps; the probability of staying
    between the limits is summed forward.

    Args:
        level: the pointwise p-value.
        num: number of ranks.
        num_draws: the greatest rank.

    Source: Säilynoja, Bürkner and Vehtari (2022), section 2.2.
    """
    z = grid(num_draws) / (num_draws + 1)
    if level >= 1.0 or level * len(z) < _TINY:
        return min(1.0, level * len(z))
    low, high = _limits(level, num, z)
    states, mass, before = np.zeros(1, int), np.ones(1), 0.0
    for lo, hi, now in zip(low, high, z, strict=True):
        following = np.arange(lo, hi + 1)
        step = _binomial(num, states, following, (now - before) / (1 - before))
        states, mass, before = following, mass @ step, now
    return min(1.0, max(level, 1.0 - float(mass.sum())))


def _limits(level: float, num: int, z: Any) -> tuple[Any, Any]:
    """The least and greatest count whose pointwise p-value exceeds `level`."""
    tail = level / 2 * (1 + 1e-9)  # so that the count that has just this p-value is outside
    low, high = stats.binom.ppf(tail, num, z), stats.binom.isf(tail, num, z)
    return np.clip(low, 0, num).astype(int), np.clip(high, 0, num).astype(int)


def _binomial(num: int, states: Any, following: Any, p: float) -> Any:
    """Probabilities of the steps from each count to each following one."""
    have, get = states[:, None], following[None, :]
    k, n = np.maximum(get - have, 0), num - have
    log = special.gammaln([*range(1, num + 2)])
    rest = np.maximum(n - k, 0)
    terms = log[n] - log[k] - log[rest] + k * np.log(p) + rest * np.log1p(-p)
    return np.where((get >= have) & (k <= n), np.exp(terms), 0.0)


def band(coverage: float, num: int, num_draws: int) -> Band:
    """Find the limits between which uniform ranks stay with probability `coverage`.

    Args:
        coverage: of all points together.
        num: number of ranks.
        num_draws: the greatest rank.
    """
    low, high = np.log(1e-14), 0.0
    for _ in range(24):
        middle = (low + high) / 2
        if simultaneous(float(np.exp(middle)), num, num_draws) > 1 - coverage:
            high = middle
        else:
            low = middle
    z = grid(num_draws) / (num_draws + 1)
    least, greatest = _limits(float(np.exp(low)), num, z)
    return Band(z, least / num, greatest / num)
