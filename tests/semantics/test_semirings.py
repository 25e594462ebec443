"""The semirings of `enumerate`: best runs, numbers of runs, expected statistics."""

import functools
import math
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from tests import zoo
from tests.semantics import finite_nested_cases, walks
from tests.semantics.finite_cases import CASES

B, C, sample = dist.Bernoulli, dist.Categorical, ppl.sample

pytestmark = pytest.mark.usefixtures("x64")
assert finite_nested_cases  # its cases stand in the same table


def has_while(program):
    return any(site.placed.whiles for site in program.sites if site.kind == "latent")


# --- Every case, against all runs one by one ----------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_max_finds_the_best_run_to_each_value_and_its_choices(name):
    program = ppl.model(CASES[name].model)()
    if has_while(program):
        with pytest.raises(UnsupportedError, match=r"semiring='max'.*in a while_loop.*lax.scan"):
            ppl.enumerate(program, semiring="max")
        return
    best = defaultdict(float)
    for run in walks.runs(CASES[name].ref):
        best[walks.key(run.value)] = max(best[walks.key(run.value)], run.weight)
    measure = ppl.enumerate(program, semiring="max")
    assert {walks.key(v) for v in measure.points} == best.keys()
    assert set(measure.choices) == set(program.latents)
    for i, (value, mass) in enumerate(measure):
        assert mass == pytest.approx(best[walks.key(value)], abs=1e-10)
        if i < 12:  # the choices lead there: runs may tie, so they are judged by what they do
            trace = ppl.trace_of(program, {a: x[i] for a, x in measure.choices.items()})
            assert walks.key(trace.value) == walks.key(value)
            assert float(trace.log_density) == pytest.approx(math.log(mass), abs=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_count_counts_the_runs_to_each_value(name):
    wanted = Counter(walks.key(run.value) for run in walks.runs(CASES[name].ref))
    measure = ppl.enumerate(ppl.model(CASES[name].model)(), semiring="count")
    found = {walks.key(value): round(number) for value, number in measure}
    assert found == dict(wanted)
    assert_allclose(measure.masses, np.round(measure.masses), rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_expectation_sums_statistics_over_the_runs_to_each_value(name):
    """The sum of all numbers drawn, and of squared log masses, weighted by the runs' masses."""
    program = ppl.model(CASES[name].model)()
    wanted, masses = defaultdict(float), defaultdict(float)
    for run in walks.runs(CASES[name].ref):
        masses[walks.key(run.value)] += run.weight
        wanted[walks.key(run.value)] += run.weight * sum(v for _, v, _ in run.choices)
    ring = ppl.expectation(dict.fromkeys(program.latents, lambda v: np.sum(v)))
    measure = ppl.enumerate(program, semiring=ring)
    total = sum(measure.statistics[a] for a in program.latents)
    for (value, mass), statistic in zip(measure, total, strict=True):
        assert mass == pytest.approx(masses[walks.key(value)], abs=1e-10)
        assert statistic == pytest.approx(wanted[walks.key(value)], abs=1e-10)


# --- By hand ------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
P, E = RNG.dirichlet(np.ones(3), 3), RNG.dirichlet(np.ones(4), 3)
Y = RNG.integers(0, 4, 6)


@ppl.model
def hmm(p, e, y):
    def step(z, y):
        z = sample("z", C(probs=p[z]))
        sample("y", C(probs=e[z]), obs=y)
        return z, None

    return lax.scan(step, 0, y)[0] * 0


def program():
    return hmm(jnp.array(P), jnp.array(E), jnp.array(Y))


def test_max_is_viterbi():
    delta, back = P[0] * E[:, Y[0]], []
    for y in Y[1:]:
        scores = delta[:, None] * P * E[:, y]
        back.append(scores.argmax(0))
        delta = scores.max(0)
    path = [int(delta.argmax())]
    for pointers in back[::-1]:
        path.insert(0, int(pointers[path[0]]))
    measure = ppl.enumerate(program(), semiring="max")
    assert measure.choices["z"].tolist() == [path]
    assert_allclose(measure.masses, [delta.max()], rtol=1e-10)


def test_expected_counts_are_those_of_forward_and_backward():
    alpha, beta = np.zeros((6, 3)), np.ones((6, 3))
    for t, y in enumerate(Y):
        alpha[t] = (P[0] if t == 0 else alpha[t - 1] @ P) * E[:, y]
    for t in range(4, -1, -1):
        beta[t] = P @ (E[:, Y[t + 1]] * beta[t + 1])
    ring = ppl.expectation({"z": lambda z: np.eye(3)[z]})
    measure = ppl.enumerate(program(), semiring=ring)
    assert_allclose(measure.total_mass, alpha[-1].sum(), rtol=1e-10)
    assert_allclose(measure.statistics["z"][0], (alpha * beta).sum(0), rtol=1e-10)


def test_a_statistic_of_the_log_mass_gives_an_entropy():
    """H(a, b) = H(a) + E[H(b | a)] for a ~ B(0.3), b ~ B(0.2 or 0.9)."""

    def model():
        a = sample("a", B(0.3))
        return 0 * sample("b", B(jnp.where(a == 1, 0.9, 0.2)))

    h = lambda p: -p * math.log(p) - (1 - p) * math.log(1 - p)  # noqa: E731
    surprise = lambda value, log_mass: -log_mass  # noqa: E731
    ring = ppl.expectation({"a": surprise, "b": surprise})
    found = ppl.enumerate(ppl.model(model)(), semiring=ring).statistics
    assert_allclose(found["a"], [h(0.3)], rtol=1e-10)
    assert_allclose(found["b"], [0.7 * h(0.2) + 0.3 * h(0.9)], rtol=1e-10)


def test_statistics_may_be_any_callable_and_defaults_are_left_alone():
    make = {
        "a": jnp.square,
        "b": functools.partial(jax.nn.one_hot, num_classes=2, dtype=float),
    }
    found = ppl.enumerate(zoo.two_coins(), semiring=ppl.expectation(make))
    for (a, b), mass, square, hot in zip(
        found.points, found.masses, found.statistics["a"], found.statistics["b"], strict=True
    ):
        assert_allclose(square, mass * a**2, atol=1e-12)
        assert_allclose(hot, mass * np.eye(2)[b], atol=1e-12)
    scaled = [lambda v, k=k: k * v for k in (2.0, 3.0)]
    found = ppl.enumerate(
        zoo.two_coins(), semiring=ppl.expectation({"a": scaled[0], "b": scaled[1]})
    )
    assert_allclose(found.statistics["a"].sum(), 2 * (0.03 + 0.0675), rtol=1e-10)
    assert_allclose(found.statistics["b"].sum(), 3 * (0.14 + 0.0675), rtol=1e-10)
    found = ppl.enumerate(zoo.two_coins(), semiring=ppl.expectation({"a": np.negative}))
    assert_allclose(found.statistics["a"].sum(), -(0.03 + 0.0675), rtol=1e-10)


def test_statistics_of_sites_that_some_or_all_runs_miss():
    def model():
        a = sample("a", B(0.25))
        dead = lax.cond(a == 2, lambda: sample("never", B(0.5)), lambda: 0)
        return dead * lax.cond(a == 1, lambda: sample("some", B(0.5)), lambda: 0)

    one = lambda value: 1.0  # noqa: E731
    ring = ppl.expectation({"a": one, "some": one, "never": one})
    found = ppl.enumerate(ppl.model(model)(), semiring=ring).statistics
    assert_allclose([found[k] for k in ("a", "some", "never")], [[1.0], [0.25], [0.0]])


def test_the_best_run_is_kept_through_normalising_and_conditioning():
    best = ppl.enumerate(zoo.two_coins(), semiring="max").normalize()
    ones = best.condition(lambda v: v[0] == 1)
    assert ones.choices["a"].tolist() == [1, 1]
    assert ones.choices["b"].tolist() == [0, 1]


def test_observations_scales_and_factors_count_in_every_semiring():
    scaled = ppl.scale(zoo.two_coins(), 0.5, ["a", "equal"])
    best = ppl.enumerate(scaled, semiring="max")
    assert_allclose(best.mass((1, 1)), math.sqrt(0.3 * 0.25) * 0.9, rtol=1e-10)
    assert ppl.enumerate(scaled, semiring="count").masses.tolist() == pytest.approx([1.0] * 4)


def test_statistics_that_are_no_functions_are_refused():
    with pytest.raises(ArgumentError, match=r"expectation got statistics.*function of the value"):
        ppl.expectation({"a": 1.0})
    with pytest.raises(ArgumentError, match="expectation got statistics"):
        ppl.expectation(abs)
