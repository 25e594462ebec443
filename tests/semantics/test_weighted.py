"""`weighted`, `traced`, `trace`: weights whose mean is the evidence, choices that give the run."""

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
    COUNTS,
    NORMAL_DATA,
    TWO_COINS_EVIDENCE,
    beta_binomial,
    beta_binomial_answer,
    branching,
    gamma_poisson,
    gamma_poisson_answer,
    linear_gaussian,
    linear_gaussian_answer,
    normal_normal,
    normal_normal_answer,
    two_coins,
)

pytestmark = pytest.mark.usefixtures("x64")

SERIES = np.array([0.2, -0.4, 1.0])
EVIDENCE = {
    "normal": (lambda: normal_normal(NORMAL_DATA[:2]), normal_normal_answer(NORMAL_DATA[:2])[2]),
    "beta": (lambda: beta_binomial(4), beta_binomial_answer(4)[2]),
    "gamma": (lambda: gamma_poisson(COUNTS), gamma_poisson_answer()[2]),
    "series": (lambda: linear_gaussian(SERIES), linear_gaussian_answer(SERIES)[2]),
    "coins": (two_coins, math.log(TWO_COINS_EVIDENCE)),
    "branch": (branching, math.log(BRANCHING_EVIDENCE)),
}


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("way", ["weighted", "traced"])
def test_mean_weight_is_the_evidence(name, way):
    # Weights are independent, bounded and positive; |z| < 5 has a false-alarm rate of 1e-6.
    make, log_evidence = EVIDENCE[name]
    q = getattr(ppl, way)(make())
    keys = jax.random.split(jax.random.key(1), 20000)
    log_weights = jax.jit(jax.vmap(lambda k: ppl.run(q, k).log_weight))(keys)
    ratios = np.exp(np.asarray(log_weights) - log_evidence)
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / np.sqrt(len(ratios)) + 1e-12


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_trace_is_its_choices(name):
    p = EVIDENCE[name][0]()
    t = ppl.trace(p, 3)
    assert set(t.choices) == set(p.latents)
    again = ppl.trace(ppl.replay(p, t), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), again.value, t.value)
    np.testing.assert_allclose(again.log_weight, t.log_weight, rtol=1e-12)
    one = ppl.run(ppl.weighted(p), 3)
    np.testing.assert_allclose(one.log_weight, t.log_weight, rtol=1e-13)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one.value, t.value)


def test_representations_have_no_scores_left():
    for q in (ppl.weighted(normal_normal(NORMAL_DATA)), ppl.traced(normal_normal(NORMAL_DATA))):
        assert q.structure.open_scores == ()
        assert q.latents == ("mu",)
        again = ppl.run(ppl.weighted(q), 0)
        assert again.log_weight == 0.0


def test_trace_value_is_that_of_run():
    p = ppl.unobserve(linear_gaussian(SERIES))
    np.testing.assert_array_equal(ppl.trace(p, 9).value, ppl.run(p, 9))


def test_presence():
    seen = set()
    for key in range(6):
        t = ppl.trace(branching(), key)
        w = float(t.choices["w"])
        assert t.present.keys() == {"x", "y"}
        assert bool(t.present["x"]) == (w > 0)
        assert bool(t.present["y"]) == (w <= 0)
        assert t.value == t.choices["x" if w > 0 else "y"]
        np.testing.assert_allclose(t.log_weight, -t.choices["x"] if w > 0 else 0.0, atol=1e-15)
        seen.add(w > 0)
    assert seen == {True, False}


def test_traces_nest_and_sit_inside_models():
    @ppl.model
    def outer():
        inner = ppl.traced(normal_normal.program(np.array([0.5])))()
        ppl.factor("again", inner.log_weight)
        return inner.choices["mu"]

    p = outer()
    assert p.latents == ("mu",)
    close = ppl.log_density(normal_normal(np.array([0.5])), {"mu": 0.2})
    np.testing.assert_allclose(ppl.log_density(p, {"mu": 0.2}), close, rtol=1e-12)


def test_while_loops_can_be_weighted_but_not_traced():
    @ppl.model
    def geometric():
        def body(state):
            count, _ = state
            return count + 1, ppl.sample("stop", dist.Bernoulli(0.25))

        return jax.lax.while_loop(lambda s: s[1] == 0, body, (jnp.zeros(()), jnp.zeros((), int)))[0]

    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: ppl.run(geometric(), k)))(keys))
    # Mean 4, variance 12; |z| < 5.
    assert abs(draws.mean() - 4) < 5 * math.sqrt(12 / 4000)
    assert ppl.run(ppl.weighted(geometric()), 0).log_weight == 0
    with pytest.raises(ppl.PPLError, match='"stop"'):
        ppl.trace(geometric(), 0)
