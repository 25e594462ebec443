"""Implicit reparameterisation: draws that move along the distribution function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ppl import distributions as dist

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def is_implicit(core: Any) -> bool:
    """Tell whether the distribution function of a scalar distribution is known.

    Args:
        core: a distribution without expansion.
    """
    if isinstance(core, dist.VonMises):
        return True
    own = getattr(type(core), "cdf", None)
    return not core.event_dim and own not in (None, Distribution.cdf) and not _by_sampler(core)


def _by_sampler(core: Any) -> bool:
    """Tell where JAX's sampler has the better derivative: that of its `cdf` is not implemented."""
    return type(core).__name__ in ("Gamma", "Beta", "StudentT", "InverseGamma", "Chi2")


def implicit_draw(d: Distribution, core: Any, key: Any) -> Any:
    """Draw from `d`; the derivative in its parameters is the implicit one, to any order.

    Args:
        d: the distribution.
        core: the same without expansion.
        key: PRNG key.
    """
    value = jax.lax.stop_gradient(d.sample(key))
    return _moved(core, value)


@jax.custom_jvp
def _moved(core: Any, value: Any) -> Any:
    return value


@_moved.defjvp
def _(primals: Any, tangents: Any) -> Any:
    core, value = primals
    here = _moved(core, value)
    # The derivative of the distribution function at a fixed place.
    _, rise = jax.jvp(lambda c: _below(c, here), (core,), (tangents[0],))
    return here, -rise / jnp.exp(core.log_prob(here)) + tangents[1]


def _below(core: Any, value: Any) -> Any:
    """Give the distribution function."""
    if not isinstance(core, dist.VonMises):
        return core.cdf(value)
    # From the point opposite the mode, wherever that is: probability is lost on one side as it is
    # gained on the other.
    low = jnp.asarray(core.loc) - jnp.pi
    angle = low + jnp.mod(value - low, 2 * jnp.pi)
    half = 0.5 * (angle - low)
    points = low + half * (1 + _NODES.reshape(-1, *(1,) * jnp.ndim(angle)))
    weights = _WEIGHTS.reshape(-1, *(1,) * jnp.ndim(angle))
    density = jnp.exp(core.log_prob(points))
    return half * jnp.sum(weights * density, axis=0)
