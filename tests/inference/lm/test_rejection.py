"""Rejection: exact measures, exact draws, and weights above the bound."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, ResultError
from ppl.inference.lm.rejection import rejection
from tests.inference.lm.tasks import strict, task
from tests.zoo import TWO_COINS_EVIDENCE, two_coins

pytestmark = pytest.mark.usefixtures("x64")


def largest(program):
    """The log of the largest weight of a run."""
    found = ppl.enumerate(ppl.weighted(program)).values.log_weight
    return float(np.max(found))


@hypothesis.settings(max_examples=12)
@hypothesis.given(ppl.check.programs(max_worlds=30))
def test_the_measure_stays(program):
    bound = largest(program)
    report = ppl.check.preserves(lambda p: rejection(p, 2, log_bound=bound), program)
    assert report.false_alarm == 0  # by enumeration
    report.require()


def test_tasks():
    for of in (task(3), task(3, verifier=strict)):
        ppl.check.preserves(lambda p: rejection(p, 2), of.program).require()


def test_accepted_runs_are_exact_draws():
    @ppl.model
    def second(program):
        found = rejection(program, 2)()
        ppl.lm.condition("kept", found.log_weights[1] > -jnp.inf)
        return jax.tree.map(lambda x: x[1], found.values)

    of = task(2).program
    found = ppl.enumerate(second(of)).normalize()
    assert found.total_variation(ppl.enumerate(of).normalize()) < 1e-12


def test_the_share_that_is_accepted():
    found = ppl.run(rejection(two_coins(), 4000, log_bound=0.7), 0)
    share = float(found.steps["accepted"])
    np.testing.assert_allclose(found.log_evidence, 0.7 + np.log(share), rtol=1e-12)
    # |z| < 5 has a false-alarm probability of 6e-7.
    chance = TWO_COINS_EVIDENCE / np.exp(0.7)
    assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / 4000)
    wanted = np.sqrt((1 / share - 1) / 4000)
    np.testing.assert_allclose(found.log_evidence_se, wanted, rtol=1e-12)


@ppl.model
def weighed(log_weight):
    x = ppl.sample("accept", dist.Bernoulli(0.5))
    ppl.factor("w", jnp.where(x == 1, log_weight, -1.0))
    return x


def test_a_weight_above_the_bound_is_refused_by_name():
    found = ppl.run(rejection(weighed(0.2), 64), 0)
    above = np.asarray(found.values) == 1
    assert 0 < above.sum() < 64  # else the seed says nothing
    assert np.all(np.isnan(found.log_weights) == above)
    assert np.isnan(found.log_evidence)
    with pytest.raises(ResultError, match=f"{above.sum()} weights that are NaN"):
        found.expect(lambda x: x)
    ppl.run(rejection(weighed(0.2), 64, log_bound=0.2), 0).expect(lambda x: x)


def test_rounding_is_not_above_the_bound():
    logs = jnp.full(10, jnp.log(1.1))
    bound = float(10 * jnp.log(1.1)) - 1e-15

    @ppl.model
    def program(logs):
        x = ppl.sample("x", dist.Bernoulli(0.3))
        ppl.factor("w", jnp.sum(logs))
        return x

    ppl.check.preserves(lambda p: rejection(p, 2, log_bound=bound), program(logs)).require()


def test_none_accepted():
    never = ppl.run(rejection(weighed(-jnp.inf), 8, log_bound=50.0), 0)
    assert never.log_evidence == -np.inf
    with pytest.raises(ResultError, match="weight zero"):
        never.expect(lambda x: x)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_refusals(number):
    with pytest.raises(ArgumentError, match="num_tries"):
        rejection(two_coins(), number)
