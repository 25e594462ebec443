"""Samplers to compare `ppl.mcmc` with: BlackJAX, NumPyro, and nutpie on models of PyMC.

All draw from the posteriors of `benchmarks.mcmc_models` with their own defaults: NUTS, a diagonal
mass matrix, a target acceptance rate of 0.8. BlackJAX samples the density by hand, all chains under
one `vmap`, warmup and draws in one compiled function that later runs use again. NumPyro samples the
same text as `ppl`, its chains vectorised; later runs are those of the same `MCMC`. nutpie samples
PyMC's models with its numba backend, in double precision, a chain a core. Of its routes (numba or
JAX as backend, a JAX function through `from_pyfunc`) that is the fastest one for every model, with
one BLAS thread a chain, and volatility's autoregression by doubling, as PyTensor's `scan` is slow.

None of them is a dependency but NumPyro: what is not installed is left out, with a message.
`check_peers` shows that NumPyro's and PyMC's densities are the one by hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
from benchmarks.mcmc_models import GROUPS, POSTERIORS, difference, points
from benchmarks.smc_peers import installed


class Budget(NamedTuple):
    """How much every side is to draw."""

    chains: int
    warmup: int
    samples: int


class Draws(NamedTuple):
    """Values of shape (chain, draw, coordinate), and gradient evaluations a kept draw.

    Coordinates are in any order, and unconstrained or not: bulk effective sizes know ranks alone.
    """

    values: np.ndarray
    gradients: float


Sampler = Callable[[int], Draws]
"""From a seed to draws on the host. What it compiles first is kept for later calls."""


def flat(draws: dict[str, Any]) -> np.ndarray:
    """Put the draws of all sites, each of shape (chain, draw, *site), side by side."""
    arrays = [np.asarray(x) for x in draws.values()]
    return np.concatenate([x.reshape(*x.shape[:2], -1) for x in arrays], axis=-1)


# --- BlackJAX -----------------------------------------------------------------------------------


def blackjax_sampler(name: str, budget: Budget) -> Sampler:
    """Make BlackJAX's NUTS with window adaptation, started from Uniform(-2, 2)."""
    import blackjax

    posterior = POSTERIORS[name]
    chains, warmup, samples = budget

    @jax.jit
    def run(seed: Any, data: Any) -> Any:
        def log_density(q: Any) -> Any:
            return posterior.log_density(q, *data)

        def chain(key: Any) -> Any:
            first, adapting, sampling = jax.random.split(key, 3)
            start = jax.random.uniform(first, (posterior.size,), minval=-2.0, maxval=2.0)
            adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
            (state, settings), _ = adaptation.run(adapting, start, warmup)
            nuts = blackjax.nuts(log_density, **settings)

            def step(state: Any, key: Any) -> Any:
                state, info = nuts.step(key, state)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(step, state, jax.random.split(sampling, samples))[1]

        return jax.vmap(chain)(jax.random.split(jax.random.key(seed), chains))

    def sample(seed: int) -> Draws:
        values, steps = run(seed, data)
        return Draws(np.asarray(values), float(np.mean(steps)))

    data = posterior.data()
    return sample


# --- NumPyro ------------------------------------------------------------------------------------


def numpyro_sampler(name: str, budget: Budget) -> Sampler:
    """Make NumPyro's NUTS with vectorised chains."""
    import numpyro
    from numpyro.infer import MCMC, NUTS

    posterior = POSTERIORS[name]
    data = posterior.data()
    mcmc = MCMC(
        NUTS(functools.partial(posterior.model, numpyro)),
        num_warmup=budget.warmup,
        num_samples=budget.samples,
        num_chains=budget.chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def sample(seed: int) -> Draws:
        mcmc.run(jax.random.key(seed), *data, extra_fields=("num_steps",))
        steps = float(np.mean(mcmc.get_extra_fields()["num_steps"]))
        return Draws(flat(mcmc.get_samples(group_by_chain=True)), steps)

    return sample


# --- nutpie -------------------------------------------------------------------------------------


def _pymc_schools(pm: Any, y: Any, error: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfCauchy("tau", 5.0)
    z = pm.Normal("z", shape=8)
    pm.Normal("y", mu + tau * z, error, observed=y)


def _pymc_logistic(pm: Any, x: Any, y: Any) -> None:
    alpha, beta = pm.Normal("alpha", 0.0, 2.5), pm.Normal("beta", shape=x.shape[1])
    pm.Bernoulli("y", logit_p=alpha + x @ beta, observed=y)


def _pymc_hierarchy(pm: Any, group: Any, x: Any, y: Any) -> None:
    mu, tau = pm.Normal("mu", 0.0, 5.0), pm.HalfNormal("tau", 2.0)
    slope, sigma = pm.Normal("slope", 0.0, 5.0), pm.HalfNormal("sigma", 2.0)
    z = pm.Normal("z", shape=GROUPS)
    pm.Normal("y", mu + tau * z[group] + slope * x, sigma, observed=y)


def _pymc_volatility(pm: Any, y: Any) -> None:
    mu, phi = pm.Normal("mu", 0.0, 5.0), pm.Uniform("phi", -1.0, 1.0)
    sigma, z = pm.HalfNormal("sigma", 1.0), pm.Normal("z", shape=len(y))
    # x_t = phi x_{t-1} + z_t by doubling: after k rounds, the sum over the last 2^k shocks.
    x = pm.math.concatenate([z[:1] / pm.math.sqrt(1 - phi**2), z[1:]])
    power, reach = phi, 1
    while reach < len(y):
        x = pm.math.concatenate([x[:reach], x[reach:] + power * x[:-reach]])
        power, reach = power**2, 2 * reach
    pm.Normal("y", 0.0, pm.math.exp((mu + sigma * x) / 2), observed=y)


def _pymc_process(pm: Any, x: Any, y: Any) -> None:
    length, scale = pm.LogNormal("length", 0.0, 1.0), pm.HalfNormal("scale", 2.0)
    noise, gap = pm.HalfNormal("noise", 1.0), (x[:, None] - x[None]) / length
    covariance = scale**2 * pm.math.exp(-0.5 * gap**2) + noise**2 * np.eye(len(x))
    pm.MvNormal("y", np.zeros(len(x)), cov=covariance, observed=y)


_PYMC = dict(
    zip(
        POSTERIORS,
        (_pymc_schools, _pymc_logistic, _pymc_hierarchy, _pymc_volatility, _pymc_process),
        strict=True,
    )
)


def pymc_model(name: str) -> Any:
    """Build PyMC's model of a posterior."""
    import pymc

    with pymc.Model() as model:
        _PYMC[name](pymc, *POSTERIORS[name].simulate())
    return model


def nutpie_sampler(name: str, budget: Budget) -> Sampler:
    """Compile PyMC's model for nutpie."""
    import nutpie
    import threadpoolctl  # a dependency of PyMC

    compiled = nutpie.compile_pymc_model(pymc_model(name))

    def sample(seed: int) -> Draws:
        with threadpoolctl.threadpool_limits(1):  # the cores are taken by chains
            trace = nutpie.sample(
                compiled,
                chains=budget.chains,
                tune=budget.warmup,
                draws=budget.samples,
                seed=seed,
                save_warmup=False,
                progress_bar=False,
            )
        steps = float(trace.sample_stats["n_steps"].mean())
        return Draws(flat(dict(trace.posterior.data_vars)), steps)

    return sample


# --- All ----------------------------------------------------------------------------------------

PEERS: dict[str, Callable[[str, Budget], Sampler]] = {
    "NumPyro": numpyro_sampler,
    "BlackJAX": blackjax_sampler,
    "nutpie": nutpie_sampler,
}


def check_peers(name: str) -> None:
    """Assert, in double precision, that NumPyro's and PyMC's densities are the one by hand."""
    import numpyro
    from numpyro.infer.util import potential_energy

    posterior = POSTERIORS[name]
    model = pymc_model(name) if installed("pymc") else None
    compiled = model and (model.value_vars, model.compile_dlogp(mode="FAST_COMPILE"))
    with jax.enable_x64():
        data, shapes = posterior.data(), ppl.unconstrain(posterior.program()).shapes
        text = functools.partial(posterior.model, numpyro)

        def parts(q: Any) -> dict[str, Any]:
            ends = np.cumsum([math.prod(shape) for _, shape in shapes])[:-1]
            cut = zip(shapes, jnp.split(q, ends), strict=True)
            return {address: x.reshape(shape) for (address, shape), x in cut}

        for q in map(jnp.asarray, points(posterior.size)):
            hand = jax.grad(posterior.log_density)(q, *data)
            energy = jax.grad(lambda q: potential_energy(text, data, {}, parts(q)))(q)
            assert difference(-energy, hand) < 1e-9
            if compiled is not None:
                names, found = compiled  # in the order of the model too
                values = zip(names, parts(q).values(), strict=True)
                assert difference(found({v.name: np.asarray(x) for v, x in values}), hand) < 1e-9
