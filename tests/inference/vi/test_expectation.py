"""`expectation` and `grad_estimate`: unbiased to 1e-10, whatever stands around the draws."""

import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from tests.inference.vi.finite_sums import mean, refuse_bias

pytestmark = pytest.mark.usefixtures("x64")
vi, sample, B = ppl.vi, ppl.sample, dist.Bernoulli
sigmoid = jax.nn.sigmoid

AT = np.array([0.3, -0.6])
ESTIMATORS = {
    "reinforce": lambda: vi.reinforce(),
    "baseline": lambda: vi.reinforce(baseline=0.7),
    "enum": lambda: vi.enum(),
    "mvd": lambda: vi.mvd(),
}


# --- Programs: what is drawn meets parameters, non-linear functions and control flow -------------


def straight(th, g):
    a = sample("a", B(sigmoid(th[0])), grad=g[0])
    b = sample("b", B(sigmoid(th[1] + 2 * a)), grad=g[1])
    return jnp.sin(a + th[1] * b) * jnp.exp(th[0] * b)


def categorical(th, g):
    a = sample("a", dist.Categorical(jax.nn.softmax(th[0] * jnp.arange(3.0))), grad=g[0])
    b = sample("b", B(sigmoid(th[1] * a)), grad=g[1])
    return (a - th[0]) ** 2 * (1 + b)


def scanned(th, g):
    def step(state, t):
        x = sample("x", B(sigmoid(th[0] * state + th[1])), grad=g[0])
        return x, x * th[1] * t

    last, out = lax.scan(step, 1, jnp.arange(1.0, 3.0))
    return jnp.cos(jnp.sum(out)) * (1 + last)


def backwards(th, g):
    def step(state, t):
        x = sample("x", B(sigmoid(th[0] * state * t)), grad=g[0])
        return x + state, x * t

    total, out = lax.scan(step, 1, jnp.arange(1.0, 3.0), reverse=True)
    return jnp.exp(th[1] * jnp.sum(out)) * total


def branched(th, g):
    a = sample("a", B(sigmoid(th[0])), grad=g[0])
    b = lax.cond(
        a == 1,
        lambda: th[1] + sample("b", B(sigmoid(th[1])), grad=g[1]),
        lambda: 2.0 * th[0],
    )
    return jnp.sin(b) * (1 + a)


def switched(th, g):
    a = sample("a", dist.Categorical(jax.nn.softmax(th[0] * jnp.arange(3.0))), grad=g[0])
    return lax.switch(
        a,
        [
            lambda: th[0],
            lambda: th[1] * sample("b", B(sigmoid(th[0])), grad=g[1]),
            lambda: jnp.exp(th[1] * sample("b", B(sigmoid(-th[1])), grad=g[1])),
        ],
    )


def mapped(th, g):
    a = sample("a", B(sigmoid(th[0])), grad=g[0])
    b = jax.vmap(lambda i: sample("b", B(sigmoid(th[1] * i + a)), grad=g[1]))(jnp.arange(2.0))
    return jnp.sin(jnp.sum(b) + th[0]) * (1 + b[0] * a)


def plated(th, g):
    with ppl.plate("n", 2):
        a = sample("a", B(sigmoid(th)), grad=g[0])
    return jnp.exp(a[0] * th[1]) * jnp.cos(a[1] + th[0])


def compiled(th, g):
    a = jax.jit(lambda p: sample("a", B(sigmoid(p)), grad=g[0]))(th[0])
    b = jax.checkpoint(lambda p: sample("b", B(sigmoid(p)), grad=g[1]))(th[1] * a)
    return jnp.exp(a * th[1]) - jnp.cos(b + th[0])


def nested(th, g):
    def lane(i):
        def step(c, t):
            x = lax.cond(
                c > 0,
                lambda: sample("x", B(sigmoid(th[0] * i + t)), grad=g[0]),
                lambda: 1,
            )
            return x, x * th[1]

        return jnp.sum(lax.scan(step, 1, jnp.array([0.5, -0.5]))[1])

    return jnp.sin(jnp.sum(jax.jit(jax.vmap(lane))(jnp.array([1.0, 2.0]))) + th[0])


def nested_lane(th, g):
    """The same with one lane: differences in several have too many runs to list."""

    def step(c, t):
        x = lax.cond(c > 0, lambda: sample("x", B(sigmoid(th[0] + t)), grad=g[0]), lambda: 1)
        return x, x * th[1]

    out = jax.vmap(lambda i: i * lax.scan(step, 1, jnp.array([0.5, -0.5]))[1])(jnp.ones(1))
    return jnp.sin(jnp.sum(out) + th[0])


PROGRAMS = [
    straight,
    categorical,
    scanned,
    backwards,
    branched,
    switched,
    mapped,
    plated,
    compiled,
    nested,
]


def with_estimators(function, *kinds):
    g = [ESTIMATORS[k]() for k in kinds]
    g = (g * 2)[:2]

    @ppl.model
    def cost(th):
        return function(th, g)

    return cost


CASES = [(f, kind) for f in PROGRAMS for kind in ESTIMATORS if (f, kind) != (nested, "mvd")]


@pytest.mark.parametrize(("function", "kind"), [*CASES, (nested_lane, "mvd")])
def test_gradient_is_unbiased(function, kind):
    exact = refuse_bias(with_estimators(function, kind), AT)
    assert np.max(np.abs(exact)) > 1e-2


@pytest.mark.parametrize("kinds", [("enum", "reinforce"), ("mvd", "enum"), ("reinforce", "mvd")])
@pytest.mark.parametrize("function", [straight, branched, mapped, switched])
def test_combinations_are_unbiased(function, kinds):
    refuse_bias(with_estimators(function, *kinds), AT)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_gradient_as_a_program_is_unbiased(kind):
    cost = with_estimators(branched, kind)
    exact = jax.grad(mean(cost, AT))(AT)
    report = ppl.check.unbiased(vi.grad_estimate(cost)(AT), exact)
    assert report.passed, report
    assert report.false_alarm == 0


@pytest.mark.parametrize("function", [straight, scanned, branched, mapped, nested_lane])
def test_values_looked_at_one_element_at_a_time_are_unbiased(function, monkeypatch):
    """What enumeration does where all combinations together are too many."""
    monkeypatch.setattr(sys.modules["ppl.inference.vi.expectation"], "MOST_LISTED", 1)
    refuse_bias(with_estimators(function, "enum"), AT)


@pytest.mark.parametrize("kinds", [("mvd", "reinforce"), ("enum", "mvd"), ("mvd", "enum")])
def test_laws_that_share_an_address(kinds):
    """Equal parameters of different laws, in exclusive branches, are no reason to share a draw."""

    @ppl.model
    def cost(th):
        a = sample("a", B(sigmoid(th[0])), grad=ESTIMATORS[kinds[0]]())
        grad = ESTIMATORS[kinds[1]]()
        b = lax.cond(
            a == 1,
            lambda: sample("b", B(probs=th[1]), grad=grad),
            lambda: sample("b", B(logits=th[1]), grad=grad),
        )
        return jnp.sin(1.0 + a + 2 * b * th[1])

    refuse_bias(cost, np.array([0.3, 0.7]))


def test_supports_that_share_an_address():
    @ppl.model
    def cost(th):
        a = sample("a", B(sigmoid(th)), grad=vi.enum())
        b = lax.cond(
            a == 1,
            lambda: sample("b", dist.DiscreteUniform(0, 1), grad=vi.enum()),
            lambda: sample("b", dist.DiscreteUniform(5, 6), grad=vi.enum()),
        )
        return jnp.sin(1.0 + a + b * th)

    def exact(th):
        p = sigmoid(th)
        one = jnp.sin(2.0 + jnp.array([0.0, 1.0]) * th)
        zero = jnp.sin(1.0 + jnp.array([5.0, 6.0]) * th)
        return p * jnp.mean(one) + (1 - p) * jnp.mean(zero)

    at = np.array(0.4)
    found = jax.value_and_grad(lambda th: ppl.run(vi.expectation(cost(th)), 0))(at)
    np.testing.assert_allclose(found, jax.value_and_grad(exact)(at), atol=1e-10)


def test_elements_of_different_supports():
    @ppl.model
    def cost(th):
        with ppl.plate("n", 2):
            x = sample("x", dist.Binomial(np.array([1, 2]), sigmoid(th)), grad=vi.enum())
        return jnp.sin(x[0] + th[1] * x[1])

    def exact(th):
        q = sigmoid(th)
        first, second = [1 - q[0], q[0]], [(1 - q[1]) ** 2, 2 * q[1] * (1 - q[1]), q[1] ** 2]
        pairs = [(i, j) for i in range(2) for j in range(3)]
        return sum(first[i] * second[j] * jnp.sin(i + th[1] * j) for i, j in pairs)

    found = jax.grad(lambda th: ppl.run(vi.expectation(cost(th)), 0))(AT)
    np.testing.assert_allclose(found, jax.grad(exact)(AT), atol=1e-10)


# --- Random compositions -------------------------------------------------------------------------

STEPS = {
    "plain": lambda th, x, g, name: sample(name, B(sigmoid(th[0] + x)), grad=g),
    "jit": lambda th, x, g, name: jax.jit(lambda p: sample(name, B(p), grad=g))(
        sigmoid(th[1] * x - 0.3)
    ),
    "cond": lambda th, x, g, name: lax.cond(
        x > 0.5, lambda: sample(name, B(sigmoid(th[1])), grad=g), lambda: 0
    ),
    "vmap": lambda th, x, g, name: jnp.sum(
        jax.vmap(lambda i: sample(name, B(sigmoid(th[0] * i + x)), grad=g))(jnp.arange(2.0))
    ),
    "scan": lambda th, x, g, name: lax.scan(
        lambda c, t: (sample(name, B(sigmoid(th[1] * c + t)), grad=g), None),
        jnp.asarray(x > 0, int),
        jnp.array([0.2, -0.4]),
    )[0],
}
COSTS = [
    lambda th, x: jnp.sin(x * th[0]),
    lambda th, x: jnp.exp(0.3 * x) * th[1],
    lambda th, x: (x - th[1]) ** 2,
]


@hypothesis.given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from(sorted(ESTIMATORS))),
        min_size=1,
        max_size=2,
    ),
    costs=st.tuples(st.sampled_from(range(3)), st.sampled_from(range(3))),
    th=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
@hypothesis.settings(max_examples=20)
def test_random_compositions_are_unbiased(steps, costs, th):
    @ppl.model
    def cost(th):
        x, total = jnp.zeros(()), COSTS[costs[0]](th, 1.0)
        for i, (step, kind) in enumerate(steps):
            x = x + STEPS[step](th, x, ESTIMATORS[kind](), f"s{i}")
            total = total * 0.5 + COSTS[costs[1]](th, x)
        return total

    refuse_bias(cost, np.array(th))


# --- Higher orders, samples, baselines ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reinforce", "baseline", "enum"])
@pytest.mark.parametrize("function", [straight, branched, scanned, mapped])
def test_second_derivatives_are_unbiased(function, kind):
    cost = with_estimators(function, kind)
    exact, surrogate = mean(cost, AT), mean(lambda th: vi.expectation(cost(th)), AT)
    np.testing.assert_allclose(surrogate(AT), exact(AT), atol=1e-10)
    np.testing.assert_allclose(jax.hessian(surrogate)(AT), jax.hessian(exact)(AT), atol=1e-10)


@pytest.mark.parametrize("kind", ["reinforce", "enum"])
def test_third_derivatives_are_unbiased(kind):
    cost = with_estimators(straight, kind)
    exact, surrogate = mean(cost, AT), mean(lambda th: vi.expectation(cost(th)), AT)
    third = jax.jacfwd(jax.hessian(exact))(AT)
    assert jnp.max(jnp.abs(third)) > 0.1
    np.testing.assert_allclose(jax.jacfwd(jax.hessian(surrogate))(AT), third, atol=1e-10)


def test_several_samples_are_unbiased_and_vary_less():
    cost = with_estimators(straight, "reinforce")
    exact = jax.grad(mean(cost, AT))(AT)
    variances = []
    for number in (1, 2):
        estimate = vi.grad_estimate(cost, num_samples=number)(AT)
        measure = ppl.enumerate(estimate)
        np.testing.assert_allclose(measure.expect(lambda g: g), exact, atol=1e-10)
        variances.append(number * measure.expect(lambda g: jnp.sum((g - exact) ** 2)))
    assert variances[1] < variances[0]  # an average of two would have half of it, and no less


def test_variance_falls_from_reinforce_to_enumeration():
    @ppl.model
    def cost(th, grad):
        a = sample("a", B(sigmoid(th)), grad=grad)
        return jnp.maximum((a - 0.49) ** 2 + 1.0, 0.0)  # a constant term would be left out

    found = {}
    for name, grad in {
        "none": vi.reinforce(),
        "half": vi.reinforce(baseline=0.6),
        "best": vi.reinforce(baseline=1.25),
        "mvd": vi.mvd(),
        "enum": vi.enum(),
    }.items():
        measure = ppl.enumerate(vi.grad_estimate(lambda th, g=grad: cost(th, g))(jnp.array(0.2)))
        first, second = measure.expect(lambda g: g), measure.expect(lambda g: g**2)
        found[name] = second - first**2
    assert found["none"] > 3 * found["half"] > 9 * found["best"] > 0
    assert abs(found["mvd"]) < 1e-15
    assert abs(found["enum"]) < 1e-15


def test_learned_baseline_descends_its_squared_error():
    @ppl.model
    def cost(params):
        g = vi.reinforce(baseline=params["b"] ** 2, learn=True)
        a = sample("a", B(sigmoid(params["th"])), grad=g)
        return 3.0 * a

    params = {"th": jnp.array(0.4), "b": jnp.array(1.5)}
    found = ppl.enumerate(vi.grad_estimate(cost)(params)).expect(lambda g: g)
    p = sigmoid(0.4)
    np.testing.assert_allclose(found["th"], 3 * p * (1 - p), atol=1e-10)
    np.testing.assert_allclose(found["b"], (1.5**2 - 3 * p) * 3.0, atol=1e-10)
    climbing = mean(lambda q: vi.expectation(cost(q), maximize=True), params)
    np.testing.assert_allclose(jax.grad(climbing)(params)["b"], -(1.5**2 - 3 * p) * 3, atol=1e-10)


def test_a_baseline_computed_in_the_model_is_one_for_each_lane():
    @ppl.model
    def cost(th):
        def lane(i):
            return sample("a", B(sigmoid(th[0] * i)), grad=vi.reinforce(baseline=th[1] * i))

        return jnp.sum(jax.vmap(lane)(jnp.arange(1.0, 3.0))) ** 2

    refuse_bias(cost, AT)


def test_impossible_values_count_for_the_derivative_but_not_for_the_cost():
    @ppl.model
    def cost(p):
        a = sample("a", B(p), grad=vi.enum())
        return 2.0 + 3.0 * a

    found = jax.grad(lambda p: ppl.run(vi.expectation(cost(p)), 0))(jnp.array(0.0))
    assert found == 3.0

    @ppl.model
    def infinite(p):
        return -jnp.log(1.0 - sample("a", B(p), grad=vi.enum()))

    assert ppl.run(vi.expectation(infinite(jnp.array(0.0))), 0) == 0.0


def test_enumeration_of_many_elements_is_exact_in_the_mean():
    """Ten elements have 1,024 combinations: each is looked at with the others as drawn."""

    @ppl.model
    def cost(th):
        with ppl.plate("n", 10):
            a = sample("a", B(sigmoid(th)), grad=vi.enum())
        return jnp.sum(a) * 1.0

    def slope(key):
        return jax.grad(lambda th: ppl.run(vi.expectation(cost(th)), key))(jnp.array(0.3))

    p = sigmoid(0.3)
    found = jax.vmap(slope)(jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(found, 10 * p * (1 - p), atol=1e-10)  # linear: no variance is left


@pytest.mark.parametrize("kind", ["reinforce", "enum"])
def test_expectations_of_independent_lanes_inside_a_model(kind):
    """Each lane's score meets its own cost only, whether or not the lanes are apart."""

    @ppl.model
    def lane(th, x):
        return 2.0 + th * x * sample("a", B(sigmoid(th * x)), grad=ESTIMATORS[kind]())

    data = np.array([0.5, -1.0, 2.0])

    @ppl.model
    def whole(th):
        return jnp.sum(jax.vmap(lambda x: lane(th, x))(jnp.asarray(data)))

    @ppl.model
    def apart(th):
        def one(x):
            return vi.expectation(lane.program(th, x))()

        return jnp.sum(jax.vmap(one)(jnp.asarray(data)))

    at = np.array(0.4)
    exact = jax.grad(mean(whole, at))(at)
    spreads = []
    for cost in (whole, apart):
        measure = ppl.enumerate(vi.grad_estimate(cost)(at))
        np.testing.assert_allclose(measure.expect(lambda g: g), exact, atol=1e-10)
        spreads.append(measure.expect(lambda g: (g - exact) ** 2))
    np.testing.assert_allclose(spreads[0], spreads[1], atol=1e-12)
