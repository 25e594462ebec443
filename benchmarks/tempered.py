"""Tempered SMC on logistic regression against BlackJAX's adaptive sampler.

`python -m benchmarks.tempered [--particles 1000]` runs both with the same prior, data, Hamiltonian
steps, schemes and threshold, by turns. What counts is seconds per effective draw: the seconds of a
run times the variance, over runs, of the estimated posterior means, in units of the posterior
variance. Without BlackJAX only our side is run.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from benchmarks.smc_peers import installed
from benchmarks.timing import human, table

_STEP, _LEAPFROGS, _MOVES, _ESS = 0.08, 8, 2, 0.5


@functools.cache
def data(rows: int = 500, columns: int = 10, seed: int = 0) -> tuple[Any, Any]:
    """Simulate a design and outcomes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns))
    weights = rng.standard_normal(columns)
    y = rng.random(rows) < 1 / (1 + np.exp(-x @ weights))
    return jnp.asarray(x, jnp.result_type(float)), jnp.asarray(y, int)


@ppl.model
def regression(x: Any, y: Any) -> Any:
    """Logistic regression with a normal prior."""
    w = ppl.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
    with ppl.plate("row", x.shape[0]):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)
    return w


def ours(x: Any, y: Any, num_particles: int) -> Callable[[int], tuple[Any, Any]]:
    """Give a run of `ppl.tempered_smc`: posterior mean and log evidence."""
    kernel = ppl.kernels.hmc(_STEP, _LEAPFROGS)
    sampler = ppl.tempered_smc(
        regression(x, y), num_particles, kernel, ess_threshold=_ESS, num_moves=_MOVES
    )

    def run(seed: int) -> tuple[Any, Any]:
        population = ppl.run(sampler, seed)
        return jnp.mean(population.choices["w"], axis=0), population.log_evidence

    return run


def theirs(x: Any, y: Any, num_particles: int) -> Callable[[int], tuple[Any, Any]]:
    """Give the same run with BlackJAX."""
    import blackjax
    from blackjax.smc import extend_params, resampling

    columns = x.shape[1]

    def log_prior(w: Any) -> Any:
        return jnp.sum(dist.Normal(0.0, 2.0).log_prob(w))

    def log_likelihood(w: Any) -> Any:
        return jnp.sum(dist.Bernoulli(logits=x @ w).log_prob(y))

    sampler = blackjax.adaptive_tempered_smc(
        log_prior,
        log_likelihood,
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        extend_params(
            {
                "step_size": _STEP,
                "inverse_mass_matrix": jnp.ones(columns),
                "num_integration_steps": _LEAPFROGS,
            }
        ),
        resampling.systematic,
        _ESS,
        num_mcmc_steps=_MOVES,
    )

    @jax.jit
    def run(seed: Any) -> tuple[Any, Any]:
        first, rest = jax.random.split(jax.random.key(seed))
        start = sampler.init(2.0 * jax.random.normal(first, (num_particles, columns)))

        def step(carry: Any) -> Any:
            i, state, log_evidence = carry
            state, info = sampler.step(jax.random.fold_in(rest, i), state)
            return i + 1, state, log_evidence + info.log_likelihood_increment

        _, state, log_evidence = jax.lax.while_loop(
            lambda carry: carry[1].tempering_param < 1, step, (0, start, 0.0)
        )
        weights = state.weights
        return weights @ state.particles, log_evidence

    return run


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    x, y = data()
    sides = {"ppl": ours(x, y, options.particles)}
    if installed("blackjax"):
        sides["BlackJAX"] = theirs(x, y, options.particles)
    cold, seconds, means, evidences = {}, {}, {}, {}
    for who, run in sides.items():
        begun = time.perf_counter()
        jax.block_until_ready(run(0))
        cold[who] = time.perf_counter() - begun
        seconds[who], means[who], evidences[who] = [], [], []
    for seed in range(1, options.rounds + 1):
        for who, run in sides.items():
            begun = time.perf_counter()
            mean, evidence = jax.block_until_ready(run(seed))
            seconds[who].append(time.perf_counter() - begun)
            means[who].append(np.asarray(mean, float))
            evidences[who].append(float(evidence))
    population = ppl.run(
        ppl.tempered_smc(regression(x, y), 4000, ppl.kernels.hmc(_STEP, _LEAPFROGS), num_moves=5), 0
    )
    variance = np.var(np.asarray(population.choices["w"]), axis=0)
    rows = []
    for who in sides:
        draws = float(np.mean(variance / np.var(means[who], axis=0, ddof=1)))
        warm = float(np.median(seconds[who]))
        evidence = f"{np.mean(evidences[who]):.2f} ({np.std(evidences[who], ddof=1):.2f})"
        cells = [who, human(cold[who]), human(warm), f"{draws:.0f}", human(warm / draws), evidence]
        rows.append(cells)
    headers = ["sampler", "cold", "warm", "effective draws", "per effective draw", "log evidence"]
    print(table(headers, rows))


if __name__ == "__main__":
    main()
