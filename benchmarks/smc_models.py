"""State-space models for `benchmarks.smc`: data from NumPy, programs, and the exact evidence.

Both start from an unobserved state; each step of a `scan` moves it and observes. The last state is
returned. Every number of a model is an array argument: new ones of the same shape compile nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist


class Volatility(NamedTuple):
    """x_t ~ N(mu + rho (x_{t-1} - mu), sigma), y_t ~ N(0, exp(x_t / 2)); x_0 ~ N(mu, start)."""

    y: Any
    mu: Any
    rho: Any
    sigma: Any
    start: Any


class Tracking(NamedTuple):
    """Constant velocity in the plane: x_t holds position and velocity, and positions are observed.

    x_t ~ N(transition x_{t-1}, noise noise'), y_t ~ N(position, error); x_0 ~ N(0, start).
    """

    y: Any
    transition: Any
    noise: Any
    error: Any
    start: Any


def _arrays(model: Any) -> Any:
    return type(model)(*(jnp.asarray(x, jnp.result_type(float)) for x in model))


def volatility_data(length: int, seed: int = 0) -> Volatility:
    """Simulate stochastic volatility that starts in its stationary law."""
    rng = np.random.default_rng(seed)
    mu, rho, sigma = -1.0, 0.95, 0.3
    start = sigma / math.sqrt(1 - rho**2)
    x, y = mu + start * rng.standard_normal(), np.empty(length)
    for t in range(length):
        x = mu + rho * (x - mu) + sigma * rng.standard_normal()
        y[t] = math.exp(x / 2) * rng.standard_normal()
    return _arrays(Volatility(y, mu, rho, sigma, start))


def tracking_data(length: int, seed: int = 0) -> Tracking:
    """Simulate a target that accelerates at random, with time steps of one."""
    rng = np.random.default_rng(seed)
    transition = np.eye(4) + np.eye(4, k=2)
    # White acceleration gives position and velocity the covariance [[1/3, 1/2], [1/2, 1]] a step.
    root = np.linalg.cholesky(np.array([[1 / 3, 1 / 2], [1 / 2, 1.0]]))
    noise, error, start = 0.1 * np.kron(root, np.eye(2)), 0.5, np.array([1.0, 1.0, 0.3, 0.3])
    x, y = start * rng.standard_normal(4), np.empty((length, 2))
    for t in range(length):
        x = transition @ x + noise @ rng.standard_normal(4)
        y[t] = x[:2] + error * rng.standard_normal(2)
    return _arrays(Tracking(y, transition, noise, error, start))


def tracking_log_evidence(m: Tracking) -> float:
    """Give the log evidence by the Kalman filter, in double precision."""
    y, transition, noise, error, start = (np.asarray(x, np.float64) for x in m)
    mean, cov, total = np.zeros(4), np.diag(start**2), 0.0
    for row in y:
        mean, cov = transition @ mean, transition @ cov @ transition.T + noise @ noise.T
        gap, spread = row - mean[:2], cov[:2, :2] + error**2 * np.eye(2)
        solved = np.linalg.solve(spread, np.column_stack([gap, cov[:2]]))
        total -= 0.5 * (gap @ solved[:, 0] + np.linalg.slogdet(2 * math.pi * spread)[1])
        mean, cov = mean + cov[:, :2] @ solved[:, 0], cov - cov[:, :2] @ solved[:, 1:]
    return float(total)


# --- In this language ---------------------------------------------------------------------------


@ppl.model
def volatility(m: Volatility) -> Any:
    """Stochastic volatility."""
    x0 = ppl.sample("x0", dist.Normal(m.mu, m.start))

    def step(x: Any, y: Any) -> Any:
        x = ppl.sample("x", dist.Normal(m.mu + m.rho * (x - m.mu), m.sigma))
        ppl.sample("y", dist.Normal(0.0, jnp.exp(x / 2)), obs=y)
        return x, None

    return jax.lax.scan(step, x0, m.y)[0]


@ppl.model
def tracking(m: Tracking) -> Any:
    """Constant-velocity tracking."""
    x0 = ppl.sample("x0", dist.Normal(jnp.zeros(4), m.start).to_event(1))

    def step(x: Any, y: Any) -> Any:
        law = dist.MultivariateNormal(m.transition @ x, scale_tril=m.noise)
        x = ppl.sample("x", law)
        ppl.sample("y", dist.Normal(x[:2], m.error).to_event(1), obs=y)
        return x, None

    return jax.lax.scan(step, x0, m.y)[0]
