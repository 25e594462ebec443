"""Finite supports: which values a site takes and with what mass, against formulas by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import ppl
import ppl.distributions as dist
from ppl.errors import UnsupportedError
from ppl.finite import finite_values
from tests.semantics import walks

P3 = [0.2, 0.5, 0.3]

pytestmark = pytest.mark.usefixtures("x64")


def measure(make):
    """The measure of one site whose parameters depend on a draw, so that nothing is known early."""

    def model():
        one = ppl.sample("one", dist.Delta(1.0))
        return ppl.sample("z", make(one))

    return ppl.enumerate(ppl.model(model)())


def masses(n, ps):
    return {k: p for k, p in zip(range(n), ps, strict=True) if p > 0}


def beta_binomial(k, n, a, b):
    return math.comb(n, k) * math.exp(special.betaln(a + k, b + n - k) - special.betaln(a, b))


def dirichlet_multinomial(row, alpha):
    n, total = sum(row), sum(alpha)
    ways = math.factorial(n) / math.prod(math.factorial(k) for k in row)
    rise = lambda a, k: math.exp(special.gammaln(a + k) - special.gammaln(a))  # noqa: E731
    return ways * math.prod(map(rise, alpha, row)) / rise(total, n)


def rows(total, cells):
    return [r for r in itertools.product(range(total + 1), repeat=cells) if sum(r) == total]


SIGMA = [special.expit(x) for x in (-0.3, 0.7)]  # P(z <= k) = expit(cutpoint_k - predictor)
BINOMIAL = stats.binom(3, 0.3).pmf(range(4))

SITES = {
    "bernoulli": (lambda u: dist.Bernoulli(0.3 * u), masses(2, [0.7, 0.3])),
    "bernoulli_logits": (
        lambda u: dist.Bernoulli(logits=0.4 * u),
        masses(2, [special.expit(-0.4), special.expit(0.4)]),
    ),
    "categorical": (lambda u: dist.Categorical(probs=u * jnp.array(P3)), masses(3, P3)),
    "categorical_logits": (
        lambda u: dist.Categorical(logits=u * jnp.array([0.0, -jnp.inf, 1.0])),
        {0: special.expit(-1.0), 2: special.expit(1.0)},
    ),
    "binomial": (lambda u: dist.Binomial(3, 0.3 * u), masses(4, BINOMIAL)),
    "binomial_logits": (
        lambda u: dist.Binomial(3, logits=u * math.log(3 / 7)),
        masses(4, BINOMIAL),
    ),
    "beta_binomial": (
        lambda u: dist.BetaBinomial(1.5 * u, 2.5, 4),
        masses(5, [beta_binomial(k, 4, 1.5, 2.5) for k in range(5)]),
    ),
    "ordered_logistic": (
        lambda u: dist.OrderedLogistic(0.3 * u, jnp.array([0.0, 1.0])),
        masses(3, [SIGMA[0], SIGMA[1] - SIGMA[0], 1 - SIGMA[1]]),
    ),
    "multinomial": (
        lambda u: dist.Multinomial(3, u * jnp.array(P3)),
        {r: stats.multinomial(3, P3).pmf(r) for r in rows(3, 3)},
    ),
    "multinomial_logits": (
        lambda u: dist.Multinomial(2, logits=u * jnp.log(jnp.array(P3)) + 1.0),
        {r: stats.multinomial(2, P3).pmf(r) for r in rows(2, 3)},
    ),
    "dirichlet_multinomial": (
        lambda u: dist.DirichletMultinomial(u * jnp.array([1.5, 2.0]), 3),
        {r: dirichlet_multinomial(r, [1.5, 2.0]) for r in rows(3, 2)},
    ),
    "subsample": (
        lambda _: dist.Subsample(4, 2),
        {r: 1 / 12 for r in itertools.permutations(range(4), 2)},
    ),
    "point": (lambda u: dist.Delta(2.5 * u, log_density=-1.0 * u), {2.5: math.exp(-1.0)}),
    "whole_point": (lambda u: dist.Delta(jnp.array(3)), {3: 1.0}),
    "vector_point": (
        lambda u: dist.Delta(u * jnp.array([1.0, 2.0]), log_density=-0.5, event_dim=1),
        {(1.0, 2.0): math.exp(-0.5)},
    ),
    "event_of_coins": (
        lambda u: dist.Bernoulli(u * jnp.array([0.3, 0.6])).to_event(1),
        {(a, b): (0.7, 0.3)[a] * (0.4, 0.6)[b] for a in (0, 1) for b in (0, 1)},
    ),
    "matrix_of_categories": (
        lambda u: dist.Categorical(probs=u * jnp.array(P3)).expand([1, 2]).to_event(2),
        {((a, b),): P3[a] * P3[b] for a in range(3) for b in range(3)},
    ),
    "plate_of_multinomials": (
        lambda u: dist.Multinomial(1, u * jnp.array([[0.3, 0.7], [0.6, 0.4]])),
        {((1 - a, a), (1 - b, b)): (0.3, 0.7)[a] * (0.6, 0.4)[b] for a in (0, 1) for b in (0, 1)},
    ),
    "nobody": (lambda u: dist.Bernoulli(u * jnp.zeros(0)), {(): 1.0}),
}


@pytest.mark.parametrize("name", SITES)
def test_values_and_masses(name):
    make, wanted = SITES[name]
    found = {walks.key(value): mass for value, mass in measure(make)}
    wanted = {walks.key(np.array(value)): mass for value, mass in wanted.items()}
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[k] for k in wanted], list(wanted.values()), rtol=1e-10)


IMPOSSIBLE = {
    "heads": (lambda u: dist.Bernoulli(u), [1]),
    "tails": (lambda u: dist.Bernoulli(u - 1), [0]),
    "no_successes": (lambda u: dist.Binomial(3, u - 1), [0]),
    "all_successes": (lambda u: dist.Binomial(3, u), [3]),
    "categories": (lambda u: dist.Categorical(probs=u * jnp.array([0.0, 1.0, 0.0])), [1]),
    "counts": (
        lambda u: dist.Multinomial(2, u * jnp.array([0.5, 0.0, 0.5])),
        [(0, 0, 2), (1, 0, 1), (2, 0, 0)],
    ),
    "vector": (lambda u: dist.Bernoulli(u * jnp.array([1.0, 0.5])).to_event(1), [(1, 0), (1, 1)]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("double", [True, False])
def test_values_of_probability_zero_are_no_points(name, double):
    """NumPyro's log densities give them 1e-308, or in single precision up to 1e-7."""
    make, wanted = IMPOSSIBLE[name]
    with jax.enable_x64(double):
        found = measure(make)
        assert {walks.key(v) for v, _ in found} == {walks.key(np.array(v)) for v in wanted}
        assert found.total_mass == pytest.approx(1.0, abs=1e-10 if double else 1e-6)


@pytest.mark.parametrize("name", [n for n in IMPOSSIBLE if n not in ("counts", "categories")])
def test_observations_of_probability_zero_weigh_nothing(name):
    make, possible = IMPOSSIBLE[name]

    def model():
        one = ppl.sample("one", dist.Delta(1.0))
        d = make(one)
        return ppl.sample("z", d, obs=jnp.zeros(d.batch_shape + d.event_shape, int))

    total = ppl.enumerate(ppl.model(model)()).total_mass
    assert total == pytest.approx(float(0 in possible), abs=1e-10)
    assert 0 in possible or total == 0.0  # not 1e-308


def test_masked_observations_of_probability_zero_do_not_count():
    def model(keep):
        one = ppl.sample("one", dist.Delta(1.0))
        with ppl.plate("n", 2):
            ppl.sample(
                "z", dist.Bernoulli(jnp.stack([one, 0.25])).mask(keep), obs=jnp.zeros(2, int)
            )
        return one

    total = lambda keep: ppl.enumerate(ppl.model(model)(jnp.array(keep))).total_mass  # noqa: E731
    assert total([False, True]) == pytest.approx(0.75, abs=1e-10)
    assert total([True, True]) == 0.0


def test_bounds_may_depend_on_draws():
    def model():
        n = ppl.sample("n", dist.DiscreteUniform(1, 3))
        k = ppl.sample("k", dist.Binomial(n, 0.25))
        low = ppl.sample("low", dist.DiscreteUniform(k, n))
        b = ppl.sample("b", dist.BetaBinomial(1.0, 2.0, low))
        return n, k, low, b

    def ref(w):
        n = w.draw("n", dict.fromkeys((1, 2, 3), 1 / 3))
        k = w.draw("k", list(stats.binom(n, 0.25).pmf(range(n + 1))))
        low = w.draw("low", dict.fromkeys(range(k, n + 1), 1 / (n - k + 1)))
        return n, k, low, w.draw("b", [beta_binomial(i, low, 1.0, 2.0) for i in range(low + 1)])

    walks.check(ppl.enumerate(ppl.model(model)()), ref)


def test_a_point_may_move_with_the_world():
    def model():
        z = ppl.sample("z", dist.Bernoulli(0.3))
        x = ppl.sample("x", dist.Delta(z * 1.5 - jnp.array([0.0, 1.0])))
        return x, ppl.sample("y", dist.Delta(x.sum(), log_density=-1.0 * z))

    def ref(w):
        z = w.draw("z", 0.3)
        w.score(-z)
        return np.array([1.5 * z, 1.5 * z - 1.0]), 3.0 * z - 1.0

    walks.check(ppl.enumerate(ppl.model(model)()), ref)


def test_lists_that_are_too_long_are_refused_before_they_are_made():
    where = {"operation": "enumerate", "address": "z", "source": "here.py:1"}
    d = dist.Multinomial(1000, jnp.ones(20) / 20)
    with pytest.raises(UnsupportedError, match=r'Multinomial at "z" \(here.py:1\) with \d{30,} v'):
        finite_values(d, **where)
    with pytest.raises(UnsupportedError, match=r"Subsample .* with 524160 values"):
        finite_values(dist.Subsample(16, 5), **where)
    assert finite_values(dist.Subsample(3, 3), **where).shape == (6, 3)
    assert finite_values(dist.Subsample(3, 0), **where).shape == (1, 0)


def test_bounds_that_are_traced_are_refused():
    def fun(high):
        return finite_values(dist.DiscreteUniform(0, high), operation="marginalize", address="z")

    with pytest.raises(UnsupportedError, match=r'marginalize got DiscreteUniform at "z".*traced'):
        jax.jit(fun)(3)
