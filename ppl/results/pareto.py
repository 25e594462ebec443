"""Pareto-smoothed importance sampling: how far log weights can be trusted, and better ones.

Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling; Zhang
and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ppl.errors import ResultError, message


class Smoothed(NamedTuple):
    """Log weights that sum to one on the natural scale, and the shape of their tail."""

    log_weights: Float[np.ndarray, " N"]
    pareto_k: float


def pareto_smooth(log_weights: Float[np.ndarray, " N"]) -> Smoothed:
    """Replace the largest weights by quantiles of a generalised Pareto distribution fitted to them.

    Meaning:
        `pareto_k` estimates the shape of the weights' upper tail: as many moments are finite as
        1 / k. Above `reliable_k` estimates by these weights have errors of unknown size. It is
        -inf where the largest weights are all equal, infinite where too few are there to tell, and
        NaN, with the weights, where a weight is NaN or infinite, or none is positive.

    Args:
        log_weights: unnormalised, natural logarithms; -inf is weight zero.

    Raises:
        ResultError: not one axis of weights, or none at all.

    Source:
        Vehtari et al. (2024), section 3 and appendix A, with the weakly informative prior on k.
    """
    found = np.array(log_weights, dtype=np.float64)
    if found.ndim != 1 or not found.size:
        raise ResultError(
            message(
                f"pareto_smooth got log weights of shape {found.shape}",
                needs="one axis of at least one weight",
                fix="log_weights.ravel()",
            )
        )
    if np.isnan(found).any() or not np.isfinite(found.max()):
        return Smoothed(np.full_like(found, np.nan), math.nan)
    found -= found.max()
    number = len(found)
    size = math.ceil(min(0.2 * number, 3 * math.sqrt(number)))
    order = np.argsort(found, kind="stable")
    tail, k = order[number - size :], math.inf
    if 5 <= size < number:
        cutoff = math.exp(found[order[number - size - 1]])
        excess = np.exp(found[tail]) - cutoff
        if excess[0] == excess[-1]:
            k = -math.inf
        else:
            k, scale = _fitted(np.maximum(excess, np.finfo(float).tiny))
            probabilities = (np.arange(size) + 0.5) / size
            quantiles = cutoff + scale * _quantile(k, probabilities)
            found[tail] = np.minimum(np.log(quantiles), 0.0)
    found -= np.logaddexp.reduce(found)
    return Smoothed(found, k)


def reliable_k(number: int) -> float:
    """Give the largest tail shape at which so many weights give usable estimates.

    Args:
        number: of draws.

    Source:
        Vehtari et al. (2024), section 3.2.4: the smaller of 0.7 and 1 - 1 / log10(number).
    """
    return min(0.7, 1 - 1 / math.log10(max(number, 2)))


def _quantile(k: float, probabilities: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Invert the distribution function of scale one."""
    rise = -np.log1p(-probabilities)
    return rise if abs(k) < 1e-12 else np.expm1(k * rise) / k


def _fitted(excess: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Estimate shape and scale from sorted excesses, by a posterior mean over a grid."""
    n = len(excess)
    grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 - np.sqrt(grid / (np.arange(grid) + 0.5))
    theta = theta / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-theta[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-theta / shapes) - shapes - 1)
    weights = np.exp(profile - np.logaddexp.reduce(profile))
    mean = float(weights @ theta)
    k = float(np.log1p(-mean * excess).mean())
    # As if ten more excesses had been seen, of shape one half.
    return (n * k + 5) / (n + 10), -k / mean
