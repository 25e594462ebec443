"""Particle Gibbs: long chains against the exact posterior, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, InitializationError
from ppl.inference.particle_gibbs import particle_gibbs
from tests.compiling import compilations
from tests.inference import particle_models as models
from tests.inference.particle_models import B, sample
from tests.zoo import linear_gaussian_answer

pytestmark = pytest.mark.usefixtures("x64")

KINDS = {
    "plain": {},
    "ancestor": {"ancestor_sampling": True},
    "backward": {"backward_sampling": True},
}


@ppl.model
def autoregressive(y):
    a = sample("a", dist.Uniform(-1.0, 1.0))

    def step(state, now):
        t, y = now
        mean, sd = jnp.where(t == 0, 0.0, a * state), jnp.where(t == 0, 1.0, 0.6)
        x = sample("x", dist.Normal(mean, sd))
        sample("y", dist.Normal(x, 0.4), obs=y)
        return x, x

    lax.scan(step, jnp.zeros(()), (jnp.arange(y.shape[0]), y))
    return a


Y = np.array([0.5, -0.3, 1.2, 0.8, -0.9, 0.1, 0.7, 1.5])


def posterior(y):
    """Means and variances of a and of the states, by a grid over a: the rest is Gaussian."""
    grid = np.linspace(-1, 1, 401)
    answers = [linear_gaussian_answer(y, a=a) for a in grid]
    weights = np.exp(np.array([evidence for _, _, evidence in answers]))
    weights /= weights.sum()
    means, covariances = (np.array([answer[i] for answer in answers]) for i in (0, 1))
    moments = np.column_stack([grid, means, grid**2, means**2 + covariances.diagonal(0, 1, 2)])
    return weights @ moments


def z_scores(chains, expected):
    """By means of batches of draws, which are all but independent."""
    x = np.concatenate([chains["a"][..., None], chains["x"]], -1).astype(float)[:, 200:]
    x = np.concatenate([x, x**2], -1)
    batches = x.reshape(x.shape[0] * 20, -1, x.shape[-1]).mean(1)
    return (batches.mean(0) - expected) / (batches.std(0, ddof=1) / np.sqrt(len(batches)))


@pytest.mark.parametrize(
    "kind",
    [k if k == "ancestor" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS],
)
def test_particle_gibbs_finds_the_posterior(kind):
    with jax.enable_x64(False):
        found = ppl.run(
            particle_gibbs(
                autoregressive(Y),
                num_particles=10,
                num_samples=3200,
                kernel=ppl.kernels.random_walk(1.0, addresses=["a"]),
                **{"ancestor_sampling": False, **KINDS[kind]},
            ),
            key=0,
        )
    z = z_scores(found, posterior(Y))
    # 18 z-scores with 79 degrees of freedom: beyond 6 with probability 18 * 6e-8.
    assert np.max(np.abs(z)) < 6, z
    assert found.stats["renewed"].shape == (4, 3200)
    assert float(jnp.mean(found.stats["renewed"])) > (0.2 if kind == "plain" else 0.6)


def test_chains_hold_what_traces_hold_and_new_data_compile_nothing():
    def run(y, key):
        program = models.branching(y)
        settings = {"num_samples": 5, "num_chains": 2, "addresses": ["x", "k"]}
        return program, ppl.run(particle_gibbs(program, 4, **settings), key=key)

    run(np.array([0, 1, 1]), 0)
    with compilations() as found:
        program, chains = run(np.array([1, 1, 0]), 1)
    assert found.count == 0
    assert chains["x"].shape == (2, 5, 3)
    np.testing.assert_array_equal(chains.present["k"], chains["x"] == 1)
    one = {a: chains[a][1, 3] for a in ("x", "k")}
    np.testing.assert_allclose(chains.stats["lp"][1, 3], ppl.log_density(program, one))


def test_particle_gibbs_asks_for_what_it_needs():
    program = models.parameter(models.THREE)
    with pytest.raises(ArgumentError, match=r"kernel=None for the sites \['t'\]"):
        particle_gibbs(program, 4)
    with pytest.raises(ArgumentError, match="kernel="):
        particle_gibbs(program, 4, kernel="nuts")
    with pytest.raises(ArgumentError, match="no latent site stands in a loop"):
        particle_gibbs(models.straight(), 4)
    with pytest.raises(ArgumentError, match="num_warmup=-1"):
        particle_gibbs(program, 4, num_warmup=-1, addresses=["x", "t"])
    with pytest.raises(AddressError, match='unknown address "q"'):
        particle_gibbs(program, 4, addresses=["q"])


def test_a_start_without_weight_is_said():
    @ppl.model
    def impossible(y):
        def step(x, y):
            x = sample("x", B(0.5))
            models.observe(y, jnp.zeros(()))
            return x, x

        return lax.scan(step, 0, y)[1]

    run = particle_gibbs(impossible(models.THREE), 4, num_samples=5)
    with pytest.raises(InitializationError, match="no starting point for 4 of 4 chains"):
        ppl.run(run, key=0)
