"""Hamiltonian moves of chains in lock-step: as many leapfrog steps for all, an end for each.

Everything works for one chain and for many: axes of chains stand last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference.metric import MAX_ENERGY_ERROR, kinetic, velocity
from ppl.inference.metric import momentum as fresh_momentum

#: A move's length is uniform between this part of the trajectory length and two less this.
SHORTEST = 0.5


class Place(NamedTuple):
    """Where chains stand."""

    position: Float[Array, "size ..."]
    gradient: Float[Array, "size ..."]
    log_density: Any


class Move(NamedTuple):
    """A trajectory from end to end; `log_ratio` is -inf if it diverges."""

    begin: Place
    end: Place
    momentum: Float[Array, "size ..."]
    log_energies: tuple[Any, Any]
    log_ratio: Any

    @property
    def rate(self) -> Any:
        """The probability of acceptance."""
        return jnp.exp(jnp.minimum(self.log_ratio, 0.0))


def follow(
    gradient: Callable[[Any], Any], begin: Place, noise: Any, step_size: Any, mass: Any, num: Any
) -> Move:
    """Follow the dynamics for some leapfrog steps, of one chain or of chains on the last axis."""
    kind = begin.position.dtype
    step_size = jnp.asarray(step_size, kind)
    mass = jnp.asarray(mass, kind).reshape(-1, *[1] * (begin.position.ndim - 1))
    momentum = fresh_momentum(mass, noise)
    log_energy = begin.log_density - kinetic(mass, momentum)

    def leap(_: Any, state: tuple[Place, Any]) -> tuple[Place, Any]:
        place, momentum = state
        position = place.position + step_size * velocity(mass, momentum)
        density, force = gradient(position)
        return Place(position, force, density), momentum + step_size * force

    # Whole kicks between drifts are two halves, so that one half is too much at the end.
    first = momentum + 0.5 * step_size * begin.gradient
    end, momentum = jax.lax.fori_loop(0, num, leap, (begin, first))
    momentum = momentum - 0.5 * step_size * end.gradient
    new = end.log_density - kinetic(mass, momentum)
    ratio = new - log_energy
    fine = jnp.isfinite(new) & (ratio >= -MAX_ENERGY_ERROR)
    return Move(begin, end, momentum, (log_energy, new), jnp.where(fine, ratio, -jnp.inf))


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
