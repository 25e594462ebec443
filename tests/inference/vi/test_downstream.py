"""A score meets the costs that depend on its draw: which these are, no bias, and less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

import ppl
import ppl.distributions as dist
from ppl import sample, vi
from ppl.inference.vi import downstream
from ppl.inference.vi.downstream import split
from tests.inference.vi.finite_sums import refuse_bias

pytestmark = pytest.mark.usefixtures("x64")
B = dist.Bernoulli
DATA = np.array([0.5, -1.0, 2.0])
AT = np.array([0.4, -0.3])


def flips(address, logits, **settings):
    with ppl.plate(f"{address}s", len(DATA)):
        return sample(address, B(sigmoid(logits)), **settings)


# --- Which terms and lanes ------------------------------------------------------------------------


def test_terms_of_a_sum_and_their_lanes():
    """What comes before a draw, other draws, and other lanes are not downstream of it."""

    @ppl.model
    def cost(th):
        a = flips("a", th[0] * DATA)
        b = flips("b", th[1] + 0.0 * a)
        c = sample("c", B(0.3))
        own = jnp.sum(a * DATA)
        both = 2.0 * jnp.sum(jnp.cos(b * DATA)) / th[0]
        return own - both + jnp.sum(a) ** 2 + th[1] * c + 3.0

    found = split(cost(jnp.asarray(AT)))
    sites = [set(t.sites) for t in found.terms]
    assert sites == [{"a"}, {"a", "b"}, {"a"}, {"c"}, set()]
    assert found.along("a")[:3] == [(0,), (0,), (None,)]
    assert found.along("b")[1] == (0,)


def test_what_is_read_twice_is_not_opened():
    """Else every step here would double the number of terms."""

    @ppl.model
    def cost(th):
        x = jnp.sum(flips("a", th[0] * DATA) * DATA)
        for _ in range(40):
            x = x - 0.1 * x
        return x

    assert len(split(cost(jnp.asarray(AT))).terms) == 2
    refuse_bias(cost, AT)


@ppl.model
def matrix(th):
    """Flips of two kinds of lanes; the last is a `vmap`."""

    def row(x):
        with ppl.plate("column", 2):
            return sample("a", B(sigmoid(th[0] * x + jnp.array([0.0, 1.0]))))

    return jax.vmap(row)(jnp.asarray(DATA[:2]))


@pytest.mark.parametrize(
    ("cost", "along"),
    [
        (lambda a: a * jnp.arange(2.0), (0, 1)),
        (lambda a: a.T * jnp.arange(2.0), (1, 0)),
        (lambda a: jnp.cos(jnp.sum(a, 1)), (0, None)),
        (lambda a: jnp.cos(jnp.sum(a, 0)), (None, 0)),
        (lambda a: a @ jnp.ones((2, 2)) * 1.0, (0, None)),
        (lambda a: jnp.cos(a[:1] * 1.0), (None, 1)),
        (lambda a: jnp.cos(a + a.T), (None, None)),
        (lambda a: jnp.cos(a[::-1]), (None, 1)),
        (lambda a: jnp.cos(jnp.cumsum(a, 1)), (0, None)),
        (lambda a: jnp.cos(a.reshape(4)), (None, None)),
        (lambda a: jnp.cos(a.reshape(2, 1, 2)), (0, 2)),
        (lambda a: jnp.cos(a[:, None] * a[:, :, None]), (0, None)),
        (lambda a: jax.jit(lambda a: jnp.cos(a - jnp.mean(a)))(a), (None, None)),
        (lambda a: jax.jit(jnp.cos)(1.0 * a), (0, 1)),
        (lambda a: jnp.cos(jnp.where(a[0, 0] == 1, a, 1 - a)), (None, None)),
        (lambda a: jnp.cos(jnp.arange(4.0)[a + 2 * a]), (0, 1)),
        (lambda a: jnp.arange(3.0)[jnp.sum(a, 1)], (0, None)),
    ],
)
def test_lanes_are_followed_through_operations(cost, along):
    @ppl.model
    def whole(th):
        return jnp.sum(cost(matrix.program(th)()))

    found = split(whole(jnp.asarray(AT)))
    (term,) = [i for i, t in enumerate(found.terms) if t.sites]
    assert found.along("a")[term] == along
    refuse_bias(whole, AT)


# --- Without bias ---------------------------------------------------------------------------------


@ppl.model
def chained(th, grad=None, last=None):
    """Lanes of draws from draws, and a draw from all of them."""
    a = flips("a", th[0] * DATA, grad=grad)
    b = flips("b", th[1] * a - 0.2, grad=grad)
    c = sample("c", B(sigmoid(th[0] * jnp.sum(b))), grad=last)
    return jnp.sum(jnp.cos(th[0] * a + b * DATA)) + jnp.sum(a) * c * th[1] + jnp.sum(a) * 0.3


@ppl.model
def neighbours(th):
    a = flips("a", th[0] * DATA)
    b = flips("b", th[1] * jnp.roll(a, 1))
    return jnp.sum(jnp.cos(a * DATA) / th[1]) - jnp.sum(b * DATA) * th[0]


@ppl.model
def in_control_flow(th):
    """Draws beside loops and branches that read them, and draws inside these."""
    a = flips("a", th[0] * DATA)
    flag = a[0] == 1
    b = jax.lax.cond(flag, lambda: sample("b", B(sigmoid(th[1]))), lambda: 0)

    def step(total, x):
        c = sample("c", B(sigmoid(th[1] * x + 0.2 * total)))
        return total + c * x, c * x

    last, steps = jax.lax.scan(step, 0.0, a[:2] * 1.0)
    several = jax.lax.while_loop(lambda n: n < jnp.sum(a), lambda n: n + 1, 0)
    return jnp.sum(jnp.cos(a * DATA)) + 2.0 * b + last + jnp.sum(steps) ** 2 + 0.5 * several


@ppl.model
def recorded(th):
    a = flips("a", th[0] * DATA)
    half = ppl.deterministic("half", a * 0.5)
    stopped = jax.lax.stop_gradient(jnp.sum(half * th[1]))
    return jnp.sum(half) * th[1] - 2.0 * stopped + jax.jit(jnp.sum)(half)


@ppl.model
def shifted(th):
    """Costs of each lane and of all at once."""
    a = flips("a", th[0] * DATA)
    return jnp.sum(jnp.cos(a * DATA + th[1] * jnp.sum(a)))


@pytest.mark.parametrize("cost", [chained, neighbours, in_control_flow, recorded, shifted])
def test_gradients_have_no_bias(cost):
    refuse_bias(cost, AT)


def test_elements_of_an_event_go_together():
    @ppl.model
    def cost(th):
        with ppl.plate("row", 2):
            a = sample("a", B(sigmoid(th[0] + jnp.zeros((2, 2)))).to_event(1))
        return jnp.sum(jnp.cos(a * jnp.arange(1.0, 3.0)))

    assert split(cost(jnp.asarray(AT))).along("a") == [(0,)]
    refuse_bias(cost, AT)


def test_other_estimators_beside():
    settings = {"grad": vi.reinforce(baseline=0.4), "last": vi.mvd()}
    refuse_bias(lambda th: chained(th, **settings), AT)


def test_learned_baselines_learn_the_cost_of_their_lane():
    """The gradient of a baseline is its distance from the mean cost that depends on its draw."""

    @ppl.model
    def cost(levels):
        a = jax.vmap(
            lambda x, level: sample(
                "a", B(sigmoid(x)), grad=vi.reinforce(baseline=level, learn=True)
            )
        )(jnp.asarray(DATA), levels)
        return jnp.sum(a * DATA) + 10.0 * sample("b", B(0.5))

    levels = np.array([0.1, 0.2, 0.3])
    measure = ppl.enumerate(vi.grad_estimate(cost)(levels))
    found = measure.expect(lambda g: g)
    np.testing.assert_allclose(found, levels - sigmoid(DATA) * DATA, atol=1e-10)


# --- Less variance --------------------------------------------------------------------------------


def variance(cost, at, **settings):
    measure = ppl.enumerate(vi.grad_estimate(cost, **settings)(at))
    mean = measure.expect(lambda g: g)
    return float(measure.expect(lambda g: jnp.sum((g - mean) ** 2)))


@pytest.mark.parametrize("number", [1, 2])
def test_the_variance_of_lanes_is_the_sum_of_their_own(number):
    """Of the bound of a plate, with its own draws in each lane, as of one lane after the other."""

    @ppl.model
    def model(y):
        a = sample("a", B(0.3))
        sample("y", dist.Normal(a * 1.0, 1.0), obs=y)

    @ppl.model
    def guide(ph, y):
        sample("a", B(sigmoid(ph * y)))

    @ppl.model
    def models(ys):
        jax.vmap(lambda y: model.program(y)())(ys)

    @ppl.model
    def guides(ph, ys):
        jax.vmap(lambda y: guide.program(ph, y)())(ys)

    data = jnp.asarray(DATA[:2])
    together = variance(
        lambda ph: vi.elbo(models(data), guides(ph, data)), np.array(0.4), num_samples=number
    )
    apart = sum(
        variance(lambda ph, y=y: vi.elbo(model(y), guide(ph, y)), np.array(0.4), num_samples=number)
        for y in data
    )
    np.testing.assert_allclose(together, apart, rtol=1e-10)


def test_costs_from_before_a_draw_add_no_variance():
    def cost(size):
        @ppl.model
        def made(th):
            a = sample("a", B(0.5), grad=vi.ignore())
            b = sample("b", B(sigmoid(th)))
            return size * a + jnp.cos(b * 1.0)

        return made

    at = np.array(0.3)
    np.testing.assert_allclose(variance(cost(100.0), at), variance(cost(0.0), at), rtol=1e-10)


# --- Mistakes that the exact check refuses --------------------------------------------------------


def no_lanes_lost(monkeypatch):
    """A value that depends on all lanes is taken for one that depends on none."""
    safely = downstream._Following._safely

    def untold(self, atoms, ins, rule):
        self._touched = lambda atom: False
        found = safely(self, atoms, ins, rule)
        del self._touched
        return found

    monkeypatch.setattr(downstream._Following, "_safely", untold)
    return shifted


def draws_from_draws_forgotten(monkeypatch):
    """A draw is taken not to depend on what its distribution was made of."""
    reads = downstream._reads

    def mistaken(jaxpr):
        found = reads(jaxpr)
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "sample":
                found[eqn.outvars[0]] = frozenset({eqn.params["site"].address})
        for eqn in jaxpr.eqns:
            if eqn.primitive.name != "sample":
                ins = [found.get(v, frozenset()) for v in downstream._jax.variables(eqn.invars)]
                found.update(dict.fromkeys(eqn.outvars, frozenset().union(*ins)))
        return found

    monkeypatch.setattr(downstream, "_reads", mistaken)
    return neighbours


@pytest.mark.parametrize("mutant", [no_lanes_lost, draws_from_draws_forgotten])
def test_mutant_is_refused(mutant, monkeypatch):
    monkeypatch.setattr(downstream, "_known", {})
    whole = mutant(monkeypatch)

    @ppl.model
    def cost(th):  # one that was not staged before
        return whole.program(th)()

    with pytest.raises(AssertionError, match=r"Not equal|failed"):
        refuse_bias(cost, AT)
