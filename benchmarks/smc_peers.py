"""Bootstrap filters to compare `ppl.smc` with: plain JAX, `particles`, BlackJAX.

`python -m benchmarks.smc_peers [--length 1000] [--particles 1000 20000]` prints, for both models of
`benchmarks.smc_models`, each filter's log evidence and seconds, cold (first call, compiling
included) and warm. The evidence is unbiased, so a log evidence of standard deviation s (over seeds)
falls short of Kalman's by about s^2 / 2 on average. `particles` and `blackjax` are no dependencies:
what is not installed is left out, with a message.

All resample systematically, at an effective sample size below half of the particles, keep no
trajectories and return the log evidence; `particles` and `ppl.smc` also note effective sample size
and evidence at every step. BlackJAX (1.7) has no filter for state-space models and no
adaptive resampling; from its `smc.base.step` one can be put together that resamples at every step.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from benchmarks.smc_models import (
    Tracking,
    Volatility,
    tracking_data,
    tracking_log_evidence,
    volatility_data,
)
from benchmarks.timing import human, table

Filter = Callable[[Any, int, int], Any]
"""From a model's numbers, a number of particles and a seed: the log evidence."""


def installed(package: str, needs: str | None = None) -> bool:
    """Tell whether a package is there, and say what to install if it is not.

    Args:
        package: its name where it is imported.
        needs: what installs it, where that has another name, and what else it takes.
    """
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(
            f"{package} is not installed, and is left out: python -m pip install {needs or package}"
        )
    return found


# --- Plain JAX ----------------------------------------------------------------------------------


class Steps(NamedTuple):
    """A model by hand, over all particles at once."""

    begin: Callable[[Any, Any, int], Any]
    move: Callable[[Any, Any, Any], Any]
    log_weight: Callable[[Any, Any, Any], Any]


def _log_normal(z: Any, scale: Any) -> Any:
    return -0.5 * z * z - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def _volatility_weight(m: Volatility, x: Any, y: Any) -> Any:
    return -0.5 * y * y * jnp.exp(-x) - 0.5 * x - 0.5 * jnp.log(2 * jnp.pi)


def _tracking_weight(m: Tracking, x: Any, y: Any) -> Any:
    return jnp.sum(_log_normal((y - x[:, :2]) / m.error, m.error), axis=-1)


HAND: dict[type, Steps] = {
    Volatility: Steps(
        lambda m, key, n: m.mu + m.start * jax.random.normal(key, (n,)),
        lambda m, key, x: m.mu + m.rho * (x - m.mu) + m.sigma * jax.random.normal(key, x.shape),
        _volatility_weight,
    ),
    Tracking: Steps(
        lambda m, key, n: m.start * jax.random.normal(key, (n, 4)),
        lambda m, key, x: x @ m.transition.T + jax.random.normal(key, x.shape) @ m.noise.T,
        _tracking_weight,
    ),
}


@functools.partial(jax.jit, static_argnames="num_particles")
def plain_jax(m: Any, num_particles: int, seed: Any) -> Any:
    """Run the bootstrap filter as one would write it by hand."""
    steps, n = HAND[type(m)], num_particles

    def resample(key: Any, x: Any, log_w: Any) -> Any:
        total = jnp.cumsum(jnp.exp(log_w))
        points = (jnp.arange(n) + jax.random.uniform(key)) * (total[-1] / n)
        ancestors = jnp.minimum(jnp.searchsorted(total, points), n - 1)
        return x[ancestors], jnp.zeros(n)

    def step(carry: Any, at: Any) -> Any:
        x, log_w, log_z = carry  # the weights' mean is one
        y, key = at
        keys = jax.random.split(key)
        few = n / jnp.sum(jnp.exp(2 * log_w)) < 0.5
        x, log_w = jax.lax.cond(few, resample, lambda key, x, w: (x, w), keys[0], x, log_w)
        x = steps.move(m, keys[1], x)
        log_w = log_w + steps.log_weight(m, x, y)
        more = logsumexp(log_w) - jnp.log(n)
        return (x, log_w - more, log_z + more), None

    first, rest = jax.random.split(jax.random.key(seed))
    start = (steps.begin(m, first, n), jnp.zeros(n), jnp.zeros(()))
    return jax.lax.scan(step, start, (m.y, jax.random.split(rest, len(m.y))))[0][2]


# --- BlackJAX -----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="num_particles")
def blackjax_step(m: Any, num_particles: int, seed: Any) -> Any:
    """Run a filter made of `blackjax.smc.base.step`, which resamples at every step."""
    from blackjax.smc import base, resampling

    steps = HAND[type(m)]

    def move(keys: Any, x: Any, _: Any) -> Any:  # by its contract, a key for every particle
        return jax.vmap(lambda key, x: steps.move(m, key, x))(keys, x), None

    def step(state: Any, at: Any) -> Any:
        y, key = at
        weigh = lambda x: steps.log_weight(m, x, y)  # noqa: E731
        state, info = base.step(key, state, move, weigh, resampling.systematic)
        return state, info.log_likelihood_increment

    first, rest = jax.random.split(jax.random.key(seed))
    start = base.init(steps.begin(m, first, num_particles), None)
    return jnp.sum(jax.lax.scan(step, start, (m.y, jax.random.split(rest, len(m.y))))[1])


# --- particles ----------------------------------------------------------------------------------


def particles_filter(m: Any, num_particles: int, seed: int) -> float:
    """Run the bootstrap filter of `particles`."""
    import particles
    from particles import distributions, kalman
    from particles import state_space_models as ssm

    class StochasticVolatility(ssm.StateSpaceModel):
        def PX0(self) -> Any:  # noqa: N802
            return distributions.Normal(loc=m.mu, scale=m.start)

        def PX(self, t: int, xp: Any) -> Any:  # noqa: N802
            return distributions.Normal(loc=m.mu + m.rho * (xp - m.mu), scale=m.sigma)

        def PY(self, t: int, xp: Any, x: Any) -> Any:  # noqa: N802
            return distributions.Normal(scale=np.exp(x / 2))

    m = type(m)(*(np.asarray(x, np.float64) for x in m))
    if isinstance(m, Volatility):
        model = StochasticVolatility()  # the stationary law is that of the first observed state too
    else:
        shock = m.noise @ m.noise.T
        model = kalman.MVLinearGauss(
            F=m.transition,
            G=np.eye(2, 4),
            covX=shock,
            covY=m.error**2 * np.eye(2),
            mu0=np.zeros(4),
            cov0=m.transition @ np.diag(m.start**2) @ m.transition.T + shock,
        )
    np.random.seed(seed)
    run = particles.SMC(
        fk=ssm.Bootstrap(ssm=model, data=m.y),
        N=num_particles,
        resampling="systematic",
        ESSrmin=0.5,
    )
    run.run()
    return run.logLt


def filters() -> dict[str, Filter]:
    """List the filters whose packages are installed."""
    found: dict[str, Filter] = {"plain JAX": plain_jax}
    if installed("particles"):
        found["particles"] = particles_filter
    if installed("blackjax"):
        found["BlackJAX"] = blackjax_step
    return found


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--repeats", type=int, default=5, help="warm runs, each with its own seed")
    options = parser.parse_args()
    found, rows = filters(), []
    tracks = tracking_data(options.length)
    print(f"Kalman: the log evidence of tracking is {tracking_log_evidence(tracks):.2f}")
    for name, m in (("tracking", tracks), ("volatility", volatility_data(options.length))):
        for n in options.particles:
            for who, run in found.items():
                values, seconds = [], []
                for seed in range(options.repeats + 1):
                    begun = time.perf_counter()
                    values.append(float(run(m, n, seed)))
                    seconds.append(time.perf_counter() - begun)
                spread = np.std(values, ddof=1)
                evidence = f"{np.mean(values):.2f} ({spread:.2f})"
                warm = human(float(np.median(seconds[1:])))
                rows.append([name, f"{n}", who, evidence, human(seconds[0]), warm])
    print(table(["model", "particles", "filter", "log evidence (sd)", "cold", "warm"], rows))


if __name__ == "__main__":
    main()
