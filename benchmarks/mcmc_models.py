"""The posteriors of `benchmarks.mcmc`: data from NumPy, one text for two languages, and by hand.

`ppl` and NumPyro say `sample` and `plate` alike and share distributions, so each model is written
once, with the language as its first argument. By hand it is a log density over the unconstrained
coordinates, in the order of the model's draws and up to a constant: positive numbers are
exponentials, bounded ones are logistic functions, and the Jacobians are included. `check_density`
shows that this is `ppl.unconstrain(program).log_density`.

Hierarchies and volatility are not centred: that samples best for everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist


class Posterior(NamedTuple):
    """A model as text over a language and data, as a density over `size` reals and data."""

    model: Callable[..., Any]
    log_density: Callable[..., Any]
    simulate: Callable[[], tuple[Any, ...]]
    size: int

    def data(self) -> tuple[Any, ...]:
        """Give the data as JAX arrays of the default precision."""
        floats = jnp.result_type(float)
        arrays = (np.asarray(x) for x in self.simulate())
        return tuple(jnp.asarray(x, floats if x.dtype.kind == "f" else int) for x in arrays)

    def program(self) -> ppl.Program:
        """Make the model a program, of data that are arguments."""
        return ppl.model(lambda *data: self.model(ppl, *data))(*self.data())


def _normal(x: Any, mean: Any = 0.0, scale: Any = 1.0) -> Any:
    """Sum the log densities of elements that share one scale."""
    return -0.5 * jnp.sum(((x - mean) / scale) ** 2) - jnp.size(x) * jnp.log(scale)


def _half_normal(log_x: Any, scale: Any) -> Any:
    return _normal(jnp.exp(log_x), 0.0, scale) + log_x


# --- Eight schools (Rubin 1981) -----------------------------------------------------------------


def schools_data() -> tuple[Any, ...]:
    """Give the effects and their standard errors."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return effects, np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(ml: Any, y: Any, error: Any) -> None:
    """Effects of eight schools, not centred; 10 coordinates."""
    mu = ml.sample("mu", dist.Normal(0.0, 5.0))
    tau = ml.sample("tau", dist.HalfCauchy(5.0))
    with ml.plate("school", 8):
        z = ml.sample("z", dist.Normal(0.0, 1.0))
        ml.sample("y", dist.Normal(mu + tau * z, error), obs=y)


def schools_density(q: Any, y: Any, error: Any) -> Any:
    """Write the same by hand."""
    mu, log_tau, z = q[0], q[1], q[2:]
    tau = jnp.exp(log_tau)
    prior = _normal(mu, 0.0, 5.0) - jnp.log1p((tau / 5.0) ** 2) + log_tau + _normal(z)
    return prior - 0.5 * jnp.sum(((y - mu - tau * z) / error) ** 2)


# --- Logistic regression ------------------------------------------------------------------------


def logistic_data(rows: int = 1000, columns: int = 20) -> tuple[Any, ...]:
    """Simulate a standard normal design, and outcomes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, columns))
    logits = 0.5 + x @ rng.standard_normal(columns)
    return x, (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(int)


def logistic(ml: Any, x: Any, y: Any) -> None:
    """Logistic regression with an intercept; 21 coordinates."""
    alpha = ml.sample("alpha", dist.Normal(0.0, 2.5))
    with ml.plate("feature", x.shape[1]):
        beta = ml.sample("beta", dist.Normal(0.0, 1.0))
    with ml.plate("row", x.shape[0]):
        ml.sample("y", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def logistic_density(q: Any, x: Any, y: Any) -> Any:
    """Write the same by hand."""
    logits = q[0] + x @ q[1:]
    fit = jnp.sum(y * logits - jax.nn.softplus(logits))
    return _normal(q[0], 0.0, 2.5) + _normal(q[1:]) + fit


# --- A hierarchical regression ------------------------------------------------------------------

GROUPS = 100


def hierarchy_data(rows: int = 500) -> tuple[Any, ...]:
    """Simulate rows of 100 groups of different sizes, about five a group."""
    rng = np.random.default_rng(0)
    group, x = rng.integers(GROUPS, size=rows), rng.standard_normal(rows)
    alpha = 1.5 + 0.4 * rng.standard_normal(GROUPS)
    return group, x, alpha[group] - 0.7 * x + 0.8 * rng.standard_normal(rows)


def hierarchy(ml: Any, group: Any, x: Any, y: Any) -> None:
    """Intercepts that vary over 100 groups, not centred; 104 coordinates."""
    mu = ml.sample("mu", dist.Normal(0.0, 5.0))
    tau = ml.sample("tau", dist.HalfNormal(2.0))
    slope = ml.sample("slope", dist.Normal(0.0, 5.0))
    sigma = ml.sample("sigma", dist.HalfNormal(2.0))
    with ml.plate("group", GROUPS):
        z = ml.sample("z", dist.Normal(0.0, 1.0))
    with ml.plate("row", x.shape[0]):
        ml.sample("y", dist.Normal(mu + tau * z[group] + slope * x, sigma), obs=y)


def hierarchy_density(q: Any, group: Any, x: Any, y: Any) -> Any:
    """Write the same by hand."""
    mu, log_tau, slope, log_sigma, z = q[0], q[1], q[2], q[3], q[4:]
    prior = _normal(mu, 0.0, 5.0) + _half_normal(log_tau, 2.0) + _normal(slope, 0.0, 5.0)
    prior += _half_normal(log_sigma, 2.0) + _normal(z)
    return prior + _normal(y, mu + jnp.exp(log_tau) * z[group] + slope * x, jnp.exp(log_sigma))


# --- Stochastic volatility ----------------------------------------------------------------------


def volatility_data(length: int = 1000) -> tuple[Any, ...]:
    """Simulate returns whose log variance is a stationary autoregression."""
    rng = np.random.default_rng(0)
    mu, phi, sigma = -1.0, 0.95, 0.25
    h, y = mu + sigma / np.sqrt(1 - phi**2) * rng.standard_normal(), np.empty(length)
    for t in range(length):
        y[t] = np.exp(h / 2) * rng.standard_normal()
        h = mu + phi * (h - mu) + sigma * rng.standard_normal()
    return (y,)


def _log_variances(mu: Any, phi: Any, sigma: Any, z: Any) -> Any:
    def step(x: Any, z: Any) -> Any:
        x = phi * x + z
        return x, x

    start = z[0] / jnp.sqrt(1 - phi**2)  # the stationary law
    rest = jax.lax.scan(step, start, z[1:])[1]
    return mu + sigma * jnp.concatenate([start[None], rest])


def volatility(ml: Any, y: Any) -> None:
    """Stochastic volatility by standard normal shocks; 1003 coordinates."""
    mu = ml.sample("mu", dist.Normal(0.0, 5.0))
    phi = ml.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma = ml.sample("sigma", dist.HalfNormal(1.0))
    with ml.plate("time", y.shape[0]):
        z = ml.sample("z", dist.Normal(0.0, 1.0))
        h = _log_variances(mu, phi, sigma, z)
        ml.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=y)


def volatility_density(q: Any, y: Any) -> Any:
    """Write the same by hand."""
    mu, logit, log_sigma, z = q[0], q[1], q[2], q[3:]
    h = _log_variances(mu, jnp.tanh(logit / 2), jnp.exp(log_sigma), z)
    prior = _normal(mu, 0.0, 5.0) + jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit)
    fit = -0.5 * jnp.sum(h + y**2 * jnp.exp(-h))
    return prior + _half_normal(log_sigma, 1.0) + _normal(z) + fit


# --- A Gaussian process -------------------------------------------------------------------------


def process_data(size: int = 200) -> tuple[Any, ...]:
    """Simulate a noisy wave at random times."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0.0, 10.0, size))
    y = np.sin(x) + 0.5 * np.sin(2.5 * x) + 0.3 * rng.standard_normal(size)
    return x, y


def _covariance(x: Any, length: Any, scale: Any, noise: Any) -> Any:
    gap = (x[:, None] - x[None]) / length
    return scale**2 * jnp.exp(-0.5 * gap**2) + noise**2 * jnp.eye(x.shape[0])


def process(ml: Any, x: Any, y: Any) -> None:
    """Gaussian-process regression, the function summed out; 3 coordinates."""
    length = ml.sample("length", dist.LogNormal(0.0, 1.0))
    scale = ml.sample("scale", dist.HalfNormal(2.0))
    noise = ml.sample("noise", dist.HalfNormal(1.0))
    covariance = _covariance(x, length, scale, noise)
    ml.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)


def process_density(q: Any, x: Any, y: Any) -> Any:
    """Write the same by hand."""
    root = jnp.linalg.cholesky(_covariance(x, *jnp.exp(q)))
    white = jax.scipy.linalg.solve_triangular(root, y, lower=True)
    prior = _normal(q[0]) + _half_normal(q[1], 2.0) + _half_normal(q[2], 1.0)
    return prior + _normal(white) - jnp.sum(jnp.log(jnp.diag(root)))


POSTERIORS = {
    "eight schools": Posterior(schools, schools_density, schools_data, 10),
    "logistic 1000 x 20": Posterior(logistic, logistic_density, logistic_data, 21),
    "hierarchy of 100": Posterior(hierarchy, hierarchy_density, hierarchy_data, 104),
    "volatility 1000": Posterior(volatility, volatility_density, volatility_data, 1003),
    "process 200": Posterior(process, process_density, process_data, 3),
}


def points(size: int) -> np.ndarray:
    """Give three unconstrained points at which densities are compared."""
    return 0.3 * np.random.default_rng(1).standard_normal((3, size))


def difference(one: Any, other: Any) -> float:
    """Compare gradients, relative to their largest element."""
    return float(np.max(np.abs(one - other)) / np.max(np.abs(other)))


def check_density(posterior: Posterior) -> None:
    """Assert, in double precision, that both densities are one up to a constant."""
    with jax.enable_x64():
        space, data = ppl.unconstrain(posterior.program()), posterior.data()
        assert space.size == posterior.size
        for q in map(jnp.asarray, points(space.size)):
            ours = jax.grad(space.log_density)(q)
            assert difference(ours, jax.grad(posterior.log_density)(q, *data)) < 1e-9
