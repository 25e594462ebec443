"""Hamiltonian dynamics: points of phase space, and the leapfrog step between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ppl._types import Array, Scalar


class Phase(NamedTuple):
    """A point of phase space, with the log density of its position and the gradient."""

    position: Float[Array, " size"]
    momentum: Float[Array, " size"]
    log_density: Scalar
    gradient: Float[Array, " size"]


def phase(log_density: Callable[[Any], Any], position: Any, momentum: Any) -> Phase:
    """Give the point of phase space at a position and a momentum."""
    return Phase(position, momentum, *jax.value_and_grad(log_density)(position))


def leapfrog(
    log_density: Callable[[Any], Any], state: Phase, step_size: Any, inverse_mass: Any
) -> Phase:
    """Make one leapfrog step: half a kick, a drift, half a kick.

    **Meaning.** A map of phase space that preserves volume, and is its own inverse when the
    momentum is negated before and after; so it needs no Jacobian in an acceptance ratio.

    Args:
        log_density: of the position.
        state: where to start.
        step_size: a number, negative for a step back.
        inverse_mass: a number, one for each coordinate, or a matrix.
    """
    # In the type of the position, whatever that of the settings: a loop carries it.
    kind = state.position.dtype
    step_size, inverse_mass = jnp.asarray(step_size, kind), jnp.asarray(inverse_mass, kind)
    half = state.momentum + 0.5 * step_size * state.gradient
    there = phase(log_density, state.position + step_size * velocity(inverse_mass, half), half)
    return there._replace(momentum=half + 0.5 * step_size * there.gradient)


def velocity(inverse_mass: Any, momentum: Any) -> Any:
    """Give the velocity of a momentum."""
    return inverse_mass @ momentum if jnp.ndim(inverse_mass) == 2 else inverse_mass * momentum


def momentum(inverse_mass: Any, noise: Any) -> Any:
    """Give standard normal noise the covariance of the mass: the momentum of a move."""
    if jnp.ndim(inverse_mass) < 2:
        return noise / jnp.sqrt(inverse_mass)
    root = jnp.linalg.cholesky(inverse_mass)  # W = L L', so that L'^-1 noise has covariance W^-1
    return jax.scipy.linalg.solve_triangular(root, noise, trans="T", lower=True)


def log_energy(state: Phase, inverse_mass: Any) -> Any:
    """Give minus the energy: the log density of position and momentum."""
    kinetic = 0.5 * jnp.sum(state.momentum * velocity(inverse_mass, state.momentum))
    return state.log_density - kinetic
