"""`expectation` and its estimators: how they are chosen, compiled, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, OpenObservationsError, UnsupportedError
from tests.compiling import compilations
from tests.inference.vi.finite_sums import mean
from tests.inference.vi.test_expectation import AT, scanned, straight, with_estimators

pytestmark = pytest.mark.usefixtures("x64")
vi, sample, B = ppl.vi, ppl.sample, dist.Bernoulli
sigmoid = jax.nn.sigmoid


def test_estimators_are_chosen_from_outside():
    cost = with_estimators(straight, "reinforce")
    chosen = vi.estimators(cost(AT), {"a": vi.enum(), "b": vi.enum()})
    exact = mean(cost, AT)(AT)
    np.testing.assert_allclose(ppl.run(vi.expectation(chosen), 0), exact, atol=1e-10)
    assert ppl.enumerate(chosen).total_variation(ppl.enumerate(cost(AT))) < 1e-12
    with pytest.raises(AddressError, match="estimators got"):
        vi.estimators(cost(AT), {"c": vi.enum()})
    with pytest.raises(ArgumentError, match="gradient estimator"):
        vi.estimators(cost(AT), {"a": "enum"})


def test_new_parameters_compile_nothing():
    cost = with_estimators(scanned, "enum")
    slope = jax.jit(jax.grad(lambda th, key: ppl.run(vi.expectation(cost(th)), key)))
    slope(AT, jax.random.key(0))
    ppl.run(vi.expectation(cost(AT)), 0)
    with compilations() as found:
        slope(AT + 1, jax.random.key(1))
        ppl.run(vi.expectation(cost(AT + 1)), 1)
    assert found.count == 0


def test_second_derivatives_by_differences_are_refused():
    cost = with_estimators(straight, "mvd")
    with pytest.raises(UnsupportedError, match="differentiated twice"):
        jax.hessian(lambda th: ppl.run(vi.expectation(cost(th)), 0))(AT)


def test_refusals():
    @ppl.model
    def scores(th):
        ppl.factor("f", th)
        return th

    @ppl.model
    def vector(th):
        return th * jnp.ones(2)

    @ppl.model
    def looped(th):
        return lax.while_loop(lambda x: x > 0, lambda x: sample("x", B(sigmoid(th))) * 1.0, 1.0)

    @ppl.model
    def single(th, grad):
        return sample("x", B(sigmoid(th)), grad=grad) * 1.0

    @ppl.model
    def seen(th):
        sample("x", B(sigmoid(th)), obs=jnp.array(1), grad=vi.enum())

    th = jnp.array(0.1)
    with pytest.raises(OpenObservationsError, match="elbo"):
        vi.expectation(scores(th))
    with pytest.raises(ArgumentError, match="one real number"):
        vi.expectation(vector(th))
    with pytest.raises(UnsupportedError, match="while_loop"):
        vi.expectation(looped(th))
    for wrong in (vi.reparam(), vi.implicit()):
        with pytest.raises(UnsupportedError, match="enum"):
            vi.expectation(single(th, wrong))
    with pytest.raises(ArgumentError, match="two samples"):
        vi.expectation(single(th, vi.reinforce(baseline="leave_one_out")))
    with pytest.raises(UnsupportedError, match="one number"):
        vi.expectation(single(th, vi.reinforce(baseline=jnp.ones(3))))
    with pytest.raises(ArgumentError, match="observed"):
        seen(th)
    with pytest.raises(ArgumentError, match="gradient estimator"):
        single(th, "enum")
    with pytest.raises(ArgumentError, match="leave_one_out"):
        vi.reinforce(baseline="loo")
    with pytest.raises(ArgumentError, match="learn"):
        vi.reinforce(learn=True)
    with pytest.raises(ArgumentError, match="grad_estimate"):
        vi.grad_estimate(single(th, None))
    with pytest.raises(ArgumentError, match="num_samples"):
        vi.expectation(single(th, None), num_samples=0)
