"""Convergence diagnostics and Monte Carlo errors of Markov chains.

Draws `x` have shape (chain, draw, *event) and every function returns one number per element of
the event. Conventions, which are those of ArviZ: a column with a NaN or an infinity, and any
column of fewer than four draws a chain, gives NaN; R-hat of a single chain gives NaN; a column
that never changes has R-hat NaN and as many effective draws as draws. No numpy warning escapes.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC, sections 3 and 4. Constancy is
decided by equality rather than by a tolerance, so that no answer depends on the units of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Num

from ppl.errors import ArgumentError, ResultError, message
from ppl.results._dtypes import is_extended

EssKind = Literal["mean", "sd", "bulk", "tail", "median"]
McseKind = Literal["mean", "sd", "median"]
_Block = Float[np.ndarray, "column chain draw"]
_PerColumn = Float[np.ndarray, " column"]

_BLOCK_SIZE = 2**20  # draws handled at once: 8 MiB, and a few temporaries of the same size
_MIN_DRAWS = 4
_ONE_SIGMA = (0.1586553, 0.8413447)  # normal probabilities of minus and plus one sd


def rhat(x: Num[np.ndarray, "chain draw *event"]) -> Float[np.ndarray, "*event"]:
    """Compute the rank-normalised split R-hat: the larger of bulk and folded.

    Meaning:
        Values above 1.01 say that the chains disagree in location (bulk) or spread (folded).
        Chains stuck at different values give infinity.

    Source:
        Vehtari et al. (2021), sections 3.1 and 4.1, equations 4 and 14.
    """

    def column_rhat(block: _Block) -> _PerColumn:
        halves = _split(block)
        bulk = _split_rhat(_normal_scores(halves))
        median = np.median(halves, axis=(1, 2), keepdims=True)
        folded = _split_rhat(_normal_scores(np.abs(halves - median)))
        return np.where(folded > bulk, folded, bulk)  # folded is NaN if |x - median| is constant

    return _per_column("rhat", x, column_rhat, min_chains=2)


def ess(
    x: Num[np.ndarray, "chain draw *event"], kind: EssKind | float = "bulk"
) -> Float[np.ndarray, "*event"]:
    """Estimate how many independent draws would estimate as well as these.

    Args:
        x: draws.
        kind: what is estimated: "mean", "sd", "median", the probability of a quantile, "bulk" (the
            mean of normal scores) or "tail" (the worse of the 5% and 95% quantiles).

    Raises:
        ArgumentError: unknown kind.
        ResultError: draws that are not real numbers of shape (chain, draw, *event).

    Source:
        Vehtari et al. (2021), sections 3.2 and 4.2 to 4.3; Geyer (1992) for the truncation.
    """
    return _per_column("ess", x, _ess_rule(kind))


def mcse(
    x: Num[np.ndarray, "chain draw *event"], kind: McseKind | float = "mean"
) -> Float[np.ndarray, "*event"]:
    """Estimate the Monte Carlo standard error of the mean, sd, median or a quantile.

    Raises:
        ArgumentError: unknown kind.
        ResultError: draws that are not real numbers of shape (chain, draw, *event).

    Source:
        Vehtari et al. (2021), section 4.4. The error of the sd is the delta method on the
        variance, for which `ess(x, "sd")` counts.
    """

    def of_mean(block: _Block) -> _PerColumn:
        sd = np.where(_constant(block), 0.0, np.std(block, axis=(1, 2), ddof=1))
        return sd / np.sqrt(_ess_of_mean(_split(block)))

    def of_sd(block: _Block) -> _PerColumn:
        squares = _squared_deviations(block)
        variance = squares.mean(axis=(1, 2))
        spread = np.mean(squares**2, axis=(1, 2)) - variance**2
        return np.sqrt(spread / _ess_of_mean(_split(squares)) / variance / 4)

    if kind == "mean":
        return _per_column("mcse", x, of_mean)
    if kind == "sd":
        return _per_column("mcse", x, of_sd)
    prob = 0.5 if kind == "median" else _probability("mcse", kind, ("mean", "sd", "median"))
    return _per_column("mcse", x, lambda block: _quantile_mcse(block, prob))


def bfmi(energy: Float[np.ndarray, "chain draw"]) -> Float[np.ndarray, " chain"]:
    """Estimate the Bayesian fraction of missing information of each chain.

    Meaning:
        Values under 0.3 say that momentum resampling explores the energy slowly.

    Source:
        Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in HMC, section 3.
    """
    energy = np.asarray(energy, dtype=np.float64)
    if energy.shape[1] < _MIN_DRAWS:
        return np.full(energy.shape[0], np.nan)
    with np.errstate(all="ignore"):
        return np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1, ddof=1)


def _per_column(
    operation: str,
    x: Num[np.ndarray, "chain draw *event"],
    rule: Callable[[_Block], _PerColumn],
    min_chains: int = 1,
) -> Float[np.ndarray, "*event"]:
    """Apply a rule to the finite columns of the draws, in blocks of bounded memory."""
    x = np.asarray(x)
    if x.ndim < 2 or not (x.dtype.kind in "biuf" or is_extended(x.dtype)):
        raise ResultError(
            message(
                f"{operation} got an array of shape {x.shape} and dtype {x.dtype}",
                needs="real draws of shape (chain, draw, *event)",
                fix="add a chain axis with x[None], or pass x.real and x.imag one by one",
            )
        )
    event = x.shape[2:]
    out = np.full(math.prod(event), np.nan)
    if x.shape[0] >= min_chains and x.shape[1] >= _MIN_DRAWS:
        with np.errstate(all="ignore"):
            for columns, block in _blocks(x):
                finite = np.isfinite(block).all(axis=(1, 2))
                if finite.any():
                    out[columns][finite] = rule(block[finite])
    return out.reshape(event)


def _blocks(x: np.ndarray) -> Iterator[tuple[slice, _Block]]:
    num_chains, num_draws = x.shape[:2]
    flat = x.reshape(num_chains, num_draws, -1)
    step = max(1, _BLOCK_SIZE // max(1, num_chains * num_draws))
    for start in range(0, flat.shape[2], step):
        columns = slice(start, start + step)
        yield columns, np.moveaxis(flat[:, :, columns], 2, 0).astype(np.float64, order="C")


def _constant(block: _Block) -> np.ndarray:
    return block.max(axis=(1, 2)) == block.min(axis=(1, 2))


def _split(block: np.ndarray) -> np.ndarray:
    """Cut every chain into its first and last half, dropping the middle of an odd number."""
    half = block.shape[2] // 2
    return np.concatenate([block[:, :, :half], block[:, :, -half:]], axis=1)


def _normal_scores(block: _Block) -> _Block:
    """Replace values by the normal quantiles of their ranks, ties sharing their mean rank."""
    from scipy.special import ndtri

    flat = block.reshape(block.shape[0], -1)
    size = flat.shape[1]
    order = np.argsort(flat, axis=1)
    values = np.take_along_axis(flat, order, axis=1)
    changes = values[:, 1:] != values[:, :-1]
    position = np.arange(size)
    edge = np.ones((len(flat), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), position, 0), axis=1)
    from_right = np.where(np.hstack([changes, edge]), position, size)[:, ::-1]
    last = np.minimum.accumulate(from_right, axis=1)[:, ::-1]
    mean_ranks = np.arange(2.0, 2.0 * size + 1.0) / 2.0  # 1, 1.5, ..., size
    table = ndtri((mean_ranks - 0.375) / (size + 0.25))
    scores = np.empty_like(flat)
    np.put_along_axis(scores, order, table[first + last], axis=1)
    return scores.reshape(block.shape)


def _split_rhat(halves: _Block) -> _PerColumn:
    num_draws = halves.shape[2]
    stuck = halves.max(axis=2) == halves.min(axis=2)
    within = np.where(stuck, 0.0, np.var(halves, axis=2, ddof=1)).mean(axis=1)
    between = num_draws * np.var(halves.mean(axis=2), axis=1, ddof=1)
    return np.sqrt((between / within + num_draws - 1) / num_draws)


def _mean_autocovariance(halves: _Block) -> Float[np.ndarray, "column lag"]:
    """Average the chains' autocovariances, with one inverse transform for all chains."""
    num_draws = halves.shape[2]
    length = 1 << (2 * num_draws - 1).bit_length()  # room for all lags without wrapping around
    spectrum = np.fft.rfft(halves - halves.mean(axis=2, keepdims=True), n=length, axis=2)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    return np.fft.irfft(power, n=length, axis=1)[:, :num_draws] / num_draws


def _ess_of_mean(halves: np.ndarray) -> _PerColumn:
    """Estimate the effective size with Geyer's initial positive, then monotone, sequence."""
    halves = halves.astype(np.float64)
    _, num_chains, num_draws = halves.shape
    total = num_chains * num_draws
    autocovariance = _mean_autocovariance(halves)
    variance = autocovariance[:, :1] * num_draws / (num_draws - 1)
    chain_variance = np.var(halves.mean(axis=2), axis=1, ddof=1, keepdims=True)
    rho = 1.0 - (variance - autocovariance) / (autocovariance[:, :1] + chain_variance)
    rho[:, 0] = 1.0

    num_pairs = max(1, (num_draws - 1) // 2)
    even = rho[:, 0 : 2 * num_pairs : 2]
    pairs = even + rho[:, 1 : 2 * num_pairs : 2]
    ended = ~(pairs > 0)
    last = np.where(ended.any(axis=1), ended.argmax(axis=1), num_pairs - 1)[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    whole = np.sum(np.where(np.arange(num_pairs) < last, monotone, 0.0), axis=1)
    tail = np.take_along_axis(even, last, axis=1)
    kept = (np.take_along_axis(pairs, last, axis=1) >= 0) | (tail > 0)
    time = -1.0 + 2.0 * whole + np.where(kept, tail, 0.0)[:, 0]
    size = total / np.maximum(time, 1.0 / np.log10(total))
    size = np.where(np.isnan(rho).any(axis=1), np.nan, size)
    return np.where(_constant(halves), float(total), size)


def _ess_rule(kind: EssKind | float) -> Callable[[_Block], _PerColumn]:
    if kind == "mean":
        return lambda block: _ess_of_mean(_split(block))
    if kind == "sd":
        return lambda block: _ess_of_mean(_split(_squared_deviations(block)))
    if kind == "bulk":
        return lambda block: _ess_of_mean(_normal_scores(_split(block)))
    if kind == "tail":
        return lambda block: np.minimum(_quantile_ess(block, 0.05), _quantile_ess(block, 0.95))
    prob = 0.5 if kind == "median" else _probability("ess", kind, get_args(EssKind))
    return lambda block: _quantile_ess(block, prob)


def _squared_deviations(block: _Block) -> _Block:
    return (block - block.mean(axis=(1, 2), keepdims=True)) ** 2


def _quantile_ess(block: _Block, prob: float) -> _PerColumn:
    quantile = np.quantile(block, prob, axis=(1, 2), keepdims=True)
    return _ess_of_mean(_split(block <= quantile))


def _quantile_mcse(block: _Block, prob: float) -> _PerColumn:
    """Take half the width of the quantile's one-sigma interval, of beta-distributed ranks."""
    from scipy.special import betaincinv

    size = _quantile_ess(block, prob)
    ordered = np.sort(block.reshape(len(block), -1), axis=1)
    count = ordered.shape[1]
    low, high = (count * betaincinv(size * prob + 1, size * (1 - prob) + 1, p) for p in _ONE_SIGMA)
    ranks = np.stack([np.floor(low - 1), np.ceil(high - 1)], axis=1)
    index = np.nan_to_num(ranks).clip(0, count - 1).astype(np.intp)
    ends = np.take_along_axis(ordered, index, axis=1)
    return (ends[:, 1] - ends[:, 0]) / 2


def _probability(operation: str, kind: object, kinds: tuple[str, ...]) -> float:
    if isinstance(kind, (float, int, np.floating)) and 0 <= kind <= 1:
        return float(kind)
    raise ArgumentError(
        message(
            f"{operation} got kind={kind!r}",
            needs=f"one of {', '.join(map(repr, kinds))}, or a quantile's probability in [0, 1]",
            fix=f"{operation}(x, {kinds[0]!r})",
        )
    )
