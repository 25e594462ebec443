"""Compare the speed of functions that run by turns, so that a busy machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Comparison(NamedTuple):
    """Seconds per call, shape (side, round); ratios are of the first side to each other one."""

    seconds: np.ndarray
    calls: int

    def median(self, side: int) -> float:
        """Median seconds per call of a side."""
        return float(np.median(self.seconds[side]))

    def ratios(self, side: int = 1) -> np.ndarray:
        """First side's time over another's in the same round, one number a round."""
        return self.seconds[0] / self.seconds[side]

    def ratio(self, side: int = 1) -> float:
        """Median over rounds of the ratio."""
        return float(np.median(self.ratios(side)))

    def best(self, side: int = 1) -> float:
        """Ratio of the two shortest times: what remains when nothing else disturbs."""
        return float(self.seconds[0].min() / self.seconds[side].min())

    def spread(self, side: int = 1) -> str:
        """Give minimum and quartiles of the ratio, as text."""
        low, q1, q3 = np.quantile(self.ratios(side), [0.0, 0.25, 0.75])
        return f"min {low:.3f}, quartiles {q1:.3f} to {q3:.3f}"


def alternate(
    a: Callable[[], Any],
    b: Callable[[], Any],
    *more: Callable[[], Any],
    rounds: int = 30,
    seconds: float = 0.05,
    warmup: int = 2,
    before: Callable[[], Any] | None = None,
) -> Comparison:
    """Time functions of no argument by turns, waiting for the arrays that each call returns.

    Args:
        a: the first side, whose ratio to the others is reported.
        b: what it is compared with.
        more: further sides.
        rounds: number of measurements of each side; the order is reversed every other round.
        seconds: calls are repeated until a measurement of the fastest side takes this long;
            0 for one call a measurement.
        warmup: calls of each side that are not measured.
        before: called before every measurement, outside of the measured time.
    """
    sides = (a, b, *more)
    for side in sides:
        for _ in range(warmup):
            jax.block_until_ready(side())
    calls = 1
    while seconds > 0:
        shortest = min(_time(side, calls) for side in sides) * calls
        if shortest >= seconds:
            break
        calls = max(calls + 1, int(calls * min(10.0, 1.2 * seconds / max(shortest, 1e-9))))
    out = np.zeros((len(sides), rounds))
    for i in range(rounds):
        order = range(len(sides)) if i % 2 == 0 else range(len(sides) - 1, -1, -1)
        for k in order:
            if before is not None:
                before()
            out[k, i] = _time(sides[k], calls)
    return Comparison(out, calls)


def _time(side: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(side())
    return (time.perf_counter() - start) / calls


def human(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1.0 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in columns."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in (headers, *rows)
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])
