"""Kernel density estimates and bar heights for plots."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

_GRID = 256


class Density(NamedTuple):
    """A curve, or bars if the values are integers; `cut` says that a long tail is left out."""

    grid: Float[np.ndarray, " point"]
    height: Float[np.ndarray, " point"]
    discrete: bool
    cut: bool


def density(
    values: Num[np.ndarray, " draw"], weights: Float[np.ndarray, " draw"] | None = None
) -> Density | None:
    """Estimate a density with a Gaussian kernel reflected at the smallest and largest value.

    Meaning:
        Reflection keeps the mass of a density that ends abruptly, such as an exponential's at 0.
        Integers and booleans get their probabilities instead. A tail of 0.5% that is twice as
        wide as the central 99% is cut off. Values that are not finite do not count.

    Args:
        values: draws or particles.
        weights: normalised weights; equal by default.

    Returns:
        The curve or bars; None if no value counts.

    Source:
        Silverman (1986), Density estimation, section 3.4.2 for the bandwidth.
    """
    mass = np.ones(len(values)) if weights is None else weights
    keep = np.isfinite(values.astype(np.float64)) & (mass > 0)
    kept, mass = values[keep], mass[keep]
    if not len(kept):
        return None
    mass = mass / mass.sum()
    if kept.dtype.kind in "biu":
        support, where = np.unique(kept, return_inverse=True)
        return Density(support.astype(np.float64), np.bincount(where, mass), True, False)
    kept = kept.astype(np.float64)
    order = np.argsort(kept)
    ordered, cumulative = kept[order], np.cumsum(mass[order])
    low, q1, q3, high = np.interp([0.005, 0.25, 0.75, 0.995], cumulative, ordered)
    if ordered[0] == ordered[-1]:
        return Density(ordered[:1], np.ones(1), True, False)
    width = high - low
    low = ordered[0] if low - ordered[0] <= 2 * width or not width else low
    high = ordered[-1] if ordered[-1] - high <= 2 * width or not width else high
    cut = bool(low > ordered[0] or high < ordered[-1])
    edges = np.linspace(low, high, _GRID + 1)
    height = _smooth(kept, mass, edges, _bandwidth(kept, mass, q3 - q1))
    return Density((edges[1:] + edges[:-1]) / 2, height, False, cut)


def _bandwidth(values: np.ndarray, weights: np.ndarray, iqr: float) -> float:
    mean = weights @ values
    spread = float(np.sqrt(weights @ (values - mean) ** 2))
    spread = min(spread, iqr / 1.349) if iqr > 0 else spread
    return 0.9 * spread * float(np.sum(weights**2)) ** 0.2  # Kish's size for the number of draws


def _smooth(
    values: np.ndarray, weights: np.ndarray, edges: np.ndarray, bandwidth: float
) -> np.ndarray:
    """Bin, reflect at both ends, and convolve with the kernel."""
    step = edges[1] - edges[0]
    mass, _ = np.histogram(values, edges, weights=weights)
    scale = max(bandwidth / step, 0.5)
    radius = min(int(np.ceil(4 * scale)), _GRID)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / scale) ** 2)
    padded = np.pad(mass, radius, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid") / step
