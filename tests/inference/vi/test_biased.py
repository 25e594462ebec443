"""Estimators that are declared biased: right where they say so, and found out elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from tests.inference.vi.finite_sums import mean

pytestmark = pytest.mark.usefixtures("x64")
vi, sample = ppl.vi, ppl.sample
AT = np.array([0.3, -0.6, 0.1])


def linear(x):
    return 2.0 * x[0] - x[1] + 0.5 * x[2]


def curved(x):
    return (x @ jnp.array([1.0, 2.0, -1.0])) ** 3


def one_hot(cost, grad):
    @ppl.model
    def program(th):
        return cost(sample("x", dist.Multinomial(1, jax.nn.softmax(th)), grad=grad))

    return program


def bernoulli(cost, grad):
    @ppl.model
    def program(th):
        with ppl.plate("n", 3):
            return cost(sample("x", dist.Bernoulli(logits=th), grad=grad))

    return program


@pytest.mark.parametrize("make", [one_hot, bernoulli])
def test_straight_through_is_exact_for_linear_costs_only(make):
    for cost, holds in ((linear, True), (curved, False)):
        p = np.array(jax.nn.softmax(AT) if make is one_hot else jax.nn.sigmoid(AT))
        if make is one_hot:
            exact = jax.grad(lambda th, c=cost: jax.nn.softmax(th) @ jax.vmap(c)(jnp.eye(3)))(AT)
        else:
            table = np.array(list(np.ndindex(2, 2, 2)), float)

            def total(th, c=cost, table=table):
                q = jax.nn.sigmoid(th)
                chance = jnp.prod(jnp.where(table == 1, q, 1 - q), 1)
                return chance @ jax.vmap(c)(table)

            exact = jax.grad(total)(AT)
        estimate = vi.grad_estimate(make(cost, vi.straight_through()))(AT)
        report = ppl.check.unbiased(estimate, exact)
        assert report.false_alarm == 0
        assert report.passed == holds, (report, p)


@pytest.mark.parametrize("make", [one_hot, bernoulli])
def test_relaxed_draws_come_near_as_the_temperature_falls(make):
    """The hard draws are exact in value; the soft ones are biased, less so when colder."""
    keys = jax.random.split(jax.random.key(0), 20_000)

    def draws(grad):
        program = vi.expectation(make(curved, grad)(AT))
        return np.asarray(jax.jit(jax.vmap(lambda k: ppl.run(program, k)))(keys))

    exact = float(ppl.enumerate(make(curved, None)(AT)).expect(lambda v: v))

    def z(x):
        return (x.mean() - exact) / (x.std() / np.sqrt(len(x)))

    assert abs(z(draws(vi.gumbel_softmax(0.5, hard=True)))) < 4.9
    warm, cold = (draws(vi.gumbel_softmax(t)) for t in (1.0, 0.1))
    assert abs(z(warm)) > 10
    assert abs(cold.mean() - exact) < 0.5 * abs(warm.mean() - exact)


def test_the_derivative_of_relaxed_draws_is_that_of_the_relaxed_expectation():
    def value(th, key):
        return ppl.run(vi.expectation(one_hot(curved, vi.gumbel_softmax(0.7))(th)), key)

    key, step = jax.random.key(3), 1e-5
    found = jax.grad(value)(AT, key)
    differences = [
        (value(AT + step * e, key) - value(AT - step * e, key)) / (2 * step) for e in np.eye(3)
    ]
    np.testing.assert_allclose(found, differences, rtol=1e-5, atol=1e-8)


def test_the_program_itself_draws_zeros_and_ones():
    for grad in (vi.straight_through(), vi.gumbel_softmax(0.5)):
        program = one_hot(linear, grad)(AT)
        assert program.sites["x"].dtype == np.float64
        plain = ppl.enumerate(one_hot(linear, None)(AT))
        assert ppl.enumerate(program).total_variation(plain) < 1e-12


def test_ignoring_is_biased_unless_nothing_depends_on_parameters():
    @ppl.model
    def cost(th, grad):
        return sample("x", dist.Bernoulli(jax.nn.sigmoid(th)), grad=grad) * th

    at = np.array(0.4)
    exact = jax.grad(mean(lambda th: cost(th, None), at))(at)
    estimate = vi.grad_estimate(lambda th: cost(th, vi.ignore()))(at)
    assert not ppl.check.unbiased(estimate, exact).passed
    np.testing.assert_allclose(
        ppl.enumerate(estimate).expect(lambda g: g), jax.nn.sigmoid(0.4), atol=1e-10
    )


def test_refusals():
    with pytest.raises(ArgumentError, match="positive"):
        vi.gumbel_softmax(0.0)

    @ppl.model
    def whole(th, grad):
        return 1.0 * sample("x", dist.Categorical(logits=th), grad=grad)

    for grad in (vi.straight_through(), vi.gumbel_softmax(0.5)):
        with pytest.raises(UnsupportedError, match="one-hot"):
            vi.expectation(whole(AT, grad))
        chosen = vi.estimators(one_hot(linear, None)(AT), {"x": grad})
        with pytest.raises(UnsupportedError, match="No derivative passes an integer"):
            vi.expectation(chosen)
