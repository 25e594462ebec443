"""Integrals of weighted draws over sets {x <= t}, and how many draws their comparison needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.check import pvalues
from ppl.check.draws import Sample

PILOT, MOST = 1024, 10**12
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_ENOUGH = 100  # an effective sample size


def needed(sides: Sequence[pvalues.Moments], p: float, resolution: float) -> int:
    """The number of draws at which a difference of `resolution` would have the p-value p."""
    mass = float(sides[0].mean[0] + sides[1].mean[0]) / 2
    num = PILOT
    while mass > 0 and num < MOST:
        c = pvalues.contrast(*(side._replace(num=num) for side in sides))
        if float(np.max(pvalues.detectable(c.error, c.skewness, p))) <= resolution * mass:
            break
        num = math.ceil(1.2 * num)
    return num


def typical(pooled: Any, weights: Any, rng: np.random.Generator) -> Any:
    """Resample pilot draws, so that scales are those of the measure, not of the proposal."""
    total = float(weights.sum())
    if total == 0 or total**2 < _ENOUGH * float((weights**2).sum()):
        return pooled
    return pooled[rng.choice(len(pooled), size=len(pooled), p=weights / total)]


def weights(sample: Sample, shift: float) -> Any:
    """Natural weights, in units of exp(shift)."""
    assert sample.log_weights is not None
    return np.exp(sample.log_weights - shift)


def greatest(samples: Sequence[Sample]) -> float:
    """The greatest log weight, which is a unit in which no weight overflows."""
    tops = [float(np.max(s.log_weights)) for s in samples if s.log_weights is not None]
    top = max(tops, default=0.0)
    return top if np.isfinite(top) else 0.0


def integrals(sample: Sample, shift: float, apply: Any, cuts: Sequence[Any]) -> pvalues.Moments:
    """Moments of w and of w 1{x <= t}, one cut after the other."""
    w, x = weights(sample, shift), apply(sample.columns.matrix)
    parts = [pvalues.moments(w[:, None])]
    parts += [pvalues.moments(np.where(x[:, i] <= t, w, 0.0)[:, None]) for i, t in cuts]
    mean, variance, third = (np.concatenate([p[k] for p in parts]) for k in range(3))
    return pvalues.Moments(mean, variance, third, len(w))


def thresholds(x: Any, weights: Any) -> list[float]:
    """Weighted quantiles, each once."""
    order = np.argsort(x)
    cumulative = np.cumsum(weights[order])
    if not cumulative[-1] > 0:
        return []
    at = np.searchsorted(cumulative, np.multiply(_QUANTILES, cumulative[-1]))
    return sorted({float(t) for t in x[order][np.minimum(at, len(x) - 1)] if np.isfinite(t)})
