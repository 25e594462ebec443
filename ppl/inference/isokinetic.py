"""Microcanonical dynamics: trajectories of constant speed, which forces turn.

With u the direction, of length 1, and f the force in the scale of the metric, both of dimension d,

    dx/dt = sqrt(d) u,    du/dt = sqrt(d) / (d - 1) (f - (f . u) u).

Kicks turn the direction towards the force by the exact solution, which contracts volume: the
logarithm of that is the energy they give. Time has the unit of Hamilton's dynamics, as the speed is
that of a normal momentum.

Source: Robnik, De Luca, Silverstein and Seljak (2023), Microcanonical Hamiltonian Monte Carlo;
Robnik, Cohn-Gordon and Seljak (2025), Metropolis adjusted microcanonical Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from ppl.inference.lockstep import Dynamics, Motion


def _begin(_: Any, noise: Any) -> Motion:
    norm = jnp.sqrt(jnp.sum(noise**2, 0))
    return Motion(noise / norm, jnp.zeros_like(norm))


def _kicked(mass: Any, motion: Motion, force: Any, time: Any) -> Motion:
    """Turn towards the force.

    With e the force's direction, a = e . u and s = time sqrt(d) |f| / (d - 1), the new direction is
    that of u + (sinh s + a (cosh s - 1)) e, and (d - 1) log(cosh s + a sinh s) is gained. Written
    with exp(-s), so that nothing overflows.
    """
    size = force.shape[0]
    force = jnp.sqrt(mass) * force
    norm = jnp.sqrt(jnp.sum(force**2, 0))
    toward = force / jnp.maximum(norm, jnp.finfo(force.dtype).tiny)
    angle = time * (math.sqrt(size) / (size - 1)) * norm
    # A direction that rounding makes opposite to the force would never turn.
    least = -1 + jnp.finfo(force.dtype).eps
    along = jnp.clip(jnp.sum(toward * motion.vector, 0), least, 1.0)
    rest = jnp.exp(-angle)
    share = (1 - rest) * ((1 + along) + rest * (1 - along))
    turned = share * toward + 2 * rest * motion.vector
    gained = angle + jnp.log1p(0.5 * (1 - along) * jnp.expm1(-2 * angle))
    direction = turned / jnp.sqrt(jnp.sum(turned**2, 0))
    return Motion(direction, motion.gained + (size - 1) * gained)


def _velocity(mass: Any, motion: Motion) -> Any:
    return math.sqrt(motion.vector.shape[0]) * jnp.sqrt(mass) * motion.vector


#: Needs at least two coordinates: in one there is nothing to turn.
MICROCANONICAL = Dynamics(_begin, _kicked, _velocity, lambda _, motion: motion.gained)
