"""Cumulated sums for resampling: exact, so that the order of summation cannot matter.

A float32 cannot hold the cumulated expected offspring of a million particles. As whole numbers with
32-bit fractions the sums never decrease, end at their total, and are not moved by a particle
without weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = 64


def running(op: Callable[[Any, Any], Any], x: Any) -> Any:
    """Accumulate along an axis by an associative operation of which zero is the identity.

    All blocks go through one short loop together. On XLA:CPU this was the fastest of what was
    measured beside jnp.cumsum, associative scans, shifted sums and products with triangles, and it
    compiles faster than an associative scan.
    """
    if x.size <= _BLOCK:
        return jax.lax.associative_scan(op, x)
    columns = jnp.pad(x, (0, -x.size % _BLOCK)).reshape(-1, _BLOCK).T

    def step(so_far: Any, column: Any) -> Any:
        so_far = op(so_far, column)
        return so_far, so_far

    last, columns = jax.lax.scan(step, jnp.zeros_like(columns[0]), columns)
    before = jnp.pad(running(op, last)[:-1], (1, 0))
    return op(before, columns).T.reshape(-1)[: x.size]


def cumsum(x: Any) -> Any:
    """Cumulate integers."""
    return running(jnp.add, x)


def _plus(a: Any, b: Any) -> Any:
    """Add whole numbers with 32-bit fractions; the fractions wrap around and carry."""
    low = a[1] + b[1]
    return a[0] + b[0] + (low < b[1]), low


def cumulate(x: Any, total: Any) -> Any:
    """Cumulate nonnegative numbers, scaled to the given total, as wholes and 32-bit fractions.

    The last sum is the total exactly. What rounding made of the scaled numbers' sum is put right in
    proportion; what little is left then is the largest number's.
    """
    mass = jnp.sum(x)
    x = x * jnp.where(mass > 0, total / mass, 0.0)
    whole = jnp.floor(x)
    parts = whole.astype(jnp.int32), ((x - whole) * 2.0**32).astype(jnp.uint32)
    missing = jnp.sum(total / x.size - x) / jnp.maximum(total, 1)
    share = (x * missing * 2.0**32).astype(jnp.int32)
    high, low = _plus(parts, (share >> 31, share.astype(jnp.uint32)))
    sums = cumsum(low)
    high, low = cumsum(high + (sums < low)), sums  # a sum that wrapped around carries
    rest = total - high[-1] - (low[-1] > 0), jnp.uint32(0) - low[-1]
    later = jnp.arange(x.size) >= jnp.argmax(x)
    return _plus((high, low), tuple(jnp.where(later, r, jnp.zeros_like(r)) for r in rest))


def ancestors(below: Any, num: int) -> Any:
    """Turn cumulated numbers of offspring into ancestors: how many sums are at most j."""
    below = jnp.minimum(below, num).at[-1].set(num)
    ends = jnp.zeros(num, jnp.int32).at[below].add(1, mode="drop")
    return cumsum(ends)


def points_below(gaps: Any, ends: Any, total: Any) -> Any:
    """Count, for each end, which of `total` sorted uniform points on (0, total) lie below it.

    The points are cumulated exponential gaps. A table of how many lie below each whole number
    leaves about one point an end to compare with.
    """
    num, (high, low) = gaps.size - 1, ends
    place = jnp.arange(num + 1)
    point_high, point_low = cumulate(jnp.where(place <= total, gaps, 0.0), total)
    slots = jnp.where(place < total, point_high, num)[:-1]
    table = jnp.zeros(num, jnp.int32).at[slots].add(1, mode="drop")
    table = jnp.pad(cumsum(table), (1, 0))
    stop = table[jnp.minimum(high + 1, num)]
    passed = lambda k: (k < stop) & (point_low[k] < low)  # noqa: E731
    step = lambda k: k + passed(k)  # noqa: E731
    found = jax.lax.while_loop(lambda k: jnp.any(passed(k)), step, table[high])
    return jnp.where(high >= total, total, found)
