"""The benchmarks' models: in `ppl`, in NumPyro, and as densities written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
from numpyro.contrib.control_flow import scan as numpyro_scan

import ppl
import ppl.distributions as dist


class Case(NamedTuple):
    """One density, written in each way; the functions take the data."""

    ours: Callable[..., Any]
    numpyro: Callable[..., Any]
    hand: dict[str, Callable[..., Any]]
    choices: dict[str, Any]
    data: tuple[Any, ...]


def _normal(x: Any, mean: Any, scale: Any) -> Any:
    return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


# --- Eight schools ------------------------------------------------------------------------------


def eight_schools(sigma, y):
    """Non-centred, Rubin (1981)."""
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("school", 8):
        raw = ppl.sample("raw", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)


def eight_schools_numpyro(sigma, y):
    """Write the same in NumPyro."""
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        raw = numpyro.sample("raw", ndist.Normal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(mu + tau * raw, sigma), obs=y)


def eight_schools_hand(c, sigma, y):
    """Write the same by hand."""
    prior = _normal(c["mu"], 0.0, 5.0)
    prior += math.log(2 / (math.pi * 5.0)) - jnp.log1p((c["tau"] / 5.0) ** 2)
    schools = _normal(c["raw"], 0.0, 1.0) + _normal(y, c["mu"] + c["tau"] * c["raw"], sigma)
    return prior + jnp.sum(schools)


# --- Logistic regression ------------------------------------------------------------------------


def logistic(x, y):
    """Logistic regression with an intercept."""
    alpha = ppl.sample("alpha", dist.Normal(0.0, 2.5))
    with ppl.plate("feature", x.shape[1]):
        beta = ppl.sample("beta", dist.Normal(0.0, 1.0))
    with ppl.plate("n", x.shape[0]):
        ppl.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def logistic_numpyro(x, y):
    """Write the same in NumPyro."""
    alpha = numpyro.sample("alpha", ndist.Normal(0.0, 2.5))
    with numpyro.plate("feature", x.shape[1]):
        beta = numpyro.sample("beta", ndist.Normal(0.0, 1.0))
    with numpyro.plate("n", x.shape[0]):
        numpyro.sample("y", ndist.Bernoulli(logits=alpha + x @ beta), obs=y)


def logistic_hand(c, x, y):
    """Write the same by hand."""
    prior = _normal(c["alpha"], 0.0, 2.5) + jnp.sum(_normal(c["beta"], 0.0, 1.0))
    logits = c["alpha"] + x @ c["beta"]
    return prior + jnp.sum(y * logits - jax.nn.softplus(logits))


# --- Stochastic volatility ----------------------------------------------------------------------


def volatility(y):
    """Stochastic volatility with an autoregressive log variance."""
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    phi = ppl.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
    h0 = ppl.sample("h0", dist.Normal(mu, 1.0))

    def step(h, y):
        h = ppl.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        ppl.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    jax.lax.scan(step, h0, y)


def volatility_numpyro(y):
    """Write the same in NumPyro."""
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    phi = numpyro.sample("phi", ndist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", ndist.HalfNormal(1.0))
    h0 = numpyro.sample("h0", ndist.Normal(mu, 1.0))

    def step(h, y):
        h = numpyro.sample("h", ndist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("y", ndist.Normal(0.0, jnp.exp(h / 2)), obs=y)
        return h, None

    numpyro_scan(step, h0, y)


def _volatility_prior(c):
    half_normal = _normal(c["sigma"], 0.0, 1.0) + math.log(2.0)
    return _normal(c["mu"], 0.0, 5.0) - math.log(2.0) + half_normal + _normal(c["h0"], c["mu"], 1.0)


def _volatility_step(c, old, h, y):
    move = _normal(h, c["mu"] + c["phi"] * (old - c["mu"]), c["sigma"])
    return move + _normal(y, 0.0, jnp.exp(h / 2))


def volatility_hand(c, y):
    """Write the same by hand, as the loop that the model is."""

    def step(state, x):
        (old, total), (h, y) = state, x
        return (h, total + _volatility_step(c, old, h, y)), None

    init = (c["h0"], _volatility_prior(c))
    return jax.lax.scan(step, init, (c["h"], y))[0][1]


def volatility_vectorised(c, y):
    """Write the same by hand, using that all states are given."""
    old = jnp.concatenate([c["h0"][None], c["h"][:-1]])
    return _volatility_prior(c) + jnp.sum(_volatility_step(c, old, c["h"], y))


def cases(fast: bool) -> dict[str, Case]:
    """Give the densities to compare."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def regression(n: int, d: int) -> Case:
        x = normal(n, d)
        y = jnp.asarray(rng.random(n) < 0.5, jnp.int32)
        choices = {"alpha": normal(), "beta": normal(d)}
        hand = {"by hand": logistic_hand}
        return Case(logistic, logistic_numpyro, hand, choices, (x, y))

    sigma = jnp.asarray([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effects = jnp.asarray([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    schools = Case(
        eight_schools,
        eight_schools_numpyro,
        {"by hand": eight_schools_hand},
        {"mu": normal(), "tau": jnp.float32(2.0), "raw": normal(8)},
        (sigma, effects),
    )
    volatile = Case(
        volatility,
        volatility_numpyro,
        {"by hand, scan": volatility_hand, "by hand, vectorised": volatility_vectorised},
        {
            "mu": normal(),
            "phi": jnp.float32(0.9),
            "sigma": jnp.float32(0.3),
            "h0": normal(),
            "h": normal(1000),
        },
        (normal(1000),),
    )
    large = (10_000, 50) if fast else (100_000, 50)
    return {
        "eight schools": schools,
        "logistic 1000 x 20": regression(1000, 20),
        f"logistic {large[0]} x {large[1]}": regression(*large),
        "volatility 1000": volatile,
    }
