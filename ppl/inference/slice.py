"""`slice`: univariate slice sampling, one coordinate after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import coordinates, fit, numbers
from ppl.inference.trace_kernel import TraceKernel, as_addresses
from ppl.semantics.weighted import Trace
from ppl.statements import sample, scope


@named_keywords
def slice(
    *, width: ArrayLike = 1.0, addresses: Sequence[str] | None = None, max_steps: int = 100
) -> Slice:
    """Make the slice sampler on the continuous latents.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, for any width and any
    `max_steps`. Each coordinate of `ppl.unconstrain` is moved in turn, given the others: a height
    below the density is drawn, an interval is stepped out until it ends outside of the slice, and
    shrunk onto a point inside. Discrete latents, and those not named, are held. One move evaluates
    the density several times for every coordinate.

    Args:
        width: of the steps out, about the scale of the posterior in unconstrained space: a positive
            number, or one for each coordinate. Data: another value compiles nothing.
        addresses: the latents that move; None for all continuous ones.
        max_steps: widths of the interval, at most.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range, or (when called) the width has another dimension
            than the program.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Neal (2003), section 4: stepping out (figure 3) and shrinkage (figure 5).
    """
    width = numbers("slice", "width", width, "ppl.kernels.slice(width=1.0)")
    if width.ndim > 1:
        raise ArgumentError(
            message(
                f"slice got width of shape {width.shape}",
                needs="one number, or one for each coordinate",
                why="coordinates move one after the other",
                fix="ppl.kernels.slice(width=jnp.diag(width))",
            )
        )
    return Slice(width, as_addresses("slice", addresses), count("slice", "max_steps", max_steps))


@pytree
class Slice(TraceKernel):
    """The kernel of `slice`."""

    width: Array
    addresses: tuple[str, ...] | None = static()
    max_steps: int = static()

    operation: ClassVar[str] = "slice"

    def move(self, trace: Trace) -> Trace:
        """Move every coordinate along its axis."""
        space = coordinates("slice", trace, self.addresses)
        start = space.start()
        width = jnp.broadcast_to(fit("slice", "width", self.width, space), start.shape)

        def step(state: Any, coordinate: Any) -> Any:
            z, density = state
            index, width = coordinate
            along = lambda x: space.log_density(z.at[index].set(x))  # noqa: E731
            x, density = _moved(along, z[index], density, width, self.max_steps)
            return (z.at[index].set(x), density), None

        state = start, space.log_density(start)
        widths = width.astype(start.dtype)
        (z, _), _ = jax.lax.scan(step, state, (jnp.arange(space.size), widths))
        return space.moved(z, jnp.ones((), bool))


def _moved(
    log_density: Callable[[Any], Any], x: Any, density: Any, width: Any, max_steps: int
) -> tuple[Any, Any]:
    """Draw a point from the slice around a point on a line, and give its log density."""
    level = density - sample("height", dist.Exponential(1.0)).astype(density.dtype)
    left = x - width * sample("place", dist.Uniform(0.0, 1.0)).astype(x.dtype)
    steps = sample("steps", dist.DiscreteUniform(0, max_steps - 1))

    def step_out(edge: Any, step: Any, limit: Any) -> Any:
        def outside(state: Any) -> Any:
            edge, taken = state
            return (taken < limit) & (log_density(edge) >= level)

        start = edge, jnp.zeros_like(limit)
        return jax.lax.while_loop(outside, lambda s: (s[0] + step, s[1] + 1), start)[0]

    ends = step_out(left, -width, steps), step_out(left + width, width, max_steps - 1 - steps)

    def shrink(state: Any) -> Any:
        left, right, new, _ = state
        left, right = jnp.where(new < x, new, left), jnp.where(new < x, right, new)
        return left, right, *point(left, right)

    def point(left: Any, right: Any) -> Any:
        new = left + (right - left) * sample("point", dist.Uniform(0.0, 1.0)).astype(x.dtype)
        return new, log_density(new)

    def missed(state: Any) -> Any:
        # An interval that rounding has closed upon the old point ends there.
        _, _, new, found = state
        return ~(found >= level) & (new != x)

    with scope("first"):
        first = point(*ends)
    _, _, new, found = jax.lax.while_loop(missed, shrink, (*ends, *first))
    return new, jnp.where(new == x, density, found)
