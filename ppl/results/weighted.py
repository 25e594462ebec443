"""Moments, quantiles and Monte Carlo errors of weighted particles.

Particles `x` have shape (N, *event) and unnormalised log weights shape (N,). Particles of weight
zero never count, whatever their value. Where no particle has weight, or a weight is NaN or plus
infinity, there is no distribution and the answers are NaN; a non-finite particle that has weight
makes its own column NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from ppl.errors import ArgumentError, ResultError, message

Particles = Num[np.ndarray, "N *event"]

_SLACK = 1e-12  # rounding of a cumulative weight that must not push a quantile one particle up


class Moments(NamedTuple):
    """Mean and standard deviation of the weighted empirical distribution, per element."""

    mean: Float[np.ndarray, "*event"]
    sd: Float[np.ndarray, "*event"]


def weighted_moments(x: Particles, log_weights: Float[np.ndarray, " N"]) -> Moments:
    """Compute mean and sd under the normalised weights.

    Meaning:
        Moments of the discrete distribution that the particles are; the sd has no small-sample
        correction. As estimates of a target they are consistent, with bias of order 1/N.
    """
    columns, weights, event = _heavy("weighted_moments", x, log_weights)
    mean, deviations = _centred(columns, weights)
    with np.errstate(all="ignore"):
        sd = np.sqrt(weights @ deviations**2) if len(weights) else np.full_like(mean, np.nan)
    return Moments(mean.reshape(event), sd.reshape(event))


def weighted_quantile(
    x: Particles,
    log_weights: Float[np.ndarray, " N"],
    q: float | Float[np.ndarray, "*q"],
) -> Float[np.ndarray, "*q *event"]:
    """Find the smallest particle whose cumulative normalised weight reaches q.

    Meaning:
        The exact quantile (inverse distribution function) of the weighted empirical distribution;
        no interpolation, so it is always one of the particles.

    Raises:
        ArgumentError: q outside [0, 1].
        ResultError: shapes that do not fit.
    """
    probs = np.asarray(q, dtype=np.float64)
    if not np.all((probs >= 0) & (probs <= 1)):
        raise ArgumentError(
            message(f"weighted_quantile got q={q!r}", needs="probabilities in [0, 1]", fix="q=0.5")
        )
    columns, weights, event = _heavy("weighted_quantile", x, log_weights)
    out = np.full((probs.size, columns.shape[1]), np.nan)
    if len(weights):
        order = np.argsort(columns, axis=0)
        values = np.take_along_axis(columns, order, axis=0)
        cumulative = np.cumsum(weights[order], axis=0)
        for row, prob in zip(out, probs.ravel(), strict=True):
            reached = cumulative >= prob * cumulative[-1] - _SLACK
            row[:] = np.take_along_axis(values, reached.argmax(axis=0)[None], axis=0)[0]
        out[:, ~np.isfinite(columns).all(axis=0)] = np.nan
    return out.reshape(probs.shape + event)


def kish_ess(log_weights: Float[np.ndarray, " N"]) -> float:
    """Compute Kish's effective sample size, 1 / sum of squared normalised weights.

    Meaning:
        Between 1 (one particle has all the weight) and N (equal weights); 0 if none has weight.
    """
    weights = _normalised(np.asarray(log_weights, dtype=np.float64))
    total = float(np.sum(weights**2))
    return 1.0 / total if total else 0.0 if not np.isnan(total) else float("nan")


def snis_se(
    x: Particles,
    log_weights: Float[np.ndarray, " N"],
    families: Int[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, "*event"]:
    """Estimate the standard error of a self-normalised mean.

    Meaning:
        sqrt(sum over families of (sum of W_i (x_i - mean))^2): the delta method for particles of
        which those of one family (the descendants of one first particle) belong together, and
        different families are independent. Without families every particle is its own. NaN if all
        weight is in one family of several particles: the run then says nothing of its own error.
        One particle of its own with all the weight gives 0, which says nothing either; read it
        together with `kish_ess`.

    Source:
        Owen (2013), Monte Carlo theory, methods and examples, section 9.2; Chan and Lai (2013).
    """
    columns, weights, event = _heavy("snis_se", x, log_weights)
    mean, deviations = _centred(columns, weights)
    if not len(weights):
        return np.full(event, np.nan)
    with np.errstate(all="ignore"):
        parts = weights[:, None] * deviations
        if families is not None:
            heavy = _normalised(np.asarray(log_weights, dtype=np.float64)) > 0
            names, group = np.unique(np.asarray(families)[heavy], return_inverse=True)
            if len(names) == 1 and len(weights) > 1:
                return np.full(event, np.nan)
            sums = np.zeros((len(names), parts.shape[1]))
            np.add.at(sums, group, parts)
            parts = sums
        error = np.where(np.isnan(mean), np.nan, np.sqrt(np.sum(parts**2, axis=0)))
    return error.reshape(event)


def _normalised(log_weights: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Normalise, giving zeros if no particle has weight and NaN if the weights are undefined."""
    top = log_weights.max(initial=-np.inf)
    if top == -np.inf:
        return np.zeros_like(log_weights)
    if not np.isfinite(top):
        return np.full_like(log_weights, np.nan)
    with np.errstate(under="ignore"):
        weights = np.exp(log_weights - top)
        return weights / weights.sum()


def _heavy(
    operation: str, x: np.ndarray, log_weights: np.ndarray
) -> tuple[Float[np.ndarray, "M column"], Float[np.ndarray, " M"], tuple[int, ...]]:
    """Check shapes and keep the particles that have weight, with their normalised weights."""
    x, log_weights = np.asarray(x), np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1 or x.shape[:1] != log_weights.shape or x.dtype.kind == "c":
        raise ResultError(
            message(
                f"{operation} got particles of shape {x.shape} and dtype {x.dtype} and log weights "
                f"of shape {log_weights.shape}",
                needs="real particles (N, *event) and log weights (N,)",
                fix="flatten batches into the first axis of both",
            )
        )
    weights = _normalised(log_weights)
    heavy = weights > 0  # empty if the weights are NaN, so that all answers are
    columns = x[heavy].astype(np.float64)
    return columns.reshape(len(columns), math.prod(x.shape[1:])), weights[heavy], x.shape[1:]


def _centred(
    columns: Float[np.ndarray, "M column"], weights: Float[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, "M column"]]:
    """Compute the weighted means, and the deviations from them."""
    if not len(weights):
        return np.full(columns.shape[1], np.nan), columns
    with np.errstate(all="ignore"):
        mean = weights @ columns
        mean = np.where(np.isfinite(columns).all(axis=0), mean, np.nan)
        return mean, columns - mean
