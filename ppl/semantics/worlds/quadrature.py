"""Nodes and weights that replace a continuous site in an exact enumeration.

The rule is tanh-sinh (Takahasi & Mori 1974) on the probability scale: with x = F^-1(u) the
integral of f over the site's distribution is that of f(F^-1(u)) over (0, 1), whatever the location,
scale and tails of the distribution. Its error falls like exp(-c n / log n) for smooth f.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, biject_to

from ppl.distributions import describe, support_of
from ppl.errors import UnsupportedError, at, message
from ppl.finite import bare
from ppl.primitives import Site

_BISECTIONS = 200


def tanh_sinh(count: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give nodes in (0, 1), weights, and the weights of the rule with every other node."""
    # As far out as 1 - u can be told from 1.
    reach = float(np.arcsinh(-np.log(np.finfo(dtype).eps) / np.pi))
    t = np.linspace(-reach, reach, count)
    step = 2 * reach / (count - 1)
    u = 1 / (1 + np.exp(-np.pi * np.sinh(t)))
    weights = step * np.pi * np.cosh(t) * u * (1 - u)
    coarse = np.where(np.arange(count) % 2 == 0, 2 * weights, 0.0)
    return u, weights, coarse


def nodes(d: Distribution, count: int, site: Site) -> tuple[Any, Any, Any]:
    """Give a site's nodes of shape (count, *batch), and log weights of shape (count,).

    Raises:
        UnsupportedError: the distribution has an event axis, or neither `icdf` nor `cdf`.
    """
    if d.event_shape:
        _refuse(d, site, "a distribution of independent numbers", "its values have an event axis")
    dtype = jnp.result_type(site.dtype, jnp.float32)
    u, fine, coarse = tanh_sinh(count, dtype)
    points = jnp.asarray(u, dtype).reshape(-1, *[1] * len(d.batch_shape))
    points = jnp.broadcast_to(points, (count, *d.batch_shape))
    with np.errstate(divide="ignore"):
        logs = jnp.asarray(np.log(fine), dtype), jnp.asarray(np.log(coarse), dtype)
    return jnp.asarray(_quantile(d, points, site), site.dtype), *logs


def _quantile(d: Distribution, u: Any, site: Site) -> Any:
    """Invert the distribution function."""
    inner: Any = bare(d)
    try:
        return jnp.broadcast_to(inner.icdf(u), u.shape)
    except (NotImplementedError, AttributeError, ImportError):
        pass  # some are only there with another package
    try:
        inner.cdf(jnp.zeros(()))
    except (NotImplementedError, AttributeError):
        _refuse(d, site, "a distribution with icdf or cdf", "nodes are quantiles")
    to_support = biject_to(support_of(inner))

    def value(v: Any) -> Any:  # sinh: as far as heavy tails go
        return to_support(jnp.sinh(v))

    def halve(_: Any, bounds: Any) -> Any:
        low, high = bounds
        middle = (low + high) / 2
        below = inner.cdf(value(middle)) < u
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # The bijection of a half line may be exp, which must not overflow.
    edge = jnp.full(u.shape, 40.0 if "real" in type(support_of(inner)).__name__.lower() else 6.0)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-edge, edge))
    return value((low + high) / 2)


def _refuse(d: Distribution, site: Site, needs: str, why: str) -> None:
    raise UnsupportedError(
        message(
            f"enumerate(quadrature=) got {describe(d)} at {at(site.address, site.source)}",
            needs=needs,
            why=why,
            fix="leave the address out of quadrature and use ppl.importance, or write the site "
            "as a transformation of Normal or Uniform sites",
        )
    )
