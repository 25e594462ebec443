"""condition, do, replay, unobserve, scale, mask: what each does to the measure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import linear_gaussian, normal_log_density, normal_normal, two_coins

pytestmark = pytest.mark.usefixtures("x64")


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


@ppl.model
def chain(y=None):
    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    b = ppl.sample("b", dist.Normal(a, 0.5))
    c = ppl.sample("c", dist.Normal(b, 2.0), obs=y)
    ppl.deterministic("d", b + 1)
    ppl.factor("f", -b)
    return a, b, c


@ppl.model
def loops(ys):
    """Sites under scan, vmap, and both, in both orders."""

    def step(state, y):
        x = ppl.sample("x", dist.Normal(state, 1.0))
        ppl.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, x

    jax.vmap(lambda row: jax.lax.scan(step, 0.0, row))(ys)

    def other(state, row):
        jax.vmap(lambda y: ppl.sample("z", dist.Normal(y, 2.0), obs=y + 1))(row)
        return state, ppl.sample("w", dist.Dirichlet(jnp.array([2.0, 3.0])))

    jax.lax.scan(other, 0.0, ys.T)


YS = np.arange(6.0).reshape(2, 3) / 5
LOOP_CHOICES = {"x": np.ones((2, 3)) * 0.3 + YS, "w": np.array([[0.2, 0.8]] * 3)}


def test_condition_is_the_joint_density():
    p = chain(np.float64(1.5))
    q = ppl.condition(p, {"a": 0.3})
    close(ppl.log_density(q, {"b": 0.2}), ppl.log_density(p, {"a": 0.3, "b": 0.2}))
    assert q.latents == ("b",)
    assert q.observed == ("a", "c")
    # A run is weighted by p(a) and draws b given a.
    t = ppl.trace(q, 0)
    expected = normal_log_density(0.3) + normal_log_density(1.5, t.choices["b"], 2.0)
    close(t.log_weight, expected - t.choices["b"])
    assert t.value[0] == 0.3


@pytest.mark.parametrize("address", ["x", "w"])
def test_condition_in_loops(address):
    p = loops(YS)
    rest = {a: v for a, v in LOOP_CHOICES.items() if a != address}
    q = ppl.condition(p, {address: LOOP_CHOICES[address]})
    assert q.sites[address].observed
    assert q.sites[address].shape == p.sites[address].shape
    close(ppl.log_density(q, rest), ppl.log_density(p, LOOP_CHOICES))


def test_condition_changes_no_other_draw():
    p = chain()
    one, two = ppl.trace(p, 5), ppl.trace(ppl.condition(p, {"a": ppl.trace(p, 5).choices["a"]}), 5)
    close(one.choices["b"], two.choices["b"])
    close(one.choices["c"], two.choices["c"])


def test_do_cuts_the_causes():
    p = chain(np.float64(1.5))
    q = ppl.do(p, {"b": 0.2})
    assert q.latents == ("a",)
    expected = normal_log_density(0.7) + normal_log_density(1.5, 0.2, 2.0) - 0.2
    close(ppl.log_density(q, {"a": 0.7}), expected)
    # An observation can be set too, and a deterministic: nothing is scored for them.
    r = ppl.do(p, {"c": 9.0, "d": 4.0})
    close(
        ppl.log_density(r, {"a": 0.7, "b": 0.2}),
        normal_log_density(0.7) + normal_log_density(0.2, 0.7, 0.5) - 0.2,
    )
    t = ppl.trace(r, 0)
    assert t.value[2] == 9.0
    assert t.deterministics["d"] == 4.0


def test_do_in_loops():
    q = ppl.do(loops(YS), {"x": LOOP_CHOICES["x"]})
    expected = normal_log_density(YS, LOOP_CHOICES["x"], 0.5) + normal_log_density(YS + 1, YS, 2.0)
    weights = 3 * float(dist.Dirichlet(jnp.array([2.0, 3.0])).log_prob(jnp.array([0.2, 0.8])))
    close(ppl.log_density(q, {"w": LOOP_CHOICES["w"]}), expected + weights)


def test_replay_scores_nothing_and_keeps_the_choice():
    p = chain(np.float64(1.5))
    t = ppl.trace(p, 3)
    q = ppl.replay(p, t)
    assert q.latents == ("a", "b")
    again = ppl.trace(q, 99)
    close(again.value[0], t.value[0])
    close(again.value[1], t.value[1])
    close(again.log_weight, t.log_weight)
    part = ppl.trace(ppl.replay(p, {"a": 10.0}), 0)
    assert part.choices["a"] == 10.0
    # A point mass: density 1 there, 0 elsewhere.
    close(
        ppl.log_density(ppl.replay(p, {"a": 1.0}), {"a": 1.0, "b": 1.0}),
        normal_log_density(1.0, 1.0, 0.5) + normal_log_density(1.5, 1.0, 2.0) - 1,
    )
    assert ppl.log_density(ppl.replay(p, {"a": 1.0}), {"a": 1.1, "b": 1.0}) == -np.inf


def test_replay_of_counts_and_loops():
    t = ppl.trace(ppl.replay(two_coins(), {"a": 1}), 0)
    assert t.choices["a"] == 1
    assert t.choices["a"].dtype == two_coins().sites["a"].dtype
    again = ppl.trace(ppl.replay(loops(YS), LOOP_CHOICES), 1)
    close(again.choices["x"], LOOP_CHOICES["x"])
    close(again.choices["w"], LOOP_CHOICES["w"])


def test_unobserve_makes_latents():
    p = chain(np.float64(1.5))
    q = ppl.unobserve(p)
    assert q.latents == ("a", "b", "c")
    choices = {"a": 0.1, "b": 0.2, "c": 1.5}
    close(ppl.log_density(q, choices), ppl.log_density(p, {"a": 0.1, "b": 0.2}))
    assert ppl.trace(q, 0).value[2] != 1.5
    both = ppl.unobserve(loops(YS), ["z"])
    close(
        ppl.log_density(both, {**LOOP_CHOICES, "z": YS.T + 1}),
        ppl.log_density(loops(YS), LOOP_CHOICES),
    )
    assert both.observed == ("y",)


def test_scale_is_a_power_of_the_density():
    p = chain(np.float64(1.5))
    at = {"a": 0.3, "b": -0.2}
    terms = {
        "a": normal_log_density(0.3),
        "b": normal_log_density(-0.2, 0.3, 0.5),
        "c": normal_log_density(1.5, -0.2, 2.0),
        "f": 0.2,
    }
    close(ppl.log_density(ppl.scale(p, 0.25), at), 0.25 * sum(terms.values()))
    for address, term in terms.items():
        scaled = ppl.scale(p, 3.0, [address])
        close(ppl.log_density(scaled, at), sum(terms.values()) + 2 * term)
        twice = ppl.scale(scaled, 0.5, address)
        close(ppl.log_density(twice, at), sum(terms.values()) + 0.5 * term)
    close(ppl.log_density(ppl.scale(p, 0.0, ["c", "f"]), at), terms["a"] + terms["b"])
    gradient = jax.grad(lambda s: ppl.log_density(ppl.scale(p, s, ["c"]), at))(0.7)
    close(gradient, terms["c"])


def test_scaled_latents_are_weighted_by_the_rest_of_the_power():
    p = ppl.scale(chain(np.float64(1.5)), 0.25, ["a"])
    t = ppl.trace(p, 0)
    a, b = t.choices["a"], t.choices["b"]
    expected = -0.75 * normal_log_density(a) + normal_log_density(1.5, b, 2.0) - b
    close(t.log_weight, expected)


@pytest.mark.parametrize("address", ["x", "y", "z", "w"])
def test_scale_in_loops(address):
    p = loops(YS)
    total = float(ppl.log_density(p, LOOP_CHOICES))
    without = float(ppl.log_density(ppl.scale(p, 0.0, [address]), LOOP_CHOICES))
    half = ppl.log_density(ppl.scale(p, 0.5, [address]), LOOP_CHOICES)
    close(half, (total + without) / 2)
    parts = {
        "x": normal_log_density(
            LOOP_CHOICES["x"], np.hstack([np.zeros((2, 1)), LOOP_CHOICES["x"][:, :-1]])
        ),
        "y": normal_log_density(YS, LOOP_CHOICES["x"], 0.5),
        "z": normal_log_density(YS + 1, YS, 2.0),
    }
    if address in parts:
        close(total - without, parts[address])


def test_zero_scale_of_impossible_data_weighs_nothing():
    m = ppl.model(lambda y: ppl.sample("y", dist.HalfNormal(1.0), obs=y * 1.0))
    assert ppl.log_density(m(np.float64(-1.0)), {}) == -np.inf
    assert ppl.log_density(ppl.scale(m(np.float64(-1.0)), 0.0), {}) == 0.0


def test_mask_leaves_elements_out():
    y = np.array([0.5, 1.0, 2.0])
    keep = np.array([True, False, True])
    p = normal_normal(y)
    got = ppl.log_density(ppl.mask(p, keep), {"mu": 0.2})
    close(got, normal_log_density(0.2, 1.0, 2.0) + normal_log_density(y[keep], 0.2, 0.5))
    none = ppl.log_density(ppl.mask(p, False), {"mu": 0.2})
    close(none, normal_log_density(0.2, 1.0, 2.0))
    close(ppl.log_density(ppl.mask(p, True), {"mu": 0.2}), ppl.log_density(p, {"mu": 0.2}))


def test_mask_in_loops_and_of_factors():
    keep = np.array([[True, False, True], [False, False, True]])
    p = loops(YS)
    without = ppl.log_density(ppl.scale(p, 0.0, ["y"]), LOOP_CHOICES)
    got = ppl.log_density(ppl.mask(p, keep, ["y"]), LOOP_CHOICES)
    close(got - without, normal_log_density(YS[keep], LOOP_CHOICES["x"][keep], 0.5))
    got = ppl.log_density(ppl.mask(p, keep.T, ["z"]), LOOP_CHOICES)
    without = ppl.log_density(ppl.scale(p, 0.0, ["z"]), LOOP_CHOICES)
    close(got - without, normal_log_density(YS[keep] + 1, YS[keep], 2.0))
    q = ppl.mask(chain(np.float64(1.0)), False, ["f"])
    at = {"a": 0.1, "b": 0.2}
    close(ppl.log_density(q, at), ppl.log_density(chain(np.float64(1.0)), at) + 0.2)


def test_masked_out_impossible_data_weigh_nothing():
    @ppl.model
    def m(y):
        with ppl.plate("n", 2):
            ppl.sample("y", dist.HalfNormal(1.0), obs=y * 1.0)

    got = ppl.log_density(ppl.mask(m(np.array([-1.0, 0.5])), np.array([False, True])), {})
    close(got, np.log(2) + normal_log_density(0.5))


def test_handlers_compose_and_leave_the_program_alone():
    p = linear_gaussian(np.array([0.1, 0.2]))
    x = np.array([0.3, -0.1])
    before = float(ppl.log_density(p, {"x": x}))
    q = ppl.condition(ppl.scale(ppl.unobserve(p, ["y"]), 2.0, ["y"]), {"y": [0.1, 0.2]})
    likelihood = normal_log_density([0.1, 0.2], x, 0.4)
    close(ppl.log_density(q, {"x": x}), before + likelihood)
    assert float(ppl.log_density(p, {"x": x})) == before


def test_handlers_inside_transformations():
    p = chain(np.float64(1.5))
    values = np.array([0.1, 0.5])
    got = jax.vmap(lambda a: ppl.log_density(ppl.condition(p, {"a": a}), {"b": 0.3}))(values)
    close(got, [ppl.log_density(p, {"a": a, "b": 0.3}) for a in values])
    got = jax.jit(lambda a: ppl.trace(ppl.do(p, {"a": a}), 0).value[0])(0.7)
    assert got == 0.7
