"""NUTS through `mcmc`: closed forms, starting points, interruption, and the same draws always."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.results.diagnostics import ess
from ppl.semantics import suspended
from tests.zoo import (
    COUNTS,
    NORMAL_DATA,
    beta_binomial,
    beta_binomial_answer,
    flat_normal,
    gamma_poisson,
    gamma_poisson_answer,
    linear_gaussian,
    linear_gaussian_answer,
    normal_normal,
    normal_normal_answer,
)

SERIES = np.array([0.2, -0.4, 1.0], np.float32)


def fit(program, draws=1000, warmup=20, num_chains=2, key=0, **options):
    kernel = ppl.kernels.nuts(max_tree_depth=5)
    return ppl.run(
        ppl.mcmc(program, kernel, draws, warmup, num_chains, **options), key, progress=False
    )


def z_score(draws, mean):
    """(average - mean) in Monte Carlo standard errors, by effective sample size."""
    draws = np.asarray(draws, np.float64)
    error = draws.std() / np.sqrt(float(ess(draws, "mean")))
    return (draws.mean() - mean) / error


# --- Closed forms -------------------------------------------------------------------------------
# Independent sub-models, fitted as one program: one compilation for all.


@ppl.model
def together(data, counts, successes, series):
    with ppl.scope("normal"):
        normal_normal(data)
    with ppl.scope("flat"):
        flat_normal(data)
    with ppl.scope("beta"):
        beta_binomial(successes)
    with ppl.scope("gamma"):
        gamma_poisson(counts)
    with ppl.scope("series"):
        linear_gaussian(series)
    with ppl.scope("conditioned"):
        mu = ppl.sample("mu", dist.Normal(1.0, 2.0))
        with ppl.plate("n", 4):
            ppl.sample("y", dist.Normal(mu, 0.5))


def program():
    p = together(NORMAL_DATA, COUNTS, np.array(4, np.int32), SERIES)
    p = ppl.condition(p, {"conditioned/y": NORMAL_DATA})
    return ppl.reparam(p, {"conditioned/mu": ppl.NonCentred()})


CLOSED = {
    "normal/mu": normal_normal_answer()[:2],
    "conditioned/mu": normal_normal_answer()[:2],
    "flat/mu": (float(np.mean(NORMAL_DATA)), 0.5 / math.sqrt(len(NORMAL_DATA))),
    "beta/p": beta_binomial_answer(4)[:2],
    "gamma/rate": gamma_poisson_answer()[:2],
}


@pytest.fixture(scope="module")
def chains():
    return fit(program(), 1500, 400)


@pytest.mark.parametrize("address", CLOSED)
def test_moments(chains, address):
    # Mean and variance; the standard error is estimated, so |z| < 5.5 for about 1e-6 in all.
    mean, sd = CLOSED[address]
    draws = np.asarray(chains[address], np.float64)
    assert draws.shape == (2, 1500)
    assert abs(z_score(draws, mean)) < 5.5
    assert abs(z_score((draws - mean) ** 2, sd**2)) < 5.5
    assert len(np.unique(draws[0])) > 1000
    assert not np.any(draws[0] == draws[1])
    assert float(ess(draws, "mean")) > 300


def test_linear_gaussian_states(chains):
    mean, covariance, _ = linear_gaussian_answer(SERIES)
    draws = np.asarray(chains["series/x"], np.float64)
    for i in range(3):
        assert abs(z_score(draws[..., i], mean[i])) < 5.5
        assert abs(z_score((draws[..., i] - mean[i]) ** 2, covariance[i, i])) < 5.5
    products = (draws[..., 0] - mean[0]) * (draws[..., 1] - mean[1])
    assert abs(z_score(products, covariance[0, 1])) < 5.5


def test_stats_and_order(chains):
    assert not np.any(chains.stats["diverging"])
    assert list(chains.draws)[-1] == "conditioned/mu"  # deterministic: after all latents
    assert chains.latents == program().latents
    space = ppl.unconstrain(program())
    choices = {a: np.asarray(chains[a])[0, :20] for a in chains.latents}
    lp = jax.jit(jax.vmap(lambda c: space.log_density(space.flatten(c))))(choices)
    np.testing.assert_allclose(chains.stats["lp"][0, :20], lp, rtol=1e-4, atol=1e-4)


# --- Starting points ----------------------------------------------------------------------------


def test_init_is_where_chains_start():
    # With a tiny fixed-size first step and no warmup the first draw is next to the start.
    kernel = ppl.kernels.nuts(step_size=1e-6, max_tree_depth=1)
    starts = np.array([0.5, 2.0, 7.0], np.float32)
    program = ppl.mcmc(gamma_poisson(COUNTS), kernel, 1, 0, 3, init={"rate": starts})
    chains = ppl.run(program, 0)
    np.testing.assert_allclose(chains["rate"][:, 0], starts, rtol=1e-4)
    one = ppl.mcmc(gamma_poisson(COUNTS), kernel, 1, 0, 3, init={"rate": 2.0})
    np.testing.assert_allclose(ppl.run(one, 0)["rate"][:, 0], 2.0, rtol=1e-4)


def test_starts_are_searched_until_the_density_is_finite():
    # Of Uniform(-2, 2), only the top 10 % has a finite density.
    @ppl.model
    def m():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("wall", jnp.where(x > 1.6, 0.0, -jnp.inf))

    chains = fit(m(), 20, 20, 4)
    assert np.all(np.asarray(chains["x"]) > 1.6)


@pytest.mark.parametrize("low", [-1e6, -1e9])
def test_starts_are_searched_until_rounding_leaves_a_nat(low):
    # In single precision -1e9 is known to 120, -1e6 to 0.1. Of Uniform(-2, 2), 10 % is above 1.6.
    @ppl.model
    def m():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("cliff", jnp.where(x > 1.6, 0.0, low))

    kernel = ppl.kernels.nuts(step_size=1e-6, max_tree_depth=1)
    chains = ppl.run(ppl.mcmc(m(), kernel, 1, 0, 16), 0)
    assert np.all(np.asarray(chains["x"]) > 1.6) == (low == -1e9)


def test_a_density_that_is_nowhere_known_to_a_nat_is_started_from_the_first_draw():
    @ppl.model
    def m(everywhere):
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("large", everywhere)

    kernel = ppl.kernels.nuts(step_size=1e-6, max_tree_depth=1)
    starts = [ppl.run(ppl.mcmc(m(e), kernel, 1, 0, 4), 0)["x"] for e in (0.0, -1e9)]
    np.testing.assert_allclose(starts[0], starts[1], atol=1e-4)


# --- The same draws, whatever happens around ----------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    return fit(normal_normal(NORMAL_DATA), 300)


def test_progress_keys_and_length_change_no_draw(whole, capsys):
    program = normal_normal(NORMAL_DATA)
    mu = np.asarray(fit(program, 40)["mu"])
    kernel = ppl.kernels.nuts(max_tree_depth=5)
    shown = ppl.run(ppl.mcmc(program, kernel, 40, 20, 2), 0, progress=True)
    np.testing.assert_array_equal(mu, shown["mu"])
    np.testing.assert_array_equal(mu, whole["mu"][:, :40])
    np.testing.assert_array_equal(mu, fit(program, 40, 20, key=jax.random.key(0))["mu"])
    assert not np.any(mu == np.asarray(fit(program, 40, 20, key=1)["mu"]))
    assert capsys.readouterr().err


def test_a_jit_around_run_draws_the_same(x64):
    kernel = ppl.kernels.nuts(max_tree_depth=4)
    y = NORMAL_DATA.astype(np.float64)

    def draw(y, key):
        return ppl.run(ppl.mcmc(normal_normal(y), kernel, 6, 6, 2), key)

    outside = draw(y, jax.random.key(4))
    inside = jax.jit(draw)(y, jax.random.key(4))
    # Two compilations of one computation: equal up to rounding over a dozen short trajectories.
    np.testing.assert_allclose(inside.draws["mu"], outside.draws["mu"], rtol=1e-9)
    np.testing.assert_array_equal(inside.stats["n_steps"], outside.stats["n_steps"])
    assert inside.latents == outside.latents


# --- Interruption -------------------------------------------------------------------------------


class Interrupting:
    """A progress bar on which the user presses Ctrl-C after so many steps."""

    def __init__(self, after):
        self.after, self.done = after, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def advance(self, count):
        self.done += count
        if self.done >= self.after:
            raise KeyboardInterrupt


def test_interruption_returns_what_is_there(whole, monkeypatch):
    program = normal_normal(NORMAL_DATA)
    monkeypatch.setattr(suspended, "progress_bar", lambda *_, **__: Interrupting(60))
    part = fit(program, 300, 20)
    assert 1 <= part.num_draws < 300
    np.testing.assert_array_equal(part["mu"], whole["mu"][:, : part.num_draws])
    assert part.stats["lp"].shape == (2, part.num_draws)
    assert "mu" in str(part.summary())


def test_interruption_before_any_draw_raises(monkeypatch):
    monkeypatch.setattr(suspended, "progress_bar", lambda *_, **__: Interrupting(1))
    with pytest.raises(KeyboardInterrupt):
        fit(normal_normal(NORMAL_DATA), 300, 20)


# --- Branches ---------------------------------------------------------------------------------


def test_branches_are_fitted():
    # w ~ N(0, 1) and weight 4 where w > 0: P(w > 0) = 4 / 5. x ~ N(3, 1) there.
    @ppl.model
    def m():
        w = ppl.sample("w", dist.Normal(0.0, 1.0))

        def positive():
            ppl.factor("four", jnp.log(4.0))
            return ppl.sample("x", dist.Normal(3.0, 1.0))

        return jax.lax.cond(w > 0, positive, lambda: 0.0)

    chains = fit(m(), 2000, 300)
    positive = np.asarray(chains["w"]) > 0
    assert abs(z_score(positive, 0.8)) < 5.5
    x = np.where(positive, np.asarray(chains["x"], np.float64) - 3.0, 0.0)
    assert abs(z_score(x, 0.0)) < 5.5
