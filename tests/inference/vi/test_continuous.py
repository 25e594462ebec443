"""Estimators at continuous and infinite sites: z-tests against integrals and sums.

A test compares a mean of 10,000 gradients with the exact derivative, in standard errors: it fails
wrongly with probability 1e-6 (4.9 standard errors).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import ppl
import ppl.distributions as dist
from ppl.errors import UnsupportedError

pytestmark = pytest.mark.usefixtures("x64")
vi, sample = ppl.vi, ppl.sample
DRAWS, LIMIT = 10_000, 4.9


def gradients(make, params, key=0, derivative=jax.grad):
    """Draw gradients of estimates; one row for each key."""
    keys = jax.random.split(jax.random.key(key), DRAWS)
    one = derivative(lambda p, k: ppl.run(vi.expectation(make(p)), k))
    return np.asarray(jax.jit(jax.vmap(one, in_axes=(None, 0)))(params, keys)).reshape(DRAWS, -1)


def z_scores(found, exact):
    error = found.std(0) / np.sqrt(len(found))
    return (found.mean(0) - np.ravel(exact)) / np.maximum(error, 1e-10)


def integral(log_density, cost, low, high, order=400):
    """Integrate over an interval, as a function of parameters."""
    x, w = np.polynomial.legendre.leggauss(order)
    x, w = 0.5 * (high - low) * x + 0.5 * (high + low), 0.5 * (high - low) * w

    def function(params):
        return jnp.sum(w * jnp.exp(log_density(params, x)) * cost(x))

    return function


def smooth(x):
    return jnp.sin(x) + 0.5 * x**2


def kinked(x):
    return jnp.where(x > 0.8, 2.0 + x, 0.0)


FAMILIES = {
    "Normal": (lambda p: dist.Normal(p[0], p[1]), [0.4, 1.3], -12, 13),
    "Laplace": (lambda p: dist.Laplace(p[0], p[1]), [0.4, 0.7], -25, 26),
    "Logistic": (lambda p: dist.Logistic(p[0], p[1]), [0.4, 0.7], -28, 29),
    "Gumbel": (lambda p: dist.Gumbel(p[0], p[1]), [0.4, 0.7], -3.5, 30),
    "Exponential": (lambda p: dist.Exponential(p[0]), [1.4], 0, 30),
    "HalfNormal": (lambda p: dist.HalfNormal(p[0]), [1.4], 0, 15),
    "LogNormal": (lambda p: dist.LogNormal(p[0], p[1]), [0.1, 0.4], 0.02, 12),
    "Gamma": (lambda p: dist.Gamma(p[0], p[1]), [2.5, 1.3], 0, 40),
    "Beta": (lambda p: dist.Beta(p[0], p[1]), [2.5, 3.3], 0, 1),
    "StudentT": (lambda p: dist.StudentT(9.0, p[0], p[1]), [0.4, 0.8], -60, 60),
    "VonMises": (lambda p: dist.VonMises(p[0], p[1]), [0.4, 1.8], -np.pi, np.pi),
    "Weibull": (lambda p: dist.Weibull(p[0], p[1]), [1.3, 2.2], 0, 8),
}


def single(make, grad, cost):
    @ppl.model
    def program(p):
        return cost(sample("x", make(p), grad=grad))

    return program


def exact_gradient(name, cost, split=None):
    make, at, low, high = FAMILIES[name]
    edges = [low, high] if split is None else [low, split, high]
    at = jnp.array(at)

    def total(p):
        pairs = itertools.pairwise(edges)
        return sum(integral(lambda p, x: make(p).log_prob(x), cost, a, b)(p) for a, b in pairs)

    return at, jax.grad(total)(at), jax.hessian(total)(at)


@pytest.mark.parametrize("name", FAMILIES)
def test_reparameterised(name):
    split = 0.4 if name == "Laplace" else None
    cost = jnp.cos if name == "VonMises" else smooth
    at, exact, _ = exact_gradient(name, cost, split)
    grad = vi.implicit() if name == "VonMises" else vi.reparam()
    found = gradients(single(FAMILIES[name][0], grad, cost), at)
    z = z_scores(found, exact)
    assert np.all(np.abs(z) < LIMIT), z
    assert np.any(np.abs(exact) > 40 * found.std(0) / np.sqrt(DRAWS)), "the test could not fail"


@pytest.mark.parametrize("name", ["Normal", "Exponential", "VonMises"])
def test_implicit_second_derivatives(name):
    cost = jnp.cos if name == "VonMises" else smooth
    at, _, exact = exact_gradient(name, cost)
    found = gradients(single(FAMILIES[name][0], vi.implicit(), cost), at, derivative=jax.hessian)
    z = z_scores(found, exact)
    assert np.all(np.abs(z) < LIMIT), z


@pytest.mark.parametrize("name", ["Normal", "Gamma"])
def test_score_function(name):
    at, exact, _ = exact_gradient(name, kinked, 0.8)
    found = gradients(single(FAMILIES[name][0], vi.reinforce(baseline=1.0), kinked), at)
    assert np.all(np.abs(z_scores(found, exact)) < LIMIT)


@pytest.mark.parametrize("name", ["Normal", "Exponential"])
def test_measure_valued_of_a_cost_with_a_jump(name):
    at, exact, _ = exact_gradient(name, kinked, 0.8)
    found = gradients(single(FAMILIES[name][0], vi.mvd(), kinked), at)
    z = z_scores(found, exact)
    assert np.all(np.abs(z) < LIMIT), z
    # Reparameterisation does not see the jump.
    wrong = gradients(single(FAMILIES[name][0], vi.reparam(), kinked), at)
    assert np.max(np.abs(z_scores(wrong, exact))) > 20


@pytest.mark.parametrize(
    ("make", "at", "log_mass"),
    [
        (
            lambda p: dist.Poisson(p[0]),
            [2.3],
            lambda p, k: k * jnp.log(p[0]) - p[0] - special.gammaln(k + 1),
        ),
        (
            lambda p: dist.Geometric(p[0]),
            [0.4],
            lambda p, k: k * jnp.log1p(-p[0]) + jnp.log(p[0]),
        ),
    ],
    ids=["Poisson", "Geometric"],
)
def test_measure_valued_of_counts(make, at, log_mass):
    at, k = jnp.array(at), np.arange(200.0)

    def cost(x):
        return jnp.sin(x) + (x > 1)

    exact = jax.grad(lambda p: jnp.sum(jnp.exp(log_mass(p, k)) * cost(k)))(at)
    found = gradients(single(make, vi.mvd(), cost), at)
    z = z_scores(found, exact)
    assert np.all(np.abs(z) < LIMIT), z


@pytest.mark.parametrize("kind", [vi.reparam, vi.implicit])
def test_dirichlet(kind):
    at = jnp.array([1.5, 2.0, 0.8])

    def mean_square(a):  # E x_i^2 = a_i (a_i + 1) / (s (s + 1)), and E x_i x_j = a_i a_j / ...
        s = jnp.sum(a)
        return (a[0] * (a[0] + 1) + 2 * a[0] * a[2]) / (s * (s + 1))

    def cost(x):
        return x[0] ** 2 + 2 * x[0] * x[2]

    found = gradients(single(dist.Dirichlet, kind(), cost), at)
    z = z_scores(found, jax.grad(mean_square)(at))
    assert np.all(np.abs(z) < LIMIT), z


def test_correlated_normal_and_its_second_derivatives():
    """E of x'Ax is m'Am + tr(A S): the gradient in the factor is 2 A L, the Hessian constant."""
    a = jnp.array([[1.0, 0.3], [0.3, 2.0]])
    at = jnp.array([0.5, -0.2, 1.0, 0.4, 0.7])

    def factor(p):
        return jnp.array([[p[2], 0.0], [p[3], p[4]]])

    @ppl.model
    def program(p):
        x = sample("x", dist.MultivariateNormal(p[:2], scale_tril=factor(p)))
        return x @ a @ x

    def exact(p):
        return p[:2] @ a @ p[:2] + jnp.trace(a @ factor(p) @ factor(p).T)

    assert np.all(np.abs(z_scores(gradients(program, at), jax.grad(exact)(at))) < LIMIT)
    found = gradients(program, at, derivative=jax.hessian)
    assert np.all(np.abs(z_scores(found, jax.hessian(exact)(at))) < LIMIT)


@pytest.mark.parametrize("number", [1, 2])
def test_noise_of_another_shape_than_the_draw(number):
    """A scalar that is a reshaped vector, drawn in lanes too."""

    @ppl.model
    def program(p):
        def lane(i):
            base = dist.MultivariateNormal(p[None] * i, scale_tril=jnp.ones((1, 1)))
            reshape = dist.transforms.ReshapeTransform((), (1,))
            return sample("x", dist.TransformedDistribution(base, reshape))

        return jnp.sum(jax.vmap(lane)(jnp.arange(3.0)))

    def value(p):
        return ppl.run(vi.expectation(program(p), num_samples=number), 0)

    assert jax.grad(value)(jnp.array(0.3)) == 3.0


def test_draws_after_a_discrete_one_share_their_noise():
    """Both values of a site are looked at under the same noise: the difference has no variance."""

    @ppl.model
    def cost(p):
        a = sample("a", dist.Bernoulli(p), grad=vi.mvd())
        x = sample("x", dist.Normal(3.0 * a, 1.0))
        return x

    found = gradients(cost, jnp.array(0.3))
    np.testing.assert_allclose(found, 3.0, atol=1e-12)


def test_default_is_reparameterisation_else_the_score():
    @ppl.model
    def cost(p):
        x = sample("x", dist.Normal(p[0], 1.0))
        k = sample("k", dist.Poisson(p[1]))
        return jnp.sin(x) * k

    at = jnp.array([0.3, 1.4])
    found = gradients(cost, at)
    mean = jnp.exp(-0.5)
    exact = [jnp.cos(0.3) * mean * 1.4, jnp.sin(0.3) * mean]
    assert np.all(np.abs(z_scores(found, exact)) < LIMIT)
    assert sorted(s.address for s in vi.expectation(cost(at)).sites) == ["k", "x"]


def test_the_score_of_a_moving_support_is_refused():
    """The derivative of E x under Uniform(0, p) is 1/2; the score alone would give -p / 2 / p."""
    at = jnp.array([1.5])
    make = single(lambda p: dist.Uniform(0.0, p[0]), vi.reinforce(), lambda x: x)
    with pytest.raises(UnsupportedError, match="reparam"):
        ppl.run(vi.expectation(make(at)), 0)
    fixed = single(lambda p: dist.Uniform(0.0, 1.0), vi.reinforce(), lambda x: x * 2.0)
    assert np.isfinite(ppl.run(vi.expectation(fixed(at)), 0))
    found = gradients(single(lambda p: dist.Uniform(0.0, p[0]), None, lambda x: x), at)
    assert abs(z_scores(found, 0.5)[0]) < LIMIT


def test_measure_valued_refusal():
    with pytest.raises(UnsupportedError, match="reinforce"):
        vi.expectation(single(FAMILIES["Gamma"][0], vi.mvd(), smooth)(jnp.array([1.0, 1.0])))
