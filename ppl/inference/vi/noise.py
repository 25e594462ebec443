"""Reparameterisation: noise without parameters, and the map from it to a distribution's draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from numpyro.distributions import Distribution

from ppl import distributions as dist
from ppl.distributions import is_discrete
from ppl.inference.vi.pathwise import implicit_draw, is_implicit
from ppl.semantics.reparam import transformed


class Noise(NamedTuple):
    """A distribution without parameters, and what makes draws of another of its draws."""

    base: Distribution
    forward: Callable[[Distribution, Any], Any]


_LOCATION_SCALE = ("Normal", "Laplace", "Cauchy", "Logistic", "Gumbel")
_STANDARD: dict[str, tuple[Callable[[], Distribution], Callable[[Any, Any], Any]]] = {
    name: (getattr(dist, name), lambda d, x: d.loc + d.scale * x) for name in _LOCATION_SCALE
} | {
    "HalfNormal": (dist.HalfNormal, lambda d, x: d.scale * x),
    "HalfCauchy": (dist.HalfCauchy, lambda d, x: d.scale * x),
    "Exponential": (dist.Exponential, lambda d, x: x / d.rate),
    "Uniform": (dist.Uniform, lambda d, x: d.low + (d.high - d.low) * x),
}


def noise_of(d: Distribution) -> Noise | None:
    """Give the noise of a distribution; None where the draw is no smooth function of noise."""
    if is_discrete(d):
        return None
    core = _core(d)
    name = type(core).__name__
    shape = (*d.batch_shape, *d.event_shape)
    if name in _STANDARD:
        make, move = _STANDARD[name]
        return Noise(_wide(make(), shape), lambda d, x: move(_core(d), x))
    if isinstance(core, dist.MultivariateNormal):
        return Noise(_wide(dist.Normal(), shape), _correlated)
    if isinstance(core, dist.TransformedDistribution):
        inner = noise_of(transformed(d)[0])
        return None if inner is None else Noise(inner.base, _through(inner))
    if set(core.arg_constraints) <= set(core.reparametrized_params):
        return Noise(dist.Seed(), _sampled)
    return None


def implicit_noise_of(d: Distribution) -> Noise | None:
    """Give the noise of a distribution whose draws are differentiated implicitly."""
    core = _core(d)
    if is_discrete(d):
        return None
    if is_implicit(core):
        return Noise(dist.Seed(), lambda d, seed: implicit_draw(d, _core(d), dist.Seed.key(seed)))
    if type(core).__name__ in ("Gamma", "Beta", "Dirichlet", "StudentT", "InverseGamma", "Chi2"):
        return Noise(dist.Seed(), _sampled)
    return None


def _core(d: Distribution) -> Any:
    while type(d).__name__ in ("ExpandedDistribution", "Independent"):
        d = d.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    return d


def _wide(d: Distribution, shape: tuple[int, ...]) -> Distribution:
    return d.expand(shape) if shape else d


def _correlated(d: Distribution, x: Any) -> Any:
    core = _core(d)
    return core.loc + jnp.einsum("...ij,...j->...i", core.scale_tril, x)


def _through(inner: Noise) -> Callable[[Distribution, Any], Any]:
    def forward(d: Distribution, x: Any) -> Any:
        base, transforms = transformed(d)
        value = inner.forward(base, x)
        for transform in transforms:
            value = transform(value)
        return value

    return forward


def _sampled(d: Distribution, seed: Any) -> Any:
    return d.sample(dist.Seed.key(seed))
