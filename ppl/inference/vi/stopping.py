"""When a fit has nothing more to gain: `Plateau`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import ArgumentError, message


class Window(NamedTuple):
    """Sums over the present window of steps, and the mean of the one before."""

    number: Any
    first: Any
    last: Any
    total: Any
    squares: Any
    before: Any
    error: Any


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Stop where a window of steps is not clearly better than the one before.

    **Meaning.** At the end of every `window` steps the mean of their estimates is compared with the
    mean over the window before. The fit stops when it is better by no more than `tolerance`, or by
    no more than `z` standard errors of the difference. The errors are those of independent
    estimates about a slowly moving mean, from the differences of neighbours. Non-finite steps
    count in no window. With z = 2 a fit that has nothing more to gain goes on with probability
    0.023 at each test; one that gains less in a window than its noise allows to see is stopped, so
    a longer window is the stricter rule. The rule reads the estimates alone: it is the same for a
    run in one piece, after a checkpoint and after `extend`.

    Args:
        window: steps in a window, at least 2.
        z: standard errors.
        tolerance: an improvement, in the units of the objective, that is not worth a window.

    Raises:
        ArgumentError: the window is no integer of at least 2, or a number is negative.

    Source:
        von Neumann (1941) for the variance from successive differences.
    """

    window: int = 500
    z: float = 2.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        count("Plateau", "window", self.window, 2)
        for name in ("z", "tolerance"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise ArgumentError(
                    message(
                        f"Plateau got {name}={value!r}",
                        needs="a finite number of at least 0",
                        fix="ppl.vi.Plateau(window=500, z=2.0, tolerance=0.0)",
                    )
                )

    def start(self, kind: Any) -> Window:
        """Give the state before the first step.

        Args:
            kind: dtype of the estimates.
        """
        zero = jnp.zeros((), kind)
        return Window(jnp.zeros((), jnp.int32), zero, zero, zero, zero, zero, zero + jnp.inf)

    def after(self, window: Window, gain: Any, counts: Any) -> tuple[Window, Any]:
        """Take in a step's estimate; more is better.

        Args:
            window: the state.
            gain: the estimate, of the sign that makes more the better.
            counts: whether the step was finite.

        Returns:
            The state after it, and whether to stop.
        """
        new, size = window.number == 0, self.window
        number = window.number + 1
        first = jnp.where(new, gain, window.first)
        # Deviations from the first one: the values may be large, and their differences small.
        total = jnp.where(new, 0.0, window.total) + gain - first
        squares = jnp.where(new, 0.0, window.squares + (gain - window.last) ** 2)
        full = number == size
        mean, error = first + total / size, squares / (2 * (size - 1) * size)
        least = jnp.maximum(self.tolerance, self.z * jnp.sqrt(error + window.error))
        # Before the first window the error is infinite: with z = 0 too it is no end.
        stop = full & (mean - window.before <= least) & jnp.isfinite(window.error)
        after = Window(
            jnp.where(full, 0, number), first, gain, total, squares,
            jnp.where(full, mean, window.before), jnp.where(full, error, window.error),
        )  # fmt: skip
        kept = [jnp.where(counts, a, b).astype(b.dtype) for a, b in zip(after, window, strict=True)]
        return Window(*kept), stop & counts
