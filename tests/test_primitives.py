"""Densities with a formula of our own agree with NumPyro's, derivatives and extremes included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl.distributions as dist
from ppl.primitives import density

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("make", "at", "value"),
    [
        (lambda p: dist.Normal(p, jnp.exp(p)), np.linspace(-2, 2, 7), np.linspace(-3, 3, 7)),
        (lambda p: dist.Bernoulli(logits=p), np.linspace(-9, 9, 8), np.arange(8) % 2),
        (lambda p: dist.Bernoulli(logits=p).expand([2, 8]), np.linspace(-9, 9, 8), np.ones(8, int)),
        (lambda p: dist.Normal(p, 2.0).expand([3, 7]), np.linspace(-2, 2, 7), np.linspace(0, 1, 7)),
    ],
)
def test_own_formulas(make, at, value):
    def total(p, log_prob):
        return jnp.sum(jnp.sin(1.0 + log_prob(make(p), value)))

    theirs = lambda d, v: d.log_prob(v)  # noqa: E731
    for fun in (total, jax.grad(total), jax.hessian(total)):
        np.testing.assert_allclose(fun(at, density), fun(at, theirs), rtol=1e-10, atol=1e-12)


def test_confident_logits_keep_their_digits():
    """In single precision, at logits where a difference of two terms would have none."""
    logits = np.array([40.0, -40.0, 300.0, -300.0, 25.0], np.float32)
    right = np.array([1, 0, 1, 0, 0])
    found = density(dist.Bernoulli(logits=jnp.asarray(logits)), right)
    size = np.where(right == 1, logits, -logits).astype(np.float64)
    np.testing.assert_allclose(found, -np.logaddexp(0.0, -size), rtol=1e-6, atol=1e-38)
