"""Convergence diagnostics and Monte Carlo errors of Markov chains.

Draws `x` have shape (chain, draw, *event) and every function returns one number per element of
the event. Conventions, which are those of ArviZ: a column with a NaN or an infinity gives NaN, and
so do fewer than four draws a chain (but for `nested_rhat`); R-hat of a single chain gives NaN; a
column that never changes has R-hat NaN and as many effective draws as draws. No numpy warning
escapes.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC, sections 3 and 4. Constancy is
decided by equality rather than by a tolerance, so that no answer depends on the units of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Num, Shaped

from ppl.errors import ArgumentError, ResultError, message
from ppl.results._columns import (
    Block,
    PerColumn,
    constant,
    ess_of_mean,
    normal_scores,
    split,
    split_rhat,
    variance,
)
from ppl.results._dtypes import is_extended

EssKind = Literal["mean", "sd", "bulk", "tail", "median"]
McseKind = Literal["mean", "sd", "median"]

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

    def column_rhat(block: Block) -> PerColumn:
        halves = split(block)
        bulk = split_rhat(normal_scores(halves))
        median = np.median(halves, axis=(1, 2), keepdims=True)
        folded = split_rhat(normal_scores(np.abs(halves - median)))
        return np.where(folded > bulk, folded, bulk)  # folded is NaN if |x - median| is constant

    return _per_column("rhat", x, column_rhat, min_chains=2)


def nested_rhat(
    x: Num[np.ndarray, "chain draw *event"], superchains: Shaped[np.ndarray, " chain"]
) -> Float[np.ndarray, "*event"]:
    """Compute the nested R-hat of many short chains: one draw of each may do.

    Meaning:
        Superchains are the chains that started at one point. Values well above 1 say that chains
        remember where they started. It is at least 1.

    Args:
        x: draws.
        superchains: a label for each chain; as many chains have one as another.

    Raises:
        ArgumentError: superchains of different sizes, fewer than two, or not one label a chain.
        ResultError: draws that are not real numbers of shape (chain, draw, *event).

    Source:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024), Nested R-hat:
        assessing the convergence of Markov chain Monte Carlo when running many short chains,
        definition 2.2; of the draws themselves, not of their ranks.
    """
    labels = np.asarray(superchains)
    names, sizes = np.unique(labels, return_counts=True)
    if labels.shape != np.shape(x)[:1] or len(names) < 2 or len(set(sizes.tolist())) > 1:
        raise ArgumentError(
            message(
                f"nested_rhat got superchains of shape {labels.shape} and sizes {sizes.tolist()} "
                f"for draws of shape {np.shape(x)}",
                needs="a label for each chain: two or more, each of as many chains",
                fix="nested_rhat(x, np.repeat(np.arange(num_superchains), chains_in_each))",
            )
        )
    order = np.argsort(labels, kind="stable")

    def rule(block: Block) -> PerColumn:
        grouped = block[:, order].reshape(len(block), len(names), sizes[0], -1)
        means = grouped.mean(axis=3)
        within = variance(means, 2).mean(axis=1) + variance(grouped, 3).mean(axis=(1, 2))
        return np.sqrt(1 + variance(means.mean(axis=2), 1) / within)

    return _per_column("nested_rhat", x, rule, min_draws=1 if sizes[0] > 1 else 2)


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

    def of_mean(block: Block) -> PerColumn:
        sd = np.where(constant(block), 0.0, np.std(block, axis=(1, 2), ddof=1))
        return sd / np.sqrt(ess_of_mean(split(block)))

    def of_sd(block: Block) -> PerColumn:
        squares = _squared_deviations(block)
        mean = squares.mean(axis=(1, 2))
        spread = np.mean(squares**2, axis=(1, 2)) - mean**2
        return np.sqrt(spread / ess_of_mean(split(squares)) / mean / 4)

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
    rule: Callable[[Block], PerColumn],
    min_chains: int = 1,
    min_draws: int = _MIN_DRAWS,
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
    if x.shape[0] >= min_chains and x.shape[1] >= min_draws:
        with np.errstate(all="ignore"):
            for columns, block in _blocks(x):
                finite = np.isfinite(block).all(axis=(1, 2))
                if finite.any():
                    out[columns][finite] = rule(block[finite])
    return out.reshape(event)


def _blocks(x: np.ndarray) -> Iterator[tuple[slice, Block]]:
    num_chains, num_draws = x.shape[:2]
    flat = x.reshape(num_chains, num_draws, -1)
    step = max(1, _BLOCK_SIZE // max(1, num_chains * num_draws))
    for start in range(0, flat.shape[2], step):
        columns = slice(start, start + step)
        yield columns, np.moveaxis(flat[:, :, columns], 2, 0).astype(np.float64, order="C")


def _ess_rule(kind: EssKind | float) -> Callable[[Block], PerColumn]:
    if kind == "mean":
        return lambda block: ess_of_mean(split(block))
    if kind == "sd":
        return lambda block: ess_of_mean(split(_squared_deviations(block)))
    if kind == "bulk":
        return lambda block: ess_of_mean(normal_scores(split(block)))
    if kind == "tail":
        return lambda block: np.minimum(_quantile_ess(block, 0.05), _quantile_ess(block, 0.95))
    prob = 0.5 if kind == "median" else _probability("ess", kind, get_args(EssKind))
    return lambda block: _quantile_ess(block, prob)


def _squared_deviations(block: Block) -> Block:
    return (block - block.mean(axis=(1, 2), keepdims=True)) ** 2


def _quantile_ess(block: Block, prob: float) -> PerColumn:
    quantile = np.quantile(block, prob, axis=(1, 2), keepdims=True)
    return ess_of_mean(split(block <= quantile))


def _quantile_mcse(block: Block, prob: float) -> PerColumn:
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
