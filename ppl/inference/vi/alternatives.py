"""The other values of a site that an estimator looks at, and what each counts in the derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ppl import distributions as dist
from ppl.distributions import constraints, describe, support_of
from ppl.errors import UnsupportedError, at, message
from ppl.finite import apart, bare, finite_values
from ppl.primitives import Site


class Alternatives(NamedTuple):
    """Values of shape (k, *element, *event), and coefficients of shape (k, *element).

    The coefficients are zero; their derivatives, times the costs at the values, add up to an
    unbiased estimate of the derivative of the expected cost.
    """

    values: Any
    coefficients: Any


class Forking(NamedTuple):
    """What else an estimator draws at a site, and the alternatives given that and the value."""

    extra: Callable[[Distribution], Distribution] | None
    of: Callable[[Distribution, Any, Any], Alternatives]


# --- Enumeration --------------------------------------------------------------------------------


def supported(site: Site, d: Distribution) -> Any:
    """List the values of one element of a site, of shape (value, *event)."""
    where = {"operation": "ppl.vi.enum", "address": site.address, "source": site.source}
    domain, d = site.domain, apart(d)
    bounds = () if domain is None else domain.bounds
    if domain is not None and bounds and all(isinstance(b, np.ndarray) for b in bounds):
        # Its ends are known, although the distribution's parameters are traced.
        support = jax.tree.unflatten(domain.tree, bounds)
        while isinstance(support, type(constraints.independent(constraints.real, 1))):
            support = support.base_constraint
        d = dist.ImproperUniform(support, (), d.event_shape)
    return finite_values(d, **where)


def spread(d: Distribution, support: Any) -> Any:
    """Give every element of a distribution all the values: shape (value, *element, *event)."""
    shape = apart(d).batch_shape
    support = jnp.asarray(support)
    event = support.shape[1:]
    one = support.reshape(support.shape[0], *(1,) * len(shape), *event)
    return jnp.broadcast_to(one, (support.shape[0], *shape, *event))


def probabilities(d: Distribution, values: Any) -> Any:
    """Give the probability of one value of each element, differentiable where it is zero too."""
    d = apart(d)
    core: Any = bare(d)
    # A site in several branches, and elements that differ, are listed with the values of all.
    inside, support = None, support_of(d)
    if hasattr(support, "feasible_like"):
        inside = support(values)
        flag = inside.reshape(inside.shape + (1,) * (jnp.ndim(values) - inside.ndim))
        values = jnp.where(flag, values, support.feasible_like(values))
    if isinstance(core, dist.BernoulliProbs | dist.BernoulliLogits):
        p = _success(core)
        found = jnp.where(values == 1, p, 1 - p)
    elif isinstance(core, dist.CategoricalProbs | dist.CategoricalLogits):
        p = jnp.asarray(core.probs)
        p = p / jnp.sum(p, -1, keepdims=True)
        p = jnp.broadcast_to(p, (*jnp.shape(values), p.shape[-1]))
        found = jnp.take_along_axis(p, values[..., None], -1)[..., 0]
    else:
        found = jnp.exp(d.log_prob(values))
    if inside is not None:
        found = jnp.where(inside, found, 0.0)
    return jnp.broadcast_to(found, (*jnp.shape(values)[: jnp.ndim(values) - d.event_dim],))


def enumerating(site: Site) -> Forking:
    """Look at every value, which counts the derivative of its probability."""

    def of(d: Distribution, value: Any, extra: Any) -> Alternatives:
        values = spread(d, supported(site, d))
        return Alternatives(values, jax.vmap(lambda v: _rise(probabilities(d, v)))(values))

    return Forking(None, of)


# --- Measure-valued derivatives -----------------------------------------------------------------


def measure_valued(site: Site, d: Distribution) -> Forking:
    """Look at draws of the positive and negative parts of the derivative of the distribution."""
    kind = type(bare(d)).__name__
    if kind in ("CategoricalProbs", "CategoricalLogits"):
        return enumerating(site)
    if kind not in _PARTS:
        raise UnsupportedError(
            message(
                f"ppl.vi.mvd got {describe(d)} at {at(site.address, site.source)}",
                needs="a Bernoulli, categorical, Poisson, geometric, exponential or normal "
                "distribution",
                why="the parts of the derivative of a density are particular to it",
                fix=f'ppl.sample("{site.address}", ..., grad=ppl.vi.reinforce())',
            )
        )
    extra, parts = _PARTS[kind]

    def of(d: Distribution, value: Any, extra: Any) -> Alternatives:
        pairs = parts(bare(d), value, extra)
        shape = apart(d).batch_shape
        values, coefficients = [], []
        for rise, size, plus, minus in pairs:
            change = jax.lax.stop_gradient(size) * _rise(rise)
            values += [plus, minus]
            coefficients += [change, -change]
        stack = lambda xs: jnp.stack([jnp.broadcast_to(x, shape) for x in xs])  # noqa: E731
        return Alternatives(jax.lax.stop_gradient(stack(values)), stack(coefficients))

    return Forking(extra, of)


def _success(core: Any) -> Any:
    if isinstance(core, dist.BernoulliLogits):
        return jax.nn.sigmoid(core.logits)
    return core.probs


def _bernoulli(core: Any, value: Any, extra: Any) -> Any:
    return [(_success(core), 1.0, jnp.ones_like(value), jnp.zeros_like(value))]


def _poisson(core: Any, value: Any, extra: Any) -> Any:
    return [(core.rate, 1.0, value + 1, value)]


def _geometric(core: Any, value: Any, extra: Any) -> Any:
    # (1 - p)^k p has the derivative ((1 - p)^k p - k (1 - p)^(k - 1) p^2) / p; the second density
    # is that of one more than the sum of two draws.
    p = core.probs if isinstance(core, dist.GeometricProbs) else jax.nn.sigmoid(core.logits)
    return [(p, 1 / p, value, value + extra + 1)]


def _exponential(core: Any, value: Any, extra: Any) -> Any:
    return [(core.rate, 1 / core.rate, value, value + extra)]


def _normal(core: Any, value: Any, extra: Any) -> Any:
    key = dist.Seed.key(extra)
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    one, two, three = jax.random.split(key, 3)
    step = core.scale * jnp.sqrt(2 * jax.random.exponential(one, shape, dtype))  # Rayleigh
    n = jax.random.normal(two, (3, *shape), dtype)
    wide = core.scale * jnp.sign(n[0]) * jnp.sqrt(jnp.sum(n**2, 0))  # double-sided Maxwell
    u = jax.random.uniform(three, shape, dtype)  # Maxwell times uniform is normal
    return [
        (core.loc, 1 / (core.scale * math.sqrt(2 * math.pi)), core.loc + step, core.loc - step),
        (core.scale, 1 / core.scale, core.loc + wide, core.loc + wide * u),
    ]


def _itself(d: Distribution) -> Distribution:
    return d


def _seed(d: Distribution) -> Distribution:
    return dist.Seed()


_PARTS: dict[str, tuple[Any, Any]] = {
    "BernoulliProbs": (None, _bernoulli),
    "BernoulliLogits": (None, _bernoulli),
    "Poisson": (None, _poisson),
    "GeometricProbs": (_itself, _geometric),
    "GeometricLogits": (_itself, _geometric),
    "Exponential": (_itself, _exponential),
    "Normal": (_seed, _normal),
}


# --- A number that is zero, and has a derivative once -------------------------------------------


@jax.custom_jvp
def _rise(x: Any) -> Any:
    """Give zero, with the derivative of `x`."""
    return _constant(0.0, x)


@_rise.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dot,) = primals, tangents
    return _constant(0.0, x), _once(x) * dot


@jax.custom_jvp
def _once(x: Any) -> Any:
    return _constant(1.0, x)


def _constant(number: float, x: Any) -> Any:
    # It has to depend on `x`: JAX 0.10 cannot differentiate a staged `vmap` of a custom derivative
    # whose result is not mapped.
    return jnp.where(x == x, number, x)


@_once.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise UnsupportedError(
        message(
            "ppl.vi.expectation was differentiated twice through a site with ppl.vi.mvd(), or with "
            "ppl.vi.enum() and too many values to list together",
            needs="first derivatives there",
            why="the alternatives were chosen for the first derivative",
            fix="ppl.vi.reinforce() at that site, which gives any order",
        )
    )
