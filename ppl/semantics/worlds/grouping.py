"""Which rows of some columns are the same: integers exactly, floats up to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

#: Two floats are the same value if they differ by less than this, times the larger of 1 and their
#: magnitude. Rounding stays far below it, and what a program tells apart should stay above.
TOLERANCES = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-5}
_COARSEST = 1e-2  # half precision

_MOST_CODES = 2**40


class Groups(NamedTuple):
    """The group of each row, in the rows' lexicographic order, and one row of each group."""

    codes: np.ndarray
    first: np.ndarray

    @property
    def number(self) -> int:
        """The number of groups."""
        return len(self.first)


def group(
    columns: Sequence[Any], rows: int, tolerance: float | None = None, floor: float = 1.0
) -> Groups:
    """Group rows that agree in every column.

    Args:
        columns: arrays of shape (rows, ...).
        rows: their number.
        tolerance: for floats, absolute and relative; None for the default of their precision.
        floor: the tolerance is relative to a magnitude of at least this.
    """
    codes, span = np.zeros(rows, np.int64), 1
    if not rows:
        return Groups(codes, codes)
    for column in columns:
        numbers = plain(column)
        flat = numbers.reshape(rows, math.prod(numbers.shape[1:]))  # -1 fails without rows
        for k in range(flat.shape[1]):
            new, size = _codes(flat[:, k], tolerance, floor)
            if size == 1:
                continue
            if span * size > _MOST_CODES:
                codes = np.unique(codes, return_inverse=True)[1]
                span = int(codes.max(initial=0)) + 1
                new = np.unique(new, return_inverse=True)[1]
                size = int(new.max(initial=0)) + 1
            codes, span = codes * size + new, span * size
    if span == 1:
        return Groups(codes, np.zeros(min(rows, 1), np.int64))
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return Groups(inverse.reshape(-1), first)


def plain(x: Any) -> np.ndarray:
    """Give an array of numbers; a PRNG key as its words."""
    if isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(x))
    return np.asarray(x)


def _codes(x: np.ndarray, tolerance: float | None, floor: float) -> tuple[np.ndarray, int]:
    """Number the values of a column in increasing order, or nearly: equal values equal numbers."""
    if not len(x):
        return np.zeros(0, np.int64), 1
    if x.dtype.kind == "c":
        one, two = (_codes(part, tolerance, floor) for part in (np.real(x), np.imag(x)))
        return one[0] * two[1] + two[0], one[1] * two[1]
    if x.dtype.kind in "biu":
        low, high = int(x.min()), int(x.max())
        if high - low < _MOST_CODES and high < 2**62:
            return x.astype(np.int64) - low, high - low + 1
        codes = np.unique(x, return_inverse=True)[1]
        return codes, int(codes.max()) + 1
    if tolerance is None:
        tolerance = TOLERANCES.get(x.dtype, _COARSEST)
    x = x.astype(np.float64)
    if x.min() == x.max():
        return np.zeros(len(x), np.int64), 1
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    with np.errstate(all="ignore"):  # inf - inf, 0 * inf
        near = np.diff(ordered) <= tolerance * np.maximum(floor, np.abs(ordered[1:]))
    near |= ordered[1:] == ordered[:-1]
    near &= np.isfinite(ordered[1:]) | (ordered[1:] == ordered[:-1])
    near |= np.isnan(ordered[1:]) & np.isnan(ordered[:-1])
    codes = np.empty(len(x), np.int64)
    codes[order] = np.concatenate([[0], np.cumsum(~near)])
    return codes, int(codes.max()) + 1


def total(log_masses: np.ndarray, groups: Groups) -> np.ndarray:
    """Add up masses within each group, in nats."""
    top = largest(log_masses, groups)
    safe = np.where(np.isfinite(top), top, 0.0)
    parts = np.bincount(groups.codes, np.exp(log_masses - safe[groups.codes]), groups.number)
    with np.errstate(divide="ignore"):
        return np.log(parts) + safe


def total_of(log_masses: np.ndarray, codes: np.ndarray, number: int) -> np.ndarray:
    """Add up masses by group, in nats, where some groups may have no member."""
    top = max(float(np.max(log_masses)), -1e300)
    with np.errstate(divide="ignore"):
        return np.log(np.bincount(codes, np.exp(log_masses - top), number)) + top


def log_sum_exp(x: np.ndarray) -> float:
    """Add up masses, in nats."""
    top = float(np.max(x, initial=-np.inf))
    return top + math.log(float(np.sum(np.exp(x - top)))) if math.isfinite(top) else top


def largest(values: np.ndarray, groups: Groups) -> np.ndarray:
    """Give the largest value of each group."""
    order = np.argsort(groups.codes, kind="stable")
    starts = np.searchsorted(groups.codes[order], np.arange(groups.number))
    return np.maximum.reduceat(values[order], starts) if len(values) else values
