"""A variational autoencoder: value and gradient of the ELBO, with `ppl` and in plain JAX."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from benchmarks.timing import Comparison, alternate

#: The sizes of the authors' benchmark, on random pixels instead of digits.
LATENT, HIDDEN, PIXELS = 10, 200, 784

Value = Callable[[Any, Any, Any], Any]


def networks(pixels: int = PIXELS, hidden: int = HIDDEN) -> dict[str, Any]:
    """Draw the starting values of decoder and encoder."""
    rng, kind = np.random.default_rng(1), jnp.result_type(float)

    def layers(*sizes: int) -> list[Any]:
        pairs = itertools.pairwise(sizes)
        weights = [rng.standard_normal(pair) / math.sqrt(pair[0]) for pair in pairs]
        return [(jnp.asarray(w, kind), jnp.zeros(w.shape[1], kind)) for w in weights]

    return {
        "decoder": layers(LATENT, hidden, pixels),
        "encoder": layers(pixels, hidden, 2 * LATENT),
    }


def images(batch: int, pixels: int = PIXELS) -> Any:
    """Draw binary pixels."""
    return jnp.asarray(np.random.default_rng(0).random((batch, pixels)) < 0.3, int)


def apply(layers: Any, x: Any) -> Any:
    (first, shift), (second, last) = layers
    return jax.nn.leaky_relu(x @ first + shift) @ second + last


def encoded(layers: Any, x: Any) -> tuple[Any, Any]:
    loc, raw = jnp.split(apply(layers, x.astype(jnp.result_type(float))), 2, axis=-1)
    return loc, jax.nn.softplus(raw)


@ppl.model
def decoder(layers: Any, x: Any) -> None:
    with ppl.plate("row", x.shape[0]):
        z = ppl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=apply(layers, z)).to_event(1)
        ppl.sample("x", pixels, obs=x)


@ppl.model
def encoder(layers: Any, x: Any) -> None:
    loc, scale = encoded(layers, x)
    with ppl.plate("row", x.shape[0]):
        ppl.sample("z", dist.Normal(loc, scale).to_event(1))


def ours(params: Any, key: Any, x: Any) -> Any:
    """Estimate the ELBO with `ppl`."""
    bound = ppl.vi.elbo(decoder(params["decoder"], x), encoder(params["encoder"], x))
    return ppl.run(ppl.vi.expectation(bound), key)


def by_hand(params: Any, key: Any, x: Any, entropy: float = 1.0) -> Any:
    """Estimate the ELBO in plain JAX, with one exponential a pixel: what a careful hand writes."""
    loc, scale = encoded(params["encoder"], x)
    z = loc + scale * jax.random.normal(key, loc.shape)
    logits = apply(params["decoder"], z)
    softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    likelihood = jnp.sum(x * logits - softplus)
    return likelihood + _log_normal(z, 0.0, 1.0) - entropy * _log_normal(z, loc, scale)


def without_entropy(params: Any, key: Any, x: Any) -> Any:
    """Forget the guide's density."""
    return by_hand(params, key, x, 0.0)


def _log_normal(x: Any, loc: Any, scale: Any) -> Any:
    z = (x - loc) / scale
    return jnp.sum(-0.5 * z**2 - jnp.log(scale) * jnp.ones_like(z) - 0.5 * math.log(2 * math.pi))


def scores(other: Value, draws: int = 400) -> np.ndarray:
    """Compare means of value and gradient (in three directions) with ours, in standard errors."""
    params, x = networks(12, 8), images(6, 12)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    ways = [tree.unflatten([rng.standard_normal(a.shape) for a in leaves]) for _ in range(3)]

    def readings(value: Value, seed: int) -> np.ndarray:
        def one(key: Any) -> Any:
            found, gradient = jax.value_and_grad(value)(params, key, x)
            along = [
                sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(w))) for w in ways
            ]
            return jnp.stack([found, *along])

        keys = jax.random.split(jax.random.key(seed), draws)
        return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)

    a, b = readings(ours, 1), readings(other, 2)
    error = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / draws)
    return (a.mean(0) - b.mean(0)) / error


def race(batch: int, rounds: int) -> Comparison:
    """Time value and gradient, ours and by hand, by turns."""
    given = networks(), jax.random.key(0), images(batch)
    sides = [jax.jit(jax.value_and_grad(value)) for value in (ours, by_hand)]
    return alternate(*(lambda side=side: side(*given) for side in sides), rounds=rounds)
