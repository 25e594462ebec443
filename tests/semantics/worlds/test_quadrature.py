"""Continuous sites by quadrature: against closed forms, with an honest error estimate."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose
from scipy import integrate, special, stats

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from ppl.semantics.worlds.quadrature import tanh_sinh
from tests import zoo

pytestmark = pytest.mark.usefixtures("x64")


def one_site(d, nodes=64):
    return ppl.enumerate(ppl.model(lambda: ppl.sample("x", d))(), quadrature={"x": nodes})


SITES = {
    "normal": (dist.Normal(0.5, 2.0), stats.norm(0.5, 2.0)),
    "uniform": (dist.Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "exponential": (dist.Exponential(2.0), stats.expon(scale=0.5)),
    "gamma": (dist.Gamma(2.5, 1.5), stats.gamma(2.5, scale=1 / 1.5)),
    "beta": (dist.Beta(2.0, 3.5), stats.beta(2.0, 3.5)),
    "student": (dist.StudentT(9.0, 0.5, 1.5), stats.t(9.0, 0.5, 1.5)),
    "cauchy": (dist.Cauchy(0.5, 1.5), stats.cauchy(0.5, 1.5)),
    "half_cauchy": (dist.HalfCauchy(1.5), stats.halfcauchy(scale=1.5)),
    "half_normal": (dist.HalfNormal(1.5), stats.halfnorm(scale=1.5)),
    "log_normal": (dist.LogNormal(0.3, 0.8), stats.lognorm(0.8, scale=math.exp(0.3))),
    "truncated": (
        dist.TruncatedNormal(0.5, 1.0, low=-0.3, high=2.0),
        stats.truncnorm(-0.8, 1.5, 0.5, 1.0),
    ),
    "logistic": (dist.Logistic(0.5, 1.5), stats.logistic(0.5, 1.5)),
}
HEAVY = ("cauchy", "half_cauchy")


@pytest.mark.parametrize("name", SITES)
def test_moments_and_probabilities_are_those_of_the_distribution(name):
    ours, theirs = SITES[name]
    measure = one_site(ours, 128)
    assert_allclose(measure.total_mass, 1.0, rtol=1e-10)
    bounded = lambda x: 1 / (1 + x**2)  # noqa: E731
    density = lambda u: bounded(theirs.ppf(u))  # noqa: E731
    wanted, _ = integrate.quad(density, 0, 1, epsabs=1e-12, epsrel=1e-12, limit=400)
    assert_allclose(measure.expect(bounded), wanted, rtol=1e-7)
    if name not in HEAVY:
        mean, variance = theirs.stats("mv")
        assert_allclose(measure.expect(lambda x: x), mean, rtol=1e-7)
        assert_allclose(measure.expect(lambda x: (x - mean) ** 2), variance, rtol=1e-7)


def test_evidence_and_posterior_of_the_conjugate_models_of_the_zoo():
    normal = zoo.normal_normal_answer()
    measure = ppl.enumerate(
        zoo.normal_normal(jnp.asarray(zoo.NORMAL_DATA, float)), quadrature={"mu": 128}
    )
    assert_allclose(measure.log_evidence, normal.log_evidence, rtol=1e-9)
    posterior = measure.normalize()
    assert_allclose(posterior.expect(lambda x: x), normal.mean, rtol=1e-9)
    assert_allclose(posterior.expect(lambda x: (x - normal.mean) ** 2), normal.sd**2, rtol=1e-9)
    beta = zoo.beta_binomial_answer(7)
    measure = ppl.enumerate(zoo.beta_binomial(jnp.array(7)), quadrature={"p": 64})
    assert_allclose(measure.log_evidence, beta.log_evidence, rtol=1e-9)
    gamma = zoo.gamma_poisson_answer()
    measure = ppl.enumerate(zoo.gamma_poisson(jnp.array(zoo.COUNTS)), quadrature={"rate": 64})
    assert_allclose(measure.log_evidence, gamma.log_evidence, rtol=1e-9)


@pytest.mark.parametrize("nodes", [9, 13, 17, 25, 33, 65])
def test_the_error_estimate_covers_the_error_of_smooth_integrands(nodes):
    """log evidence of x ~ N(0, 1), 1 seen with sd 0.8: N(1; 0, 1 + 0.64)."""

    def model():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 0.8), obs=1.0)
        return x

    measure = ppl.enumerate(ppl.model(model)(), quadrature={"x": nodes})
    error = abs(measure.total_mass - stats.norm(0, math.sqrt(1.64)).pdf(1.0))
    estimate = measure.quadrature_error()
    assert error <= estimate + 1e-13
    if nodes >= 33:
        assert estimate < 1e-3


def test_finite_programs_have_no_quadrature_error():
    measure = ppl.enumerate(zoo.two_coins())
    assert measure.quadrature_error() == 0.0
    assert measure.quadrature_error(lambda v: {"a": v[0]}) == {"a": 0.0}


def test_the_error_estimate_goes_through_pushforwards_and_posteriors():
    measure = one_site(dist.Normal(0.0, 1.0), 9).normalize()
    square = measure.pushforward(lambda x: x**2)
    assert square.quadrature_error(lambda x: x) == pytest.approx(
        measure.quadrature_error(lambda x: x**2), rel=1e-9
    )
    assert square.quadrature_error(lambda x: x) > 0
    assert measure.condition(lambda x: x > 0).quadrature_error(lambda x: x) > 0


def test_discrete_and_continuous_sites_mix():
    """A mixture of two normals seen once in a scan of two; k is what is asked for."""

    @ppl.model
    def model(y):
        k = ppl.sample("k", dist.Bernoulli(0.3))
        mu = ppl.sample("mu", dist.Normal(2.0 * k, 1.0))

        def step(c, y):
            ppl.sample("y", dist.Normal(mu, 0.5), obs=y)
            return c, None

        lax.scan(step, 0, y)
        return k

    y = np.array([1.4, 0.9])
    measure = ppl.enumerate(model(jnp.array(y)), quadrature={"mu": 128})
    covariance = 0.25 * np.eye(2) + 1.0
    for k, p in ((0, 0.7), (1, 0.3)):
        wanted = p * stats.multivariate_normal(np.full(2, 2.0 * k), covariance).pdf(y)
        assert_allclose(measure.mass(k), wanted, rtol=1e-9)


def test_parameters_may_be_drawn_vectors_and_absent():
    def model():
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0))
        x = ppl.sample("x", dist.Normal(jnp.stack([loc, -loc]), jnp.array([0.5, 2.0])).to_event(1))
        scale = ppl.sample("b", dist.Bernoulli(0.5))
        z = lax.cond(scale == 1, lambda: ppl.sample("z", dist.Exponential(2.0)), lambda: 0.0)
        return x.sum() + z

    nodes = {"loc": 17, "x": 17, "z": 17}
    measure = ppl.enumerate(ppl.model(model)(), quadrature=nodes, max_worlds=10**6)
    assert_allclose(measure.total_mass, 1.0, atol=1e-6)
    assert_allclose(measure.expect(lambda v: v), 0.25, atol=1e-4)


def test_nodes_that_are_almost_zero_are_not_taken_for_zero():
    """E[log x] of a Gamma(0.3) is digamma(0.3); most of it is from x far below 1e-9."""

    def model():
        x = ppl.sample("x", dist.Gamma(0.3, 1.0))

        def step(c, _):
            return c + ppl.sample("b", dist.Bernoulli(0.5)) * jnp.log(x), None

        return x, lax.scan(step, 0.0, None, length=2)[0]

    measure = ppl.enumerate(ppl.model(model)(), quadrature={"x": 128})
    assert_allclose(measure.expect(lambda v: v[1]), special.digamma(0.3), rtol=1e-9)
    assert_allclose(measure.expect(lambda v: jnp.log(v[0])), special.digamma(0.3), rtol=1e-9)


def test_scaled_sites_integrate_a_power_of_the_density():
    """The integral of N(x; 0, s)^2 is 1 / (2 s sqrt(pi))."""
    program = ppl.model(lambda: ppl.sample("x", dist.Normal(0.0, 1.5)))()
    squared = ppl.scale(program, 2.0, ["x"])
    measure = ppl.enumerate(squared, quadrature={"x": 64})
    assert_allclose(measure.total_mass, 1 / (3.0 * math.sqrt(math.pi)), rtol=1e-9)


def test_the_rule_integrates_polynomials_on_the_unit_interval():
    u, weights, coarse = tanh_sinh(65, np.float64)
    for k in range(6):
        assert_allclose(np.sum(weights * u**k), 1 / (k + 1), rtol=1e-10)
        assert_allclose(np.sum(coarse * u**k), 1 / (k + 1), rtol=1e-8)
    assert np.all(coarse[1::2] == 0)


def test_distributions_without_quantiles_are_refused_by_name():
    with pytest.raises(UnsupportedError, match=r'MultivariateNormal at "x".*independent numbers'):
        one_site(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    with pytest.raises(UnsupportedError, match=r'Dirichlet at "x".*ppl.importance'):
        one_site(dist.Dirichlet(jnp.ones(3)))
    with pytest.raises(UnsupportedError, match=r'VonMises at "x".*icdf or cdf.*Normal or Uniform'):
        one_site(dist.VonMises(0.0, 1.0))


@pytest.mark.parametrize("bad", [4, 2.5, True, "64"])
def test_numbers_of_nodes_are_checked(bad):
    with pytest.raises(ArgumentError, match=r'at least 5, for a continuous site.*\{"x": 64\}'):
        one_site(dist.Normal(0.0, 1.0), bad)
