"""Importance sampling: unbiased evidence, calibrated errors, proposals."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import (
    BRANCHING_EVIDENCE,
    TWO_COINS,
    TWO_COINS_EVIDENCE,
    beta_binomial,
    beta_binomial_answer,
    branching,
    normal_normal,
    normal_normal_answer,
    two_coins,
)

pytestmark = pytest.mark.usefixtures("x64")

Y = np.array([0.3, 0.9])
ANSWER = normal_normal_answer(Y)


@ppl.model
def guide(loc, sd):
    ppl.sample("mu", dist.Normal(loc, sd))


@ppl.model
def branch_guide():
    ppl.sample("x", dist.Gamma(3.0, 2.0))
    ppl.sample("y", dist.Uniform(-1.0, 4.0))


@ppl.model
def coin_guide():
    ppl.sample("b", dist.Bernoulli(0.5))


CASES = {
    "prior": (lambda: normal_normal(Y), None, ANSWER.log_evidence),
    "proposal": (lambda: normal_normal(Y), lambda: guide(0.5, 1.0), ANSWER.log_evidence),
    "coins": (two_coins, None, math.log(TWO_COINS_EVIDENCE)),
    "coins, part proposed": (two_coins, coin_guide, math.log(TWO_COINS_EVIDENCE)),
    "branch": (branching, None, math.log(BRANCHING_EVIDENCE)),
    # The proposal is wider than y's support and draws sites that may be absent.
    "branch, proposed": (branching, branch_guide, math.log(BRANCHING_EVIDENCE)),
    "beta": (lambda: beta_binomial(3), None, beta_binomial_answer(3).log_evidence),
}


def replicate(q, count, fun, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda k: fun(ppl.run(q, k))))(keys))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_particles", [1, 8])
def test_evidence_is_unbiased(case, num_particles):
    # 5000 independent estimates; |z| < 5 has a false-alarm rate of 1e-6.
    make, proposal, log_evidence = CASES[case]
    q = ppl.importance(make(), num_particles, proposal=proposal and proposal())
    z = np.exp(replicate(q, 5000, lambda p: p.log_evidence) - log_evidence)
    assert abs(z.mean() - 1) < 5 * z.std() / np.sqrt(len(z))
    assert 0 < z.std() < 3


def test_weighted_sums_are_unbiased_for_the_unnormalised_measure():
    def masses(p):
        a, b = p.choices["a"], p.choices["b"]
        hit = jnp.stack([(a == i) & (b == j) for i, j in TWO_COINS])
        return jnp.exp(p.log_evidence) * hit @ p.weights

    q = ppl.importance(two_coins(), 4, proposal=coin_guide())
    found = replicate(q, 5000, masses)
    error = found.std(0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - [*TWO_COINS.values()]) < 5 * error)


def test_the_posterior_as_proposal_gives_the_evidence_exactly():
    q = ppl.importance(normal_normal(Y), 7, proposal=guide(ANSWER.mean, ANSWER.sd))
    p = ppl.run(q, 0)
    np.testing.assert_allclose(p.log_weights, ANSWER.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(p.log_evidence, ANSWER.log_evidence, rtol=1e-12)
    np.testing.assert_allclose(p.ess, 7, rtol=1e-12)


def test_weights_written_out():
    p = ppl.run(ppl.importance(normal_normal(Y), 5, proposal=guide(0.5, 1.0)), 1)
    joint = jax.vmap(lambda mu: ppl.log_density(normal_normal(Y), {"mu": mu}))(p.choices["mu"])
    proposed = dist.Normal(0.5, 1.0).log_prob(p.choices["mu"])
    np.testing.assert_allclose(p.log_weights, joint - proposed, rtol=1e-12)
    np.testing.assert_array_equal(p.values, p.choices["mu"])
    assert len(np.unique(p.values)) == 5


def test_absent_proposed_sites_weigh_nothing():
    p = ppl.run(ppl.importance(branching(), 200, proposal=branch_guide()), 0)
    assert set(p.choices) == {"w", "x", "y"}
    w, x, y = (np.asarray(p.choices[a]) for a in "wxy")
    np.testing.assert_array_equal(p.present["x"], w > 0)
    np.testing.assert_array_equal(p.present["y"], w <= 0)
    x = np.where(w > 0, x, 1.0)  # a placeholder where it is absent
    gamma = np.asarray(dist.Gamma(2.0, 2.0).log_prob(x) - dist.Gamma(3.0, 2.0).log_prob(x)) - x
    uniform = np.where((y > 0) & (y < 3), math.log(5 / 3), -np.inf)
    np.testing.assert_allclose(p.log_weights, np.where(w > 0, gamma, uniform), rtol=1e-10)


def test_standard_errors_are_calibrated():
    # 2000 runs of 400 particles: the z-scores of the posterior mean have variance 1 up to
    # O(1 / 400) bias of self-normalisation. Variance of a sample variance is 2 / n; 5 sigma,
    # plus that bias.
    q = ppl.importance(normal_normal(Y), 400, proposal=guide(0.5, 0.6))
    value, error = replicate(q, 2000, lambda p: tuple(p.expect("mu")))
    z = (value - ANSWER.mean) / error
    assert abs(z.mean()) < 5 / np.sqrt(2000) + 0.01
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / 2000) + 0.01


def test_proposals_in_loops():
    @ppl.model
    def m(ys):
        def step(c, y):
            x = ppl.sample("x", dist.Normal(c, 1.0))
            ppl.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, x

        return jax.lax.scan(step, 0.0, ys)[1]

    @ppl.model
    def q():
        with ppl.plate("t", 3):
            ppl.sample("x", dist.Normal(0.2, 1.5))

    ys = np.array([0.1, 0.4, -0.2])
    p = ppl.run(ppl.importance(m(ys), 4, proposal=q()), 0)
    joint = jax.vmap(lambda x: ppl.log_density(m(ys), {"x": x}))(p.choices["x"])
    proposed = dist.Normal(0.2, 1.5).log_prob(p.choices["x"]).sum(-1)
    np.testing.assert_allclose(p.log_weights, joint - proposed, rtol=1e-12)


def test_a_proposal_in_the_same_loop_reads_the_data():
    @ppl.model
    def m(ys):
        def step(c, y):
            x = ppl.sample("x", dist.Normal(c, 1.0))
            ppl.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, x

        return jax.lax.scan(step, 0.0, ys)[1]

    @ppl.model
    def q(ys):
        """Each state given the one before and its datum: precisions 1 and 4."""

        def step(c, y):
            return ppl.sample("x", dist.Normal((c + 4 * y) / 5, math.sqrt(1 / 5))), None

        jax.lax.scan(step, 0.0, ys)

    ys = np.array([0.1, 0.4, -0.2])
    p = ppl.run(ppl.importance(m(ys), 4, proposal=q(ys)), 0)
    assert set(p.choices) == {"x"}
    joint = jax.vmap(lambda x: ppl.log_density(m(ys), {"x": x}))(p.choices["x"])
    proposed = jax.vmap(lambda x: ppl.log_density(q(ys), {"x": x}))(p.choices["x"])
    np.testing.assert_allclose(p.log_weights, joint - proposed, rtol=1e-12)
    # With one datum it is the posterior.
    p = ppl.run(ppl.importance(m(ys[:1]), 4, proposal=q(ys[:1])), 0)
    np.testing.assert_allclose(p.log_evidence, dist.Normal(0.0, math.sqrt(1.25)).log_prob(0.1))
    np.testing.assert_allclose(p.ess, 4, rtol=1e-12)


def test_a_proposal_that_is_never_possible():
    far = ppl.model(lambda: ppl.sample("u", dist.Uniform(2.0, 3.0)))()
    near = ppl.model(lambda: ppl.sample("u", dist.Uniform(0.0, 1.0)))()
    p = ppl.run(ppl.importance(near, 3, proposal=far), 0)
    np.testing.assert_array_equal(p.log_weights, [-np.inf] * 3)
    assert p.log_evidence == -np.inf
    np.testing.assert_array_equal(p.weights, 0.0)


def test_programs_with_unbounded_loops():
    @ppl.model
    def m():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        _, total = jax.lax.while_loop(
            lambda s: s[0] < 3,
            lambda s: (s[0] + 1, s[1] + ppl.sample("w", dist.Normal(0.0, 1.0))),
            (0, 0.0),
        )
        ppl.factor("f", -(total**2))
        return x

    p = ppl.run(ppl.importance(m(), 50), 0)
    assert p.log_weights.shape == (50,)
    assert len(np.unique(p.log_weights)) == 50
    proposal = ppl.model(lambda: ppl.sample("x", dist.Normal(0.0, 2.0)))()
    try:
        guided = ppl.run(ppl.importance(m(), 50, proposal=proposal), 0)
    except ppl.PPLError:
        return
    assert guided.log_weights.shape == (50,)


def test_importance_nests_in_a_model():
    @ppl.model
    def outer():
        inner = ppl.importance(normal_normal.program(Y), 16, proposal=guide.program(0.5, 0.6))()
        ppl.factor("evidence", inner.log_evidence)
        return inner.expect("mu").value

    # The extended space has the evidence as its mass: pseudo-marginal unbiasedness.
    keys = jax.random.split(jax.random.key(3), 4000)
    q = ppl.weighted(outer())
    z = np.exp(np.asarray(jax.jit(jax.vmap(lambda k: ppl.run(q, k).log_weight))(keys)))
    z = z / math.exp(ANSWER.log_evidence)
    assert abs(z.mean() - 1) < 5 * z.std() / np.sqrt(len(z))
