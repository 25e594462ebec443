"""Moves of chains in lock-step: as many leapfrog steps for all, an end for each.

Everything works for one chain and for many: axes of chains stand last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference.metric import (
    MAX_ENERGY_ERROR,
    beyond_rounding,
    kinetic,
    momentum,
    velocity,
)

#: A move's length is uniform between this part of the trajectory length and two less this.
SHORTEST = 0.5


class Place(NamedTuple):
    """Where chains stand."""

    position: Float[Array, "size ..."]
    gradient: Float[Array, "size ..."]
    log_density: Any


class Motion(NamedTuple):
    """A momentum or a direction; and the energy that kicks have given to the latter."""

    vector: Float[Array, "size ..."]
    gained: Any


class Dynamics(NamedTuple):
    """What a trajectory follows: positions drift by a velocity, which forces change by kicks.

    Both are flows that can be run back and of known volumes. The first argument is the diagonal of
    the inverse mass, in whose scale the speed is about the root of the dimension.

    Attributes:
        begin: from standard normal numbers to a motion.
        kicked: from a motion, a force and a time to the motion after it.
        velocity: of a motion.
        kinetic: the energy of a motion: what its log density lacks, and the logarithm of the volume
            that kicks have taken from it.
    """

    begin: Callable[[Any, Any], Any]
    kicked: Callable[[Any, Any, Any, Any], Any]
    velocity: Callable[[Any, Any], Any]
    kinetic: Callable[[Any, Any], Any]


#: Hamilton's: a motion is a normal momentum, and kicks preserve volume.
HAMILTONIAN = Dynamics(
    begin=lambda mass, noise: Motion(momentum(mass, noise), jnp.zeros_like(noise[0])),
    kicked=lambda _, p, force, time: p._replace(vector=p.vector + time * force),
    velocity=lambda mass, p: velocity(mass, p.vector),
    kinetic=lambda mass, p: kinetic(mass, p.vector),
)


def either(flag: Any, one: Dynamics, other: Dynamics) -> Dynamics:
    """Give one dynamics if a flag of all chains is set, and else the other."""

    def chosen(one: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: jax.lax.cond(flag, one, other, *args)

    return Dynamics(*map(chosen, one, other))


class Move(NamedTuple):
    """A trajectory from end to end.

    `log_ratio` is -inf if it diverges; `rate` is the probability of acceptance, were it not for
    rounding.
    """

    begin: Place
    end: Place
    velocity: Float[Array, "size ..."]
    log_energies: tuple[Any, Any]
    log_ratio: Any
    rate: Any


def follow(
    gradient: Callable[[Any], Any],
    begin: Place,
    noise: Any,
    step_size: Any,
    mass: Any,
    num: Any,
    dynamics: Dynamics = HAMILTONIAN,
    slack: Any = 0.0,
) -> Move:
    """Follow the dynamics for some leapfrog steps, of one chain or of chains on the last axis.

    Args:
        gradient: from positions to log densities and their gradients.
        begin: where from.
        noise: standard normal numbers.
        step_size: of a leapfrog step.
        mass: the diagonal of the inverse mass.
        num: how many steps.
        dynamics: which.
        slack: the part of a gain of log density that errors of the energy are forgiven: more than
            none leaves nothing invariant, and brings chains from far.
    """
    kind = begin.position.dtype
    step_size = jnp.asarray(step_size, kind)
    mass = jnp.asarray(mass, kind).reshape(-1, *[1] * (begin.position.ndim - 1))
    motion = dynamics.begin(mass, noise)
    log_energy = begin.log_density - dynamics.kinetic(mass, motion)

    def leap(i: Any, state: tuple[Place, Any]) -> tuple[Place, Any]:
        place, motion = state
        position = place.position + step_size * dynamics.velocity(mass, motion)
        density, force = gradient(position)
        # Whole kicks between drifts are two halves; the last drift has only one after it.
        time = jnp.where(i + 1 < num, step_size, 0.5 * step_size)
        return Place(position, force, density), dynamics.kicked(mass, motion, force, time)

    first = dynamics.kicked(mass, motion, begin.gradient, 0.5 * step_size)
    end, motion = jax.lax.fori_loop(0, num, leap, (begin, first))
    new = end.log_density - dynamics.kinetic(mass, motion)
    gain = jnp.maximum(end.log_density - begin.log_density, 0.0)
    ratio = new - log_energy + slack * gain
    error = beyond_rounding(ratio, begin.log_density)
    fine = jnp.isfinite(new) & (error >= -MAX_ENERGY_ERROR)
    ratio = jnp.where(fine, ratio, -jnp.inf)
    rate = jnp.where(fine, jnp.exp(jnp.minimum(error, 0.0)), 0.0)
    return Move(begin, end, dynamics.velocity(mass, motion), (log_energy, new), ratio, rate)


def lengths(index: Any) -> Any:
    """Give the place in (0, 1) of a move's length: multiples of the golden ratio, modulo one.

    Any few in a row are spread evenly, and they depend on the number of the move alone.
    """
    turns = (jnp.asarray(index).astype(jnp.uint32) + 1) * jnp.uint32(2654435769)  # 2^32 / golden
    return (turns >> 8).astype(jnp.result_type(float)) * 2.0**-24


def num_steps(trajectory_length: Any, step_size: Any, place: Any, most: Any) -> Any:
    """Give the leapfrog steps of a move, at least one."""
    length = trajectory_length * (SHORTEST + (2 - 2 * SHORTEST) * place)
    return jnp.clip(jnp.ceil(length / step_size), 1, most).astype(int)
