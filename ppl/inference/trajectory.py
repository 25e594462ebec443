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

from ppl.inference.metric import MAX_ENERGY_ERROR, ROUNDING, beyond_rounding, velocity
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
    leaves of the new one. `sums` are sums of momenta: over the old half, and over the new one.
    `starts` tells of the leaves with which open subtrees start: the velocities there and at the
    leaf before, and the sums over the new half up to, without, each of them.
    """

    moving: Float[Array, " place"]
    other: Float[Array, " place"]
    chosen: Float[Array, " place"]
    candidate: Float[Array, " place"]
    sums: Float[Array, "2 size"]
    starts: Float[Array, "open 4 size"]
    packed: Float[Array, " numbers"]

    @property
    def numbers(self) -> Numbers:
        """The numbers."""
        return Numbers(*jnp.moveaxis(self.packed, -1, 0))

    @property
    def here(self) -> Place:
        """What was drawn from the trajectory."""
        return _place(self.chosen, self.sums.shape[1])


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
    sums = jnp.zeros((2, len(position)), position.dtype)
    starts = jnp.zeros((max_depth + 1, 4, len(position)), position.dtype)
    numbers = jnp.stack(Numbers(*[zero] * 8, status=zero + 1))
    return Trajectory(place, place, place, place, sums, starts, numbers)


def grow(
    gradient: Gradient,
    old: Trajectory,
    step_size: Any,
    inverse_mass: Any,
    noise: Noise,
    units: Any = ROUNDING,
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
        units: how many of them, in the last place of the energy, are no error of it.

    Source: Hoffman and Gelman (2014); Betancourt (2017), appendix A.4, for the weights; the U-turn
    criterion is Stan's, with the checks across the middle of each subtree (version 2.21), made as
    soon as the middle is crossed.
    """
    size, max_depth = old.sums.shape[1], len(old.starts) - 1
    kind = old.sums.dtype
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
    moving = jnp.where(again, column, old.moving)
    other = jnp.where(again, column, old.other)

    # A leapfrog step.
    position, before, force, _, _ = _place(moving, size)
    step = (n.direction * step_size).astype(kind)
    half = before + 0.5 * step * force
    position = position + step * velocity(inverse_mass, half)
    density, force = gradient(position)
    momentum = half + 0.5 * step * force
    speed = velocity(inverse_mass, momentum)

    # The U-turns of subtrees that are complete, or half complete, with this leaf.
    length = 1 << n.depth.astype(int)
    leaf = n.num_steps.astype(int) + 1 - length
    full, first = leaf + 1 == length, leaf == 0
    kinetic = jnp.dot(momentum, speed)
    old_sum = jnp.where(again, before, old.sums[0])
    sofar = jnp.where(first, 0.0, old.sums[1])
    sums = sofar + momentum
    start = jnp.stack([speed, velocity(inverse_mass, before), sofar, sofar - before])
    turning = _turning(old.starts, leaf, sums, speed)
    half = jnp.where(first, start, old.starts[0])

    def whole() -> Any:
        end = velocity(inverse_mass, _place(other, size).momentum)
        return _turns(end, speed, old_sum + sums), _turns(half[1], speed, sums - half[3])

    turned, half_turned = jax.lax.cond(first | full, whole, lambda: (first, first))
    crossing = jnp.where(first, turned, n.crossing > 0)

    energy = density - 0.5 * kinetic
    new = Place(position, momentum, force, density, energy).column

    # The choice among the leaves of the new half, and between the halves.
    # A leaf whose energy is no finite number is no place to go to, a density of +inf neither.
    log_ratio = jnp.where(jnp.isfinite(energy), energy - n.log_energy, -jnp.inf)
    error = beyond_rounding(log_ratio, n.log_energy, units)
    diverging = error < -MAX_ENERGY_ERROR
    new_log_weight = jnp.logaddexp(n.new_log_weight, log_ratio)
    total = jnp.logaddexp(n.log_weight, new_log_weight)
    invalid = turning | diverging
    done = full & ~invalid
    depth = n.depth + done
    turned = turned | half_turned | crossing
    finished = invalid | (full & (turned | (depth == max_depth)))
    direction = jnp.where(full, after, n.direction)
    flags = [
        leaf_log < log_ratio - new_log_weight,  # the new leaf is the candidate
        done & (half_log < new_log_weight - n.log_weight),  # which is chosen
        full & (direction != n.direction),  # the next half grows from the other end
        full,
    ]
    # What is computed once: XLA would compute it anew for every element.
    word = sum((flag.astype(jnp.int32) << k for k, flag in enumerate(flags)), 0)
    word = jax.lax.optimization_barrier(word)
    take_leaf, take, swap, full = ((word >> k) & 1 == 1 for k in range(len(flags)))
    candidate = jnp.where(take_leaf, new, old.candidate)
    # What is noted once all is known, and read, XLA can write in place.
    starts = _noted(old.starts, start, leaf, ~finished)
    return Trajectory(
        moving=jnp.where(swap, other, new),
        other=jnp.where(swap, new, other),
        chosen=jnp.where(take, candidate, old.chosen),
        candidate=candidate,
        sums=jnp.stack([jnp.where(done, old_sum + sums, old_sum), sums]),
        starts=starts,
        packed=jnp.stack(
            Numbers(
                log_weight=jnp.where(done, total, n.log_weight),
                new_log_weight=jnp.where(full, -jnp.inf, new_log_weight),
                direction=direction,
                depth=depth.astype(kind),
                log_energy=n.log_energy,
                crossing=crossing.astype(kind),
                acceptance=n.acceptance + jnp.exp(jnp.minimum(error, 0.0)),
                num_steps=n.num_steps + 1,
                status=(finished.astype(kind) + diverging),
            )
        ),
    )


def _turns(start: Any, end: Any, momenta: Any) -> Any:
    """Tell whether a piece makes a U-turn, from velocities at its ends and the sum of momenta."""
    return (jnp.dot(start, momenta) <= 0) | (jnp.dot(end, momenta) <= 0)


# A subtree of 2 ** k leaves starts at a leaf whose number has k zeros at its end. Of the leaves
# with which open subtrees start, each has one binary one more than that before: this is its row.


def _turning(starts: Any, leaf: Any, sums: Any, speed: Any) -> Any:
    """Tell whether a subtree makes a U-turn that ends with a leaf, or of which it is the middle.

    Args:
        starts: what is known of the leaves with which subtrees start.
        leaf: its number in the new half.
        sums: of the momenta of the new half.
        speed: the velocity at the leaf.
    """
    ends = jax.lax.population_count(leaf & ~(leaf + 1))  # so many subtrees end with the leaf
    even = (leaf & 1 == 0).astype(ends.dtype)
    row = jax.lax.population_count(leaf >> 1) - even

    def look(state: Any) -> Any:
        k, _ = state
        start = jax.lax.dynamic_index_in_dim(starts, row - k, keepdims=False)
        at, before, past, past_before = start
        # The subtree, up to here. Unless it is the largest, it is a second half, which with the
        # leaf before it is another piece that must not turn.
        turning = _turns(at, speed, sums - past)
        return k + 1, turning | ((k + 1 < ends) & _turns(before, speed, sums - past_before))

    # An even leaf is the middle of one subtree; the first of none.
    count = jnp.where(leaf > 0, jnp.maximum(ends, even), 0)
    begin = jnp.zeros_like(count), count < 0
    return jax.lax.while_loop(lambda s: (s[0] < count) & ~s[1], look, begin)[1]


def _noted(starts: Any, start: Any, leaf: Any, needed: Any) -> Any:
    """Note a leaf, if it is one with which subtrees start; of the others the last row is kept."""
    row = jax.lax.population_count(leaf >> 1)
    row = jnp.where(needed & (leaf & 1 == 0), row, len(starts) - 1)
    return jax.lax.dynamic_update_index_in_dim(starts, start, row, 0)
