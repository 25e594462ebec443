"""Prior and posterior predictive draws, and pointwise likelihoods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.semantics.predictive import log_likelihood, observations
from tests.zoo import linear_gaussian, normal_normal

pytestmark = pytest.mark.usefixtures("x64")

Y = np.array([0.5, 1.5, -1.0])


def test_prior_predictive_moments():
    # y_i ~ N(1, 0.25 + 4), correlation 4 / 4.25. |z| < 5 over 20000 draws: false alarm 1e-6.
    draws = {a: np.asarray(x) for a, x in ppl.prior_predictive(normal_normal(Y), 0, 20000).items()}
    assert draws["y"].shape == (20000, 3)
    assert draws["mu"].shape == (20000,)
    y = draws["y"]
    assert abs(y[:, 0].mean() - 1) < 5 * np.sqrt(4.25 / 20000)
    products = (y[:, 0] - 1) * (y[:, 1] - 1)
    assert abs(products.mean() - 4) < 5 * products.std() / np.sqrt(20000)
    residuals = (y - draws["mu"][:, None]) / 0.5
    assert abs((residuals**2).mean() - 1) < 5 * np.sqrt(2 / 60000)


def test_posterior_predictive_uses_each_row():
    p = normal_normal(Y, sd=1e-6)
    mu = np.array([-100.0, 0.0, 100.0])
    out = ppl.posterior_predictive(p, {"mu": mu}, 0)
    assert set(out) == {"y"}
    np.testing.assert_allclose(out["y"], np.broadcast_to(mu[:, None], (3, 3)), atol=1e-4)
    assert len(np.unique(out["y"])) == 9


def test_missing_latents_are_drawn_and_deterministics_recomputed():
    @ppl.model
    def m(y):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.sample("b", dist.Normal(a, 1e-6))
        ppl.deterministic("sum", a + b)
        ppl.sample("y", dist.Normal(b, 1e-6), obs=y)

    out = ppl.posterior_predictive(m(5.0), {"a": np.array([1.0, 10.0])}, 0)
    assert set(out) == {"b", "sum", "y"}
    np.testing.assert_allclose(out["b"], [1, 10], atol=1e-4)
    np.testing.assert_allclose(out["sum"], [2, 20], atol=1e-4)
    np.testing.assert_allclose(out["y"], [1, 10], atol=1e-4)


def test_predictions_follow_the_drawn_observations():
    # A random walk whose next state depends on the observation just made.
    @ppl.model
    def m(ys):
        def step(last, y):
            new = ppl.sample("y", dist.Normal(last + 1.0, 1e-6), obs=y)
            return new, None

        jax.lax.scan(step, 0.0, ys)

    out = ppl.prior_predictive(m(np.array([100.0, 200.0, 300.0])), 0, 2)["y"]
    np.testing.assert_allclose(out, [[1, 2, 3]] * 2, atol=1e-4)


def test_log_likelihood_is_pointwise():
    x = np.array([[0.1, 0.2, 0.3], [1.0, 0.0, -1.0]])
    out = log_likelihood(linear_gaussian(Y), {"x": x})
    expected = np.asarray(dist.Normal(x, 0.4).log_prob(Y))
    np.testing.assert_allclose(out["y"], expected, rtol=1e-12)


def test_observations_are_those_of_the_site():
    @ppl.model
    def m(y):
        with ppl.plate("a", 2), ppl.plate("b", 2):
            ppl.sample("y", dist.Normal(0.0, 1.0), obs=y.T)

    y = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = observations(m(y))
    assert found == {} or np.array_equal(found["y"], y.T)
    assert observations(normal_normal(Y))["y"].tolist() == Y.tolist()


def test_rows_are_checked():
    p = normal_normal(Y)
    for bad in (
        {"mew": np.zeros(3)},
        {"mu": np.zeros((3, 2))},
        {"mu": np.float64(1.0)},
        {},
    ):
        with pytest.raises(ppl.PPLError):
            ppl.posterior_predictive(p, bad, 0)
    q = ppl.unobserve(p)
    with pytest.raises(ppl.PPLError, match=r"rows|shape"):
        ppl.posterior_predictive(q, {"mu": jnp.zeros(3), "y": jnp.zeros((2, 3))}, 0)
