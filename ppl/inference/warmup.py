"""Warmup: the step size by dual averaging, the metric by Fisher divergence.

Everything works for one chain and for many: axes of chains stand last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Dual averaging: how fast old errors are forgotten, and how strongly they pull.
_FORGET, _PULL, _DELAY = 0.75, 0.05, 10.0
#: The parts of the warmup after which windows are long, and after which the metric is fixed.
_EARLY, _FIXED = 0.3, 0.85
#: After how many draws an old window is dropped, early and late.
_SHORT, _LONG = 10, 80
#: What the metric may be at the start, where one gradient is all that is known, and later.
_FIRST_RANGE, _RANGE = (1e-8, 1e2), (1e-20, 1e20)
#: The step size that warmup starts from; the metric has made it a pure number.
FIRST_STEP = 0.5


def velocity(inverse_mass: Float[Array, "size ..."], momentum: Any) -> Any:
    """Give the velocity of a momentum, or of one for each row of a second axis."""
    wide = momentum.ndim > inverse_mass.ndim
    return (inverse_mass[:, None] if wide else inverse_mass) * momentum


def kinetic(inverse_mass: Any, momentum: Any) -> Any:
    """Give the kinetic energy."""
    return 0.5 * jnp.sum(momentum * velocity(inverse_mass, momentum), 0)


class Moments(NamedTuple):
    """Counts, means and sums of squared deviations of draws and of gradients there."""

    number: Array
    mean: Float[Array, "2 size ..."]
    squares: Float[Array, "2 size ..."]

    @classmethod
    def none(cls, like: Float[Array, "size ..."]) -> Moments:
        """Make those of no draws."""
        nothing = jnp.zeros((2, *like.shape), like.dtype)
        return cls(jnp.zeros(like.shape[1:], like.dtype), nothing, nothing)

    def add(self, place: Float[Array, "2 size ..."], counts: Any) -> Moments:
        """Add a draw and the gradient there, where it counts."""
        number = self.number + counts
        deviation = jnp.where(counts, place - self.mean, 0.0)
        mean = self.mean + deviation / jnp.maximum(number, 1)
        return Moments(
            number, mean, self.squares + deviation * jnp.where(counts, place - mean, 0.0)
        )


class Warmup(NamedTuple):
    """What a chain has learned.

    `inverse_mass` is the diagonal metric that minimises the Fisher divergence between a normal
    distribution and the draws: sqrt(variance of draws / variance of gradients). It is refitted at
    every draw, to those of a window that is dropped for a younger one from time to time.
    """

    step_size: Array
    inverse_mass: Float[Array, "size ..."]
    log_step: Array
    mean_log_step: Array
    error: Array
    centre: Array
    updates: Array
    old: Moments
    young: Moments


def start(
    place: Float[Array, "2 size ..."], step_size: Any = None, inverse_mass: Any = None
) -> Warmup:
    """Start at a position, of which the gradient gives a first scale.

    Args:
        place: position and gradient.
        step_size: None for one to be adapted.
        inverse_mass: None for one to be adapted.
    """
    position, gradient = place
    kind = position.dtype
    zero = jnp.zeros(position.shape[1:], kind)
    if inverse_mass is None:
        inverse_mass = jnp.clip(1 / jnp.abs(gradient), *_FIRST_RANGE)
    step = jnp.broadcast_to(
        jnp.asarray(FIRST_STEP if step_size is None else step_size, kind), zero.shape
    )
    log = jnp.log(step)
    nothing = Moments.none(position)
    full = jnp.broadcast_to(jnp.asarray(inverse_mass, kind), position.shape)
    centre = log + jnp.log(jnp.asarray(10.0, kind))
    return Warmup(step, full, log, log, zero, centre, zero, nothing, nothing)


def update(
    before: Warmup,
    index: Any,
    num_warmup: int,
    place: Float[Array, "2 size ..."],
    acceptance: Any,
    counts: Any,
    target: float,
    step_size: bool = True,
    inverse_mass: bool = True,
) -> Warmup:
    """Learn from a move.

    Args:
        before: what is known.
        index: the number of the move.
        num_warmup: length of the warmup.
        place: the draw, and the gradient there.
        acceptance: the move's acceptance statistic.
        counts: whether the draw tells of the posterior's scale.
        target: the acceptance statistic to be reached.
        step_size: whether to adapt that.
        inverse_mass: whether to adapt that.

    Source: Hoffman and Gelman (2014), section 3.2, for the step size; the metric and its windows
    are nutpie's (Seyboldt, Carlson and Carpenter 2026, Preconditioning Hamiltonian Monte Carlo by
    minimizing Fisher divergence).
    """
    known = before
    if inverse_mass:
        known = _refitted(known, index, num_warmup, place, counts)
    if step_size:
        # In the last part the metric is fixed: the average step belongs to it alone.
        again = index == int(_FIXED * num_warmup)
        known = _stepped(known, again, acceptance, target)
        last = index + 1 == num_warmup
        step = jnp.where(last, known.mean_log_step, known.log_step)
        known = known._replace(step_size=jnp.exp(step))
    return known


def _refitted(known: Warmup, index: Any, num_warmup: int, place: Any, counts: Any) -> Warmup:
    fixed = int(_FIXED * num_warmup)
    learning = index < fixed
    counts = counts & learning
    old, young = known.old.add(place, counts), known.young.add(place, counts)
    length = jnp.where(index < int(_EARLY * num_warmup), _SHORT, _LONG)
    switch = learning & (young.number >= length) & (index + length <= fixed)
    old = jax.tree.map(lambda a, b: jnp.where(switch, b, a), old, young)
    young = jax.tree.map(lambda a: jnp.where(switch, 0.0, a), young)
    ratio = jnp.sqrt(old.squares[0] / old.squares[1])
    fine = learning & (old.number >= 3) & jnp.isfinite(ratio) & (ratio > 0)
    mass = jnp.where(fine, jnp.clip(ratio, *_RANGE), known.inverse_mass)
    return known._replace(old=old, young=young, inverse_mass=mass)


def _stepped(known: Warmup, again: Any, acceptance: Any, target: float) -> Warmup:
    centre = jnp.where(again, known.log_step, known.centre)
    count = jnp.where(again, 0.0, known.updates) + 1
    error = jnp.where(again, 0.0, known.error)
    rate = 1 / (count + _DELAY)
    error = (1 - rate) * error + rate * (target - acceptance)
    log_step = centre - jnp.sqrt(count) / _PULL * error
    weight = count**-_FORGET
    mean = weight * log_step + (1 - weight) * jnp.where(again, log_step, known.mean_log_step)
    return known._replace(
        log_step=log_step, mean_log_step=mean, error=error, centre=centre, updates=count
    )
