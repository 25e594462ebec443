"""The trajectory of the No-U-Turn sampler, grown by one leapfrog step at a time.

A trajectory doubles: half of it is there, the other half grows leaf by leaf from one of its ends. A
subtree of the new half that makes a U-turn ends the trajectory. Which subtrees start and end at a
leaf the binary digits of its number tell, and of a subtree that is growing no more is kept than the
momentum at its start and the sum of those since: so a trajectory is a state of fixed size, and
`grow` one step of a flat loop.

It is of one chain; `jax.vmap` makes many of it, on the first axis. Few arrays are few operations of
the compiled loop, each of which costs as much as a small model's density: hence the phases in one
array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference.metric import MAX_ENERGY_ERROR, velocity
from ppl.inference.metric import momentum as fresh_momentum

#: From a position to its log density and the gradient of that.
Gradient = Callable[[Any], tuple[Any, Any]]


class Numbers(NamedTuple):
    """The numbers of a trajectory.

    Log weights add up the densities of leaves, relative to the start: of the old half, and of the
    new. `crossing` tells whether the old half with the first leaf of the new makes a U-turn;
    `status` whether the trajectory goes on (0), has ended (1) or has diverged (2).
    """

    log_weight: Any
    new_log_weight: Any
    direction: Any
    depth: Any
    log_energy: Any
    crossing: Any
    acceptance: Any
    num_steps: Any
    status: Any


class Trajectory(NamedTuple):
    """A trajectory, of which a new half is growing.

    A place is one column: position, momentum, gradient, log density, log density of the phase.
    `moving` and `other` are the ends, `chosen` is drawn from the old half and `candidate` from the
    leaves of the new one. `first` and `sums` belong to subtrees, first velocity and sum of momenta:
    by depth, those that are growing; by depth, the same with the leaf before; and the whole.
    """

    moving: Float[Array, " place"]
    other: Float[Array, " place"]
    chosen: Float[Array, " place"]
    candidate: Float[Array, " place"]
    first: Float[Array, "subtrees size"]
    sums: Float[Array, "subtrees size"]
    packed: Float[Array, " numbers"]

    @property
    def numbers(self) -> Numbers:
        """The numbers."""
        return Numbers(*jnp.moveaxis(self.packed, -1, 0))

    @property
    def here(self) -> Place:
        """What was drawn from the trajectory."""
        return _place(self.chosen, self.first.shape[1])


class Place(NamedTuple):
    """A point of a trajectory."""

    position: Any
    momentum: Any
    gradient: Any
    log_density: Any
    log_energy: Any

    @property
    def column(self) -> Any:
        """The place as one array."""
        last = self.log_density[None], self.log_energy[None]
        return jnp.concatenate([self.position, self.momentum, self.gradient, *last])


def _place(column: Any, size: int) -> Place:
    position, momentum, gradient = (column[i * size : (i + 1) * size] for i in range(3))
    return Place(position, momentum, gradient, column[3 * size], column[3 * size + 1])


class Noise(NamedTuple):
    """What a leaf needs.

    Standard normals for a momentum, should it be the first of a trajectory, and its kinetic energy;
    two directions, -1 or 1; and logarithms of two uniforms.
    """

    momentum: Float[Array, " size"]
    kinetic: Float[Array, ""]
    directions: Float[Array, " 2"]
    logs: Float[Array, " 2"]


def noise(momentum: Any, coins: Any) -> Noise:
    """Make of normal and of four uniform numbers what a leaf needs."""
    kinetic = 0.5 * jnp.sum(momentum**2)
    return Noise(momentum, kinetic, jnp.where(coins[:2] < 0.5, -1.0, 1.0), jnp.log(coins[2:]))


def rest(position: Any, gradient: Any, log_density: Any, max_depth: int) -> Trajectory:
    """Stand at a position, as a trajectory that has ended there.

    Args:
        position: where.
        gradient: there.
        log_density: there.
        max_depth: how often a trajectory may double.
    """
    zero = jnp.zeros_like(log_density)
    place = Place(position, jnp.zeros_like(position), gradient, log_density, zero).column
    rows = jnp.zeros((2 * max_depth + 1, len(position)), position.dtype)
    numbers = jnp.stack(Numbers(*[zero] * 8, status=zero + 1))
    return Trajectory(place, place, place, place, rows, rows, numbers)


def grow(
    gradient: Gradient, old: Trajectory, step_size: Any, inverse_mass: Any, noise: Noise
) -> Trajectory:
    """Grow a trajectory by one leaf; one that has ended is followed by the next.

    **Meaning.** From end to end, `chosen` is the state of a Markov chain that leaves the density
    invariant: a trajectory is as likely to be built from each of its states, of which the choice is
    a draw that prefers the new half.

    Args:
        gradient: of the log density.
        old: the trajectory.
        step_size: positive.
        inverse_mass: the metric.
        noise: independent draws.

    Source: Hoffman and Gelman (2014); Betancourt (2017), appendix A.4, for the weights; the U-turn
    criterion is Stan's, with the checks across the middle of each subtree (version 2.21), made as
    soon as the middle is crossed.
    """
    size, max_depth = old.first.shape[1], len(old.sums) // 2
    kind = old.first.dtype
    ahead, after = noise.directions
    leaf_log, half_log = noise.logs
    again = old.numbers.status > 0
    here = old.here
    momentum = fresh_momentum(inverse_mass, noise.momentum)
    fresh = here._replace(momentum=momentum, log_energy=here.log_density - noise.kinetic)
    zero = jnp.zeros_like(fresh.log_energy)
    began = Numbers(
        zero, zero - jnp.inf, ahead, zero, fresh.log_energy, zero, zero, zero, zero
    )  # fmt: skip
    n = Numbers(*jnp.where(again, jnp.stack(began), old.packed))
    column = fresh.column
    start = jnp.where(again, column, old.moving)
    other = jnp.where(again, column, old.other)

    # A leapfrog step.
    position, before, force, _, _ = _place(start, size)
    step = (n.direction * step_size).astype(kind)
    half = before + 0.5 * step * force
    position = position + step * velocity(inverse_mass, half)
    density, force = gradient(position)
    momentum = half + 0.5 * step * force
    speed = velocity(inverse_mass, momentum)

    # The subtrees that start, or are complete or half complete, with this leaf.
    length = 1 << n.depth.astype(int)
    leaf = n.num_steps.astype(int) + 1 - length
    sizes, whole, own = _rows(max_depth)
    starts = (leaf & (sizes - 1)) == 0
    kinds = jnp.where(whole, jnp.where(again, _BEGINS, _WHOLE), jnp.where(starts, own, _GROWS))
    complete = ((leaf + 1) & (sizes - 1)) == 0
    crossed = (leaf & (sizes - 1)) == sizes >> 1
    second = ((leaf + 1) & (2 * sizes - 1)) == 0  # a second half, with the leaf before it
    checked = jnp.where(own == _STARTS, (complete | crossed) & (sizes > 1), second) & ~whole
    # What is computed once, here and below: XLA would compute it anew for every element.
    kinds = jax.lax.optimization_barrier(kinds)[:, None]
    two, end = (velocity(inverse_mass, p) for p in (before, _place(other, size).momentum))
    first = jnp.where(
        kinds == _GROWS,
        old.first,
        jnp.where(kinds == _STARTS, speed, jnp.where(kinds == _STARTS_BEFORE, two, end)),
    )
    grown = (kinds == _GROWS) | (kinds == _WHOLE)
    sums = momentum + jnp.where(grown, old.sums, jnp.where(kinds == _STARTS, 0.0, before))
    # A metric is symmetric: the velocities of the ends stand for that of the sum.
    at_end = _dots(sums, speed)
    turns = (_dots(first, sums) <= 0) | (at_end <= 0)
    turning = jnp.any(turns & checked, 0)
    crossing = jnp.where(leaf == 0, turns[-1], n.crossing > 0)

    # The smallest subtree is the leaf alone.
    energy = density - 0.5 * at_end[0]
    new = Place(position, momentum, force, density, energy).column

    # The choice among the leaves of the new half, and between the halves.
    # A leaf whose energy is no finite number is no place to go to, a density of +inf neither.
    log_ratio = jnp.where(jnp.isfinite(energy), energy - n.log_energy, -jnp.inf)
    diverging = log_ratio < -MAX_ENERGY_ERROR
    new_log_weight = jnp.logaddexp(n.new_log_weight, log_ratio)
    total = jnp.logaddexp(n.log_weight, new_log_weight)
    invalid = turning | diverging
    full = leaf + 1 == length
    done = full & ~invalid
    depth = n.depth + done
    turned = turns[-1] | turns[2 * max_depth - 1] | crossing
    finished = invalid | (full & (turned | (depth == max_depth)))
    direction = jnp.where(full, after, n.direction)
    flags = [
        leaf_log < log_ratio - new_log_weight,  # the new leaf is the candidate
        done & (half_log < new_log_weight - n.log_weight),  # which is chosen
        full & (direction != n.direction),  # the next half grows from the other end
        full,
    ]
    word = sum((flag.astype(jnp.int32) << k for k, flag in enumerate(flags)), 0)
    word = jax.lax.optimization_barrier(word)
    take_leaf, take, swap, full = ((word >> k) & 1 == 1 for k in range(len(flags)))
    candidate = jnp.where(take_leaf, new, old.candidate)
    return Trajectory(
        moving=jnp.where(swap, other, new),
        other=jnp.where(swap, new, other),
        chosen=jnp.where(take, candidate, old.chosen),
        candidate=candidate,
        first=first,
        sums=sums,
        packed=jnp.stack(
            Numbers(
                log_weight=jnp.where(done, total, n.log_weight),
                new_log_weight=jnp.where(full, -jnp.inf, new_log_weight),
                direction=direction,
                depth=depth.astype(kind),
                log_energy=n.log_energy,
                crossing=crossing.astype(kind),
                acceptance=n.acceptance + jnp.exp(jnp.minimum(log_ratio, 0.0)),
                num_steps=n.num_steps + 1,
                status=(finished.astype(kind) + diverging),
            )
        ),
    )


def _dots(rows: Any, others: Any) -> Any:
    """Multiply row by row: long ones as matrices, else added up one number after the other."""
    if rows.shape[1] <= 32:
        return jnp.sum(rows * others, 1)
    return jnp.einsum("rs,rs->r" if others.ndim > 1 else "rs,s->r", rows, others)


#: What becomes of a subtree at a leaf: it starts with it, or with the leaf before, or grows; the
#: whole begins with the first leaf before, or goes on.
_STARTS, _STARTS_BEFORE, _GROWS, _BEGINS, _WHOLE = range(5)


def _rows(max_depth: int) -> tuple[Any, Any, Any]:
    """Describe the rows of subtrees: sizes, which one is the whole, and with what they start."""
    levels = [2**k for k in range(max_depth)]
    sizes = jnp.asarray([*levels, *levels, 1], int)
    row = jnp.arange(2 * max_depth + 1)
    return sizes, row == 2 * max_depth, jnp.where(row < max_depth, _STARTS, _STARTS_BEFORE)
