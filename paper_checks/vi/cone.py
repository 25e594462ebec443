"""The cone: x^2 + y^2 is seen with noise, and five bounds on the evidence of what was seen."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.integrate import quad
from scipy.special import logsumexp

import ppl
import ppl.distributions as dist

SEEN, WIDTH = 5.0, 10.0
NAIVE, RING = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0)


@ppl.model
def cone(z: Any) -> None:
    x = ppl.sample("x", dist.Normal(0.0, WIDTH))
    y = ppl.sample("y", dist.Normal(0.0, WIDTH))
    square = x**2 + y**2
    ppl.sample("z", dist.Normal(square, 0.1 + square / 100), obs=z)


@ppl.model
def naive(params: Any) -> None:
    """Two normal draws: one place on the circle."""
    ppl.sample("x", dist.Normal(params[0], jnp.exp(params[2])))
    ppl.sample("y", dist.Normal(params[1], jnp.exp(params[3])))


@ppl.model
def ring(z: Any, params: Any) -> None:
    """An angle, which the model has not, and a normal draw about that place on the circle."""
    angle, radius = 2 * jnp.pi * ppl.sample("u", dist.Uniform(0.0, 1.0)), jnp.sqrt(z)
    ppl.sample("x", dist.Normal(radius * jnp.cos(angle), jnp.exp(params[0])))
    ppl.sample("y", dist.Normal(radius * jnp.sin(angle), jnp.exp(params[1])))


@ppl.model
def any_angle() -> None:
    ppl.sample("u", dist.Uniform(0.0, 1.0))


class Sizes(NamedTuple):
    """Weights under the logarithm; auxiliaries under each weight, or none for the naive guide."""

    particles: int
    auxiliaries: int | None

    def __str__(self) -> str:
        more = "" if self.auxiliaries is None else f" of {self.auxiliaries} auxiliaries"
        return f"{self.particles} particles{more}".replace("1 particles", "1 particle").replace(
            "1 auxiliaries", "1 auxiliary"
        )


class Row(NamedTuple):
    """A bound, how it was trained, what came out elsewhere, and other sizes as a mistake."""

    name: str
    sizes: Sizes
    start: tuple[float, ...]
    steps: int
    batch: int
    published: float | None
    others: dict[str, float]
    mistake: Sizes


#: `others`: the authors' artifact run again, and NumPyro.
ROWS = [
    Row(
        "ELBO",
        Sizes(1, None),
        NAIVE,
        5000,
        64,
        -8.08,
        {"artifact": -8.076, "NumPyro": -8.08},
        Sizes(5, None),
    ),
    Row("IWELBO(5)", Sizes(5, None), (3.0, 0.0, 1.0, 1.0), 5000, 64, None, {}, Sizes(1, None)),
    Row(
        "IWELBO(5), as in the authors' code",
        Sizes(5, None),
        (3.0, 0.0, 1.0, 1.0),
        20_000,
        1,
        -7.79,
        {"artifact": -7.674, "NumPyro": -7.77},
        Sizes(1, None),
    ),
    Row("HVI", Sizes(1, 1), RING, 5000, 64, -9.75, {"artifact": -9.751}, Sizes(1, 5)),
    Row("IWHVI(5)", Sizes(1, 5), RING, 5000, 64, -8.18, {"artifact": -8.183}, Sizes(1, 1)),
    Row("DIWHVI(5, 5)", Sizes(5, 5), RING, 5000, 64, -7.33, {"artifact": -7.298}, Sizes(1, 5)),
]


def log_evidence(width: float = WIDTH) -> float:
    """Integrate over the square of the radius, whose prior is exponential with mean 2 width^2."""
    mean = 2 * width**2

    def density(square: float) -> float:
        scale = 0.1 + square / 100
        noise = math.exp(-0.5 * ((SEEN - square) / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
        return noise * math.exp(-square / mean) / mean

    parts = ((0, 4), (4, 5), (5, 6), (6, 10), (10, 1000))  # far away the noise is wide, but weak
    return math.log(sum(quad(density, *ends, epsabs=1e-13)[0] for ends in parts))


def bound(sizes: Sizes, params: Any) -> ppl.Program:
    """Write the bound."""
    z = jnp.asarray(SEEN, jnp.result_type(float))
    program, guide = cone(z), naive(params)
    if sizes.auxiliaries is not None:
        program, guide = ppl.vi.marginal(
            program, ring(z, params), lambda _: any_angle(), num_particles=sizes.auxiliaries
        )
    if sizes.particles == 1:
        return ppl.vi.elbo(program, guide)
    return ppl.vi.iwelbo(program, guide, num_particles=sizes.particles)


def train(row: Row, seeds: int, optimizer: optax.GradientTransformation | None = None) -> jax.Array:
    """Climb the bound from each of some seeds; plain gradient ascent unless told otherwise."""
    way = optax.sgd(1e-3) if optimizer is None else optimizer
    start = jnp.asarray(row.start, jnp.result_type(float))

    def loss(params: Any, key: Any) -> Any:
        estimate = ppl.vi.expectation(bound(row.sizes, params), num_samples=row.batch)
        return -ppl.run(estimate, key)

    def step(carry: Any, key: Any) -> Any:
        params, memory = carry
        updates, memory = way.update(jax.grad(loss)(params, key), memory, params)
        return (optax.apply_updates(params, updates), memory), None

    def whole(key: Any) -> Any:
        keys = jax.random.split(key, row.steps)
        return jax.lax.scan(step, (start, way.init(start)), keys)[0][0]

    return jax.jit(jax.vmap(whole))(jax.random.split(jax.random.key(2024), seeds))


def evaluate(sizes: Sizes, params: Any, samples: int) -> np.ndarray:
    """Draw a bound's estimates at each of some parameters: shape (seed, sample)."""
    return np.asarray(_evaluated(sizes, samples)(params), np.float64)


@functools.cache
def _evaluated(sizes: Sizes, samples: int) -> Callable[[Any], Any]:
    @jax.jit
    def all_of(params: Any) -> Any:
        keys = jax.random.split(jax.random.key(7), (len(params), samples))

        def at(given: Any) -> Any:
            one, keys = given
            return jax.vmap(lambda key: ppl.run(bound(sizes, one), key))(keys)

        return jax.lax.map(at, (params, keys))

    return all_of


def by_hand(sizes: Sizes, params: Any, samples: int) -> np.ndarray:
    """Draw a bound's estimates in NumPy."""
    rng = np.random.default_rng(2024)
    shape = (samples, sizes.particles)
    params = np.asarray(params, np.float64)
    scale = np.exp(params[-2:])
    if sizes.auxiliaries is None:
        centres = np.broadcast_to(params[:2], (*shape, 1, 2))
    else:
        angle = 2 * np.pi * rng.random((*shape, sizes.auxiliaries))
        centres = math.sqrt(SEEN) * np.stack([np.cos(angle), np.sin(angle)], -1)
    point = centres[:, :, 0] + scale * rng.standard_normal((*shape, 2))  # the first is its own
    guide = _log_normal(point[:, :, None], centres, scale).sum(-1)
    square = (point**2).sum(-1)
    joint = _log_normal(point, 0.0, WIDTH).sum(-1)
    joint = joint + _log_normal(SEEN, square, 0.1 + square / 100)
    marginal = logsumexp(guide, -1) - math.log(guide.shape[-1])
    return logsumexp(joint - marginal, -1) - math.log(sizes.particles)


def _log_normal(x: Any, loc: Any, scale: Any) -> Any:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
