"""Metrics of Hamiltonian chains: inverse masses, diagonal or with a part of low rank; energies.

Everything works for one chain and for many: axes of chains stand last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: A trajectory whose energy is off by more than this is called divergent, as in Stan.
MAX_ENERGY_ERROR = 1000.0
#: By how many units in the last place a density may be off; and where chains come from far, as
#: recursions that explode there are off by more.
ROUNDING, ROUNDING_FAR = 4.0, 256.0


class LowRank(NamedTuple):
    """The metric D^1/2 (I + U (S - I) U') D^1/2: variances, but for some directions.

    `variance` is the diagonal of D, `directions` are the orthonormal columns of U, in coordinates
    that D has scaled, and `stretch` is the diagonal of S.
    """

    variance: Float[Array, "size ..."]
    directions: Float[Array, "size rank ..."]
    stretch: Float[Array, "rank ..."]

    def power(self, exponent: float, x: Any) -> Any:
        """Apply a power of I + U (S - I) U'."""
        spec = "dr...,dk...->rk..." if x.ndim >= self.directions.ndim else "dr...,d...->r..."
        along = jnp.einsum(spec, self.directions, x)
        factor = self.stretch**exponent - 1
        along = along * (factor[:, None] if along.ndim > factor.ndim else factor)
        spec = "dr...,rk...->dk..." if x.ndim >= self.directions.ndim else "dr...,r...->d..."
        return x + jnp.einsum(spec, self.directions, along)


Metric = Array | LowRank


def velocity(inverse_mass: Metric, momentum: Any) -> Any:
    """Give the velocity of a momentum, or of one for each row of a second axis."""
    if isinstance(inverse_mass, LowRank):
        root = jnp.sqrt(inverse_mass.variance)
        return velocity(root, inverse_mass.power(1.0, velocity(root, momentum)))
    wide = momentum.ndim > inverse_mass.ndim
    return (inverse_mass[:, None] if wide else inverse_mass) * momentum


def momentum(inverse_mass: Metric, noise: Any) -> Any:
    """Give standard normal noise the covariance of the mass."""
    if isinstance(inverse_mass, LowRank):
        return velocity(jax.lax.rsqrt(inverse_mass.variance), inverse_mass.power(-0.5, noise))
    return noise * jax.lax.rsqrt(inverse_mass)


def kinetic(inverse_mass: Any, momentum: Any) -> Any:
    """Give the kinetic energy."""
    return 0.5 * jnp.sum(momentum * velocity(inverse_mass, momentum), 0)


def beyond_rounding(log_ratio: Any, log_density: Any, units: Any = ROUNDING) -> Any:
    """Give by how much an energy is off, without what rounding alone may make of it.

    Chains that start far away, at a density of -1e12 say, would else learn that ever smaller steps
    are as bad as the last.

    Args:
        log_ratio: the change of the energy, as computed.
        log_density: of what size the numbers were.
        units: how many of them, in the last place, count for nothing.
    """
    least = units * jnp.finfo(log_ratio.dtype).eps * jnp.abs(log_density)
    return log_ratio - jnp.clip(log_ratio, -least, least)
