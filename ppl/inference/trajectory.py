"""The trajectory of the No-U-Turn sampler, grown by one leapfrog step at a time.

A trajectory doubles: half of it is there, the other half grows leaf by leaf from one of its ends. A
subtree of the new half that makes a U-turn ends the trajectory. Which subtrees start and end at a
leaf the binary digits of its number tell, and of a subtree that is growing no more is kept than the
momentum at its start and the sum of those since: so a trajectory is a state of fixed size, and
`grow` one step of a flat loop.

Everything works for one chain and for many: axes of chains stand last. Few arrays are few
operations of the compiled loop, each of which costs as much as a small model's density: hence the
phases in one array, the numbers in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference.warmup import kinetic, velocity

#: A leaf whose energy is off by more than this is called divergent, as in Stan.
MAX_ENERGY_ERROR = 1000.0

#: From a position to its log density and the gradient of that.
Gradient = Callable[[Any], tuple[Any, Any]]


class Numbers(NamedTuple):
    """The numbers of a trajectory.

    Log weights add up the densities of leaves, relative to the start: of the old half, and of the
    new. `crossing` is set where the old half with the first leaf of the new makes a U-turn.
    """

    log_weight: Any
    new_log_weight: Any
    direction: Any
    depth: Any
    leaf: Any
    log_energy: Any
    crossing: Any
    acceptance: Any
    num_steps: Any
    log_density: Any
    chosen_energy: Any
    candidate_density: Any
    candidate_energy: Any
    finished: Any
    diverging: Any


class Trajectory(NamedTuple):
    """A trajectory, of which a new half is growing.

    Phases are position, momentum and gradient; `chosen`, drawn from the old half, and `candidate`,
    drawn from the new one, are position and gradient. `first` and `sums` belong to subtrees: by
    depth, those that are growing; by depth, the same with the leaf before; and the whole.
    """

    moving: Float[Array, "3 size ..."]
    other: Float[Array, "3 size ..."]
    chosen: Float[Array, "2 size ..."]
    candidate: Float[Array, "2 size ..."]
    first: Float[Array, "size subtrees ..."]
    sums: Float[Array, "size subtrees ..."]
    numbers: Float[Array, "number ..."]


def begin(
    position: Any,
    gradient: Any,
    log_density: Any,
    momentum: Any,
    inverse_mass: Any,
    max_depth: int,
    coin: Any,
) -> Trajectory:
    """Begin a trajectory at a position, with a fresh momentum.

    Args:
        position: where.
        gradient: there.
        log_density: there.
        momentum: normal, of the covariance of the mass.
        inverse_mass: the metric.
        max_depth: how often the trajectory may double.
        coin: uniform, for the first direction.
    """
    phase = jnp.stack([position, momentum, gradient])
    place = jnp.stack([position, gradient])
    whole = _rows(max_depth, momentum.ndim - 1)[1]
    sums = jnp.where(whole, momentum[:, None], 0.0)
    numbers = _fresh(log_density, log_density - kinetic(inverse_mass, momentum), coin)
    return Trajectory(phase, phase, place, place, sums, sums, jnp.stack(numbers))


def _fresh(log_density: Any, energy: Any, coin: Any) -> Numbers:
    zero = jnp.zeros_like(log_density)
    return Numbers(
        zero, zero - jnp.inf, _direction(coin, zero.dtype), zero, zero, energy, zero, zero, zero,
        log_density, energy, log_density, energy, zero, zero,
    )  # fmt: skip


def grow(
    gradient: Gradient,
    old: Trajectory,
    step_size: Any,
    inverse_mass: Any,
    coins: Float[Array, "3 ..."],
) -> Trajectory:
    """Grow a trajectory by one leaf.

    **Meaning.** Grown until finished, from a state with a normal momentum, `chosen` is the state of
    a Markov chain that leaves the density invariant: the trajectory is as likely to be built from
    each of its states, of which the choice is a draw that prefers the new half.

    Args:
        gradient: of the log density.
        old: the trajectory, not finished.
        step_size: positive.
        inverse_mass: the metric.
        coins: three independent uniform draws.

    Returns:
        The trajectory; its numbers say whether it is finished.

    Source: Hoffman and Gelman (2014); Betancourt (2017), appendix A.4, for the weights; the U-turn
    criterion is Stan's, with the checks across the middle of each subtree (version 2.21), made as
    soon as the middle is crossed.
    """
    n = Numbers(*old.numbers)
    position, momentum, force = old.moving
    kind = position.dtype
    max_depth = old.sums.shape[1] // 2
    step = (n.direction * step_size).astype(kind)

    half = momentum + 0.5 * step * force
    position = position + step * velocity(inverse_mass, half)
    density, force = gradient(position)
    before, momentum = momentum, half + 0.5 * step * force
    energy = density - kinetic(inverse_mass, momentum)

    # The subtrees that start, or are complete or half complete, with this leaf.
    leaf = n.leaf.astype(int)
    sizes, whole, own = _rows(max_depth, leaf.ndim)
    starts = ((leaf & (sizes - 1)) == 0) & ~whole
    first = jnp.where(starts, jnp.where(own, momentum[:, None], before[:, None]), old.first)
    sums = jnp.where(starts, jnp.where(own, 0.0, before[:, None]), old.sums) + momentum[:, None]
    speed = velocity(inverse_mass, sums)
    turns = (jnp.sum(first * speed, 0) <= 0) | (jnp.sum(momentum[:, None] * speed, 0) <= 0)
    complete = ((leaf + 1) & (sizes - 1)) == 0
    crossed = (leaf & (sizes - 1)) == sizes >> 1
    second = ((leaf + 1) & (2 * sizes - 1)) == 0  # a second half, with the leaf before it
    checked = jnp.where(own, (complete | crossed) & (sizes > 1), second) & ~whole
    turning = jnp.any(turns & checked, 0)
    crossing = jnp.where(leaf == 0, turns[-1], n.crossing > 0)

    # The choice among the leaves of the new half, and between the halves.
    log_ratio = jnp.where(jnp.isnan(energy), -jnp.inf, energy - n.log_energy)
    diverging = log_ratio < -MAX_ENERGY_ERROR
    new_log_weight = jnp.logaddexp(n.new_log_weight, log_ratio)
    coin, leaf_coin, half_coin = coins
    take_leaf = jnp.log(leaf_coin) < log_ratio - new_log_weight
    invalid = turning | diverging
    full = (leaf + 1) == (1 << n.depth.astype(int))
    done = full & ~invalid
    take = done & (jnp.log(half_coin) < new_log_weight - n.log_weight)
    depth = n.depth + done
    turned = turns[-1] | turns[2 * max_depth - 1] | crossing
    finished = invalid | (full & (turned | (depth == max_depth)))
    direction = jnp.where(full, _direction(coin, kind), n.direction)

    candidate_density = jnp.where(take_leaf, density, n.candidate_density)
    candidate_energy = jnp.where(take_leaf, energy, n.candidate_energy)
    total = jnp.logaddexp(n.log_weight, new_log_weight)
    numbers = Numbers(
        log_weight=jnp.where(done, total, n.log_weight),
        new_log_weight=jnp.where(full, -jnp.inf, new_log_weight),
        direction=direction,
        depth=depth,
        leaf=jnp.where(full, 0.0, n.leaf + 1),
        log_energy=n.log_energy,
        crossing=crossing,
        acceptance=n.acceptance + jnp.exp(jnp.minimum(log_ratio, 0.0)),
        num_steps=n.num_steps + 1,
        log_density=jnp.where(take, candidate_density, n.log_density),
        chosen_energy=jnp.where(take, candidate_energy, n.chosen_energy),
        candidate_density=candidate_density,
        candidate_energy=candidate_energy,
        finished=finished,
        diverging=diverging,
    )
    swap = direction != n.direction
    # Computed once: XLA would decide anew for every array.
    packed, (take_leaf, take, swap, full) = jax.lax.optimization_barrier(
        (jnp.stack([x.astype(kind) for x in numbers]), (take_leaf, take, swap, full))
    )
    new = jnp.stack([position, momentum, force])
    candidate = jnp.where(take_leaf, new[::2], old.candidate)
    other = jnp.where(swap, new, old.other)
    return Trajectory(
        moving=jnp.where(swap, old.other, new),
        other=other,
        chosen=jnp.where(take, candidate, old.chosen),
        candidate=candidate,
        first=jnp.where(whole & full, other[1][:, None], first),
        sums=sums,
        numbers=packed,
    )


def _rows(max_depth: int, chains: int) -> tuple[Any, Any, Any]:
    """Describe the rows of subtrees: sizes, which one is the whole, which lack the leaf before."""
    levels = [2**k for k in range(max_depth)]
    sizes = jnp.asarray([*levels, *levels, 1], int).reshape(-1, *[1] * chains)
    row = jnp.arange(2 * max_depth + 1).reshape(-1, *[1] * chains)
    return sizes, row == 2 * max_depth, row < max_depth


def _direction(coin: Any, kind: Any) -> Any:
    return jnp.where(coin < 0.5, -1.0, 1.0).astype(kind)
