"""Warmup: the step size by dual averaging, the metric by Fisher divergence.

A warmup starts with one chain; what it learns later, it learns of one or of many, whose axes stand
last.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference.metric import LowRank, Metric

#: Dual averaging: how fast old errors are forgotten, and how weakly they pull, at first and once
#: the metric is fixed. Steps that swing accept less than their average does: swinging as widely to
#: the end, they would average to one that is accepted too often, and is too short.
_FORGET, _DELAY = 0.75, 10.0
_SWINGING, _CALM = 0.05, 0.2
#: The parts of the warmup after which windows are long, and after which the metric is fixed.
_EARLY, _FIXED = 0.3, 0.85
#: After how many draws an old window is dropped, early and late.
_SHORT, _LONG = 10, 80
#: What the metric may be at the start, where one gradient is all that is known, and later.
_FIRST_RANGE, _RANGE = (1e-8, 1e2), (1e-20, 1e20)
#: The step size that warmup starts from; the metric has made it a pure number.
FIRST_STEP = 0.5
#: How many moves the opening has: a part of the warmup, but at least some, if these are no larger a
#: part.
_OPENING, _LEAST_OPENING, _MOST_OPENING = 0.1, 50, 0.3
#: What the standard deviations of draws and gradients multiply to at most, where a metric is fitted
#: to them. They do to one under a normal law, and to the root of the condition number where a
#: diagonal tells little. Chains that come from far have 1e10 and more: such a metric would hold
#: them where they are.
_ARRIVED = 1e5


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
        """Add a draw and the gradient there, where it counts.

        With an axis more than the moments have, they are draws of chains that learn together. All
        of them are as much as one draw, so that windows count moves.
        """
        if place.ndim > self.mean.ndim:
            return self._add_many(place, counts)
        number = self.number + counts
        deviation = jnp.where(counts, place - self.mean, 0.0)
        mean = self.mean + deviation / jnp.maximum(number, 1)
        return Moments(
            number, mean, self.squares + deviation * jnp.where(counts, place - mean, 0.0)
        )

    def _add_many(self, places: Float[Array, "2 size chain"], counts: Any) -> Moments:
        weights = counts / jnp.maximum(jnp.sum(counts), 1).astype(places.dtype)
        share = jnp.mean(counts.astype(places.dtype))
        centre = jnp.sum(weights * jnp.where(counts, places, 0.0), -1)
        spread = jnp.sum(weights * jnp.where(counts, places - centre[..., None], 0.0) ** 2, -1)
        number = self.number + share
        part = share / jnp.where(number > 0, number, 1.0)
        step = centre - self.mean
        squares = self.squares + share * spread + self.number * part * step**2
        return Moments(number, self.mean + part * step, squares)


class Steps(NamedTuple):
    """Dual averaging: logarithms of the step size and of its average, and what moves them."""

    log_step: Array
    mean_log_step: Array
    error: Array
    centre: Array
    updates: Array

    @classmethod
    def start(cls, step_size: Any) -> Steps:
        """Start from a step size."""
        log = jnp.log(step_size)
        zero = jnp.zeros_like(log)
        return cls(log, log, zero, log + math.log(10.0), zero)


class Warmup(NamedTuple):
    """What a chain has learned.

    `inverse_mass` is the diagonal metric that minimises the Fisher divergence between a normal
    distribution and the draws: sqrt(variance of draws / variance of gradients). It is refitted at
    every draw, to those of a window that is dropped for a younger one from time to time. For a
    metric of low rank, `recent` are the last draws and their gradients. `seen` counts the draws
    that the metric was fitted to, `settled` tells that it is fixed: a part of a mixture makes only
    some of a chain's moves, and must not wait for one of a certain number.
    """

    step_size: Array
    inverse_mass: Metric
    log_step: Array
    mean_log_step: Array
    error: Array
    centre: Array
    updates: Array
    seen: Array
    settled: Array
    old: Moments
    young: Moments
    recent: Float[Array, "2 window size ..."] | None = None


K = TypeVar("K", Steps, Warmup)


class Packed(NamedTuple):
    """What a chain has learned, in three arrays, as a loop carries it: each costs it a copy."""

    numbers: Float[Array, "10 ..."]
    inverse_mass: Metric
    moments: Float[Array, "4 2 size ..."]
    recent: Float[Array, "2 window size ..."] | None

    @property
    def step_size(self) -> Any:
        """The step size."""
        return self.numbers[0]

    @classmethod
    def of(cls, known: Warmup) -> Packed:
        """Pack."""
        old, young = known.old, known.young
        scalars = (
            known.step_size, known.log_step, known.mean_log_step, known.error, known.centre,
            known.updates, known.seen, known.settled, old.number, young.number,
        )  # fmt: skip
        moments = jnp.stack([old.mean, old.squares, young.mean, young.squares])
        return cls(jnp.stack(scalars), known.inverse_mass, moments, known.recent)

    @property
    def known(self) -> Warmup:
        """Unpack."""
        step, log_step, mean, error, centre, updates, seen, settled, old, young = self.numbers
        m = self.moments
        windows = Moments(old, m[0], m[1]), Moments(young, m[2], m[3])
        return Warmup(
            step, self.inverse_mass, log_step, mean, error, centre, updates, seen, settled,
            *windows, self.recent,
        )  # fmt: skip


def start(
    place: Float[Array, "2 size"],
    step_size: Any = None,
    inverse_mass: Any = None,
    low_rank: int = 0,
) -> Warmup:
    """Start a chain at a position, of which the gradient gives a first scale.

    Args:
        place: position and gradient.
        step_size: None for one to be adapted.
        inverse_mass: None for one to be adapted.
        low_rank: the number of directions in which it is to be more than diagonal.
    """
    position, gradient = place
    kind = position.dtype
    zero = jnp.zeros((), kind)
    if inverse_mass is None:
        inverse_mass = jnp.clip(1 / jnp.abs(gradient), *_FIRST_RANGE)
    step = jnp.asarray(FIRST_STEP if step_size is None else step_size, kind)
    steps, nothing = Steps.start(step), Moments.none(position)
    recent = None
    if not isinstance(inverse_mass, LowRank):
        inverse_mass = jnp.broadcast_to(jnp.asarray(inverse_mass, kind), position.shape)
    if low_rank and not isinstance(inverse_mass, LowRank):
        rank = min(low_rank, len(position))
        unit = jnp.eye(len(position), rank, dtype=kind)
        inverse_mass = LowRank(inverse_mass, unit, jnp.ones(rank, kind))
        recent = jnp.zeros((2, _LONG, *position.shape), kind)
    return Warmup(
        step, inverse_mass, *steps, zero, zero, nothing, nothing, recent
    )  # fmt: skip


def opening(num_warmup: int) -> int:
    """Give the first moves of a warmup, in which chains come from far."""
    return max(min(_LEAST_OPENING, int(_MOST_OPENING * num_warmup)), int(_OPENING * num_warmup))


def update(
    before: Warmup,
    index: Any,
    num_warmup: int,
    place: Float[Array, "2 size ..."],
    acceptance: Any,
    counts: Any,
    target: Any,
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
        settled = index >= int(_FIXED * num_warmup)
        pull = jnp.where(settled, _CALM, _SWINGING)
        known = stepped(known, settled & (known.settled == 0), acceptance, target, pull)
        known = known._replace(settled=jnp.where(settled, 1.0, known.settled))
        last = index + 1 == num_warmup
        step = jnp.where(last, known.mean_log_step, known.log_step)
        known = known._replace(step_size=jnp.exp(step))
    return known


def refit(
    old: Moments,
    young: Moments,
    inverse_mass: Any,
    index: Any,
    num_warmup: int,
    place: Float[Array, "2 size ..."],
    counts: Any,
) -> tuple[Moments, Moments, Any]:
    """Fit a diagonal metric to the draws of a window.

    Args:
        old: those of the window.
        young: those of the one that will follow it.
        inverse_mass: the metric until now.
        index: the number of the move.
        num_warmup: length of the warmup.
        place: the draw, and the gradient there.
        counts: whether the draw tells of the posterior's scale.

    Returns:
        The windows after this draw, and the metric.
    """
    fixed = int(_FIXED * num_warmup)
    learning = index < fixed
    counts = counts & learning
    old, young = old.add(place, counts), young.add(place, counts)
    length = jnp.where(index < int(_EARLY * num_warmup), _SHORT, _LONG)
    switch = learning & (young.number >= length) & (index + length <= fixed)
    old = jax.tree.map(lambda a, b: jnp.where(switch, b, a), old, young)
    young = jax.tree.map(lambda a: jnp.where(switch, 0.0, a), young)
    draws, gradients = jnp.sqrt(old.squares)
    ratio = draws / gradients
    arrived = draws * gradients <= _ARRIVED * old.number
    fine = learning & (old.number >= 3) & arrived & jnp.isfinite(ratio) & (ratio > 0)
    return old, young, jnp.where(fine, jnp.clip(ratio, *_RANGE), inverse_mass)


def _refitted(known: Warmup, index: Any, num_warmup: int, place: Any, counts: Any) -> Warmup:
    metric, recent = known.inverse_mass, known.recent
    low = isinstance(metric, LowRank)
    old, young, variance = refit(
        known.old, known.young, metric.variance if low else metric, index, num_warmup, place, counts
    )
    learning = index < int(_FIXED * num_warmup)
    if low:
        assert recent is not None
        slots = jnp.arange(_LONG).reshape(-1, *[1] * place[0].ndim)
        here = (slots == known.seen % _LONG) & learning
        recent = jnp.where(here, place[:, None], recent)
        seen = known.seen + learning
        again = learning & (seen % (_LONG // 2) == 0) & (seen >= _LONG)
        metric = _fitted(metric._replace(variance=variance), recent, again)
    else:
        metric = variance
    return known._replace(
        old=old, young=young, inverse_mass=metric, recent=recent, seen=known.seen + learning
    )


def _fitted(metric: LowRank, recent: Any, again: Any) -> LowRank:
    """Find the directions in which the recent draws ask for more than a diagonal, where `again`.

    In the space of draws and gradients, of covariances A and B, the metric that minimises the
    Fisher divergence is the geometric mean of A and the inverse of B; of its eigenvectors those
    whose eigenvalues are farthest from one are kept.
    """
    rank = metric.stretch.shape[0]

    def one(draws: Any, slopes: Any, variance: Any) -> tuple[Any, Any, Any]:
        arrived = jnp.all(jnp.std(draws, 0) * jnp.std(slopes, 0) <= _ARRIVED)
        root = jnp.sqrt(variance)
        draws = (draws - jnp.mean(draws, 0)) / root
        slopes = (slopes - jnp.mean(slopes, 0)) * root
        basis, _ = jnp.linalg.qr(jnp.concatenate([draws, slopes]).T)
        of_draws, of_slopes = _covariance(draws @ basis), _covariance(slopes @ basis)
        middle = _power(of_slopes, 0.5)
        back = _power(of_slopes, -0.5)
        mean = back @ _power(middle @ of_draws @ middle, 0.5) @ back
        values, vectors = jnp.linalg.eigh(mean)
        values = jnp.maximum(values, jnp.finfo(values.dtype).eps)
        order = jnp.argsort(-jnp.abs(jnp.log(values)))[:rank]
        return basis @ vectors[:, order], values[order], arrived

    def fit() -> tuple[Any, Any, Any]:
        fun = one
        for _ in range(jnp.ndim(again)):
            fun = jax.vmap(fun, in_axes=-1, out_axes=-1)
        return fun(recent[0], recent[1], metric.variance)

    old = metric.directions, metric.stretch, again
    directions, stretch, arrived = jax.lax.cond(jnp.any(again), fit, lambda: old)
    fine = (
        again
        & arrived
        & jnp.all(jnp.isfinite(directions), (0, 1))
        & jnp.all(jnp.isfinite(stretch), 0)
    )
    return metric._replace(
        directions=jnp.where(fine, directions, metric.directions),
        stretch=jnp.where(fine, stretch, metric.stretch),
    )


#: How many draws the guess of no correlation counts for: where they span the space well, and else.
_GUESSES = 1e-3, 5.0


def _covariance(x: Any) -> Any:
    count, size = x.shape
    guess = _GUESSES[2 * size > count]
    return (x.T @ x + guess * jnp.eye(size, dtype=x.dtype)) / (count + guess)


def _power(matrix: Any, exponent: float) -> Any:
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, jnp.finfo(values.dtype).eps * values[-1])
    return (vectors * values**exponent) @ vectors.T


def stepped(known: K, again: Any, acceptance: Any, target: Any, pull: Any = _SWINGING) -> K:
    """Learn of the step size by a move of dual averaging.

    Args:
        known: `Steps`, or what has its fields.
        again: whether to begin anew around the average.
        acceptance: the move's acceptance statistic.
        target: the acceptance statistic to be reached.
        pull: how weakly errors pull.
    """
    centre = jnp.where(again, known.mean_log_step, known.centre)
    count = jnp.where(again, 0.0, known.updates) + 1
    error = jnp.where(again, 0.0, known.error)
    rate = 1 / (count + _DELAY)
    error = (1 - rate) * error + rate * (target - acceptance)
    log_step = centre - jnp.sqrt(count) / pull * error
    weight = count**-_FORGET
    mean = weight * log_step + (1 - weight) * jnp.where(again, log_step, known.mean_log_step)
    return known._replace(
        log_step=log_step, mean_log_step=mean, error=error, centre=centre, updates=count
    )
