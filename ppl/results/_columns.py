"""What diagnostics are made of: variances, ranks and autocovariances of columns of draws."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Block = Float[np.ndarray, "column chain draw"]
PerColumn = Float[np.ndarray, " column"]


def variance(values: np.ndarray, axis: int) -> np.ndarray:
    """Give unbiased variances; exactly 0 for equal values, and for one."""
    equal = values.max(axis=axis) == values.min(axis=axis)
    return np.where(equal, 0.0, np.var(values, axis=axis, ddof=int(values.shape[axis] > 1)))


def constant(block: Block) -> np.ndarray:
    """Tell which columns have one value only."""
    return block.max(axis=(1, 2)) == block.min(axis=(1, 2))


def split(block: np.ndarray) -> np.ndarray:
    """Cut every chain into its first and last half, dropping the middle of an odd number."""
    half = block.shape[2] // 2
    return np.concatenate([block[:, :, :half], block[:, :, -half:]], axis=1)


def normal_scores(block: Block) -> Block:
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


def split_rhat(halves: Block) -> PerColumn:
    """Compare the variance between chains, or halves of them, with that within."""
    num_draws = halves.shape[2]
    within = variance(halves, 2).mean(axis=1)
    between = num_draws * np.var(halves.mean(axis=2), axis=1, ddof=1)
    return np.sqrt((between / within + num_draws - 1) / num_draws)


def _mean_autocovariance(halves: Block) -> Float[np.ndarray, "column lag"]:
    """Average the chains' autocovariances, with one inverse transform for all chains."""
    num_draws = halves.shape[2]
    length = 1 << (2 * num_draws - 1).bit_length()  # room for all lags without wrapping around
    spectrum = np.fft.rfft(halves - halves.mean(axis=2, keepdims=True), n=length, axis=2)
    power = (spectrum.real**2 + spectrum.imag**2).mean(axis=1)
    return np.fft.irfft(power, n=length, axis=1)[:, :num_draws] / num_draws


def ess_of_mean(halves: np.ndarray) -> PerColumn:
    """Estimate the effective size with Geyer's initial positive, then monotone, sequence."""
    halves = halves.astype(np.float64)
    _, num_chains, num_draws = halves.shape
    total = num_chains * num_draws
    autocovariance = _mean_autocovariance(halves)
    within = autocovariance[:, :1] * num_draws / (num_draws - 1)
    chain_variance = np.var(halves.mean(axis=2), axis=1, ddof=1, keepdims=True)
    rho = 1.0 - (within - autocovariance) / (autocovariance[:, :1] + chain_variance)
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
    return np.where(constant(halves), float(total), size)
