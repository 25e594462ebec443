"""Resampling schemes: masses against readings in exact fractions; sites of them; refusals."""

import collections
import functools
import itertools
from fractions import Fraction

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, DistributionError, UnsupportedError
from ppl.resampling import SCHEMES, Resampling, offspring, scheme
from tests.resampling_readings import READINGS, log_of, shares

NAMES = sorted(SCHEMES)
#: Particles and ancestors; every weighing of these shapes shares what is compiled for it.
SHAPES = [(3, 3), (4, 2), (2, 5), (1, 2)]


@functools.cache
def masses_at(name, size, num):
    """The values of a scheme, and a compiled function from log weights to their log masses."""
    cls = SCHEMES[name]
    values = cls(jnp.zeros(size), num).finite_values()
    return values, jax.jit(lambda log_weights: cls(log_weights, num).log_prob(values))


def masses(name, weights, num):
    """Probabilities of all ancestor vectors, for weights that are integers."""
    values, log_mass = masses_at(name, len(weights), num)
    return values, np.exp(np.asarray(log_mass(log_of(weights))))


def weighings(size):
    """Integer weights: ties, zeros, all on one, none at all; and expected offspring are whole."""
    return st.lists(st.sampled_from([0, 1, 1, 2, 3, 7, 1000]), min_size=size, max_size=size)


CASES = st.sampled_from(SHAPES).flatmap(lambda s: st.tuples(weighings(s[0]), st.just(s[1])))


def distance(name, reading, weights, num):
    """Total variation between a scheme's masses and a reading of a scheme."""
    values, found = masses(name, weights, num)
    law = READINGS[reading](shares(weights, num), num)
    wanted = np.array([float(law.get(tuple(v), 0)) for v in values.tolist()])
    assert sum(law.values()) == 1
    return np.abs(found - wanted).sum() / 2


# --- Masses----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_masses_are_exact_and_offspring_unbiased(name):
    @hypothesis.settings(max_examples=100, database=None)
    @hypothesis.given(CASES)
    def check(case):
        weights, num = case
        assert distance(name, name, weights, num) < 1e-12
        values, found = masses(name, weights, num)
        assert abs(found.sum() - 1) < 1e-12
        counts = np.asarray(offspring(values, len(weights)))
        expected = np.array([float(x) for x in shares(weights, num)])
        np.testing.assert_allclose(found @ counts, expected, rtol=0, atol=1e-12)

    check()


@pytest.mark.usefixtures("x64")
def test_the_readings_tell_the_schemes_apart():
    for one, other in itertools.permutations(NAMES, 2):
        same = {one, other} == {"systematic", "residual_systematic"}
        apart = distance(one, other, [3, 7, 2, 1], 4)
        assert apart < 1e-12 if same else apart > 1e-3, (one, other)


@pytest.mark.usefixtures("x64")
def test_conditional_variances_are_in_order():
    @hypothesis.settings(max_examples=100, database=None)
    @hypothesis.given(CASES, st.lists(st.integers(-3, 3), min_size=4, max_size=4))
    def check(case, f):
        weights, num = case

        def variance(name):
            values, found = masses(name, weights, num)
            total = np.take(f, values).sum(1)
            return found @ (total - found @ total) ** 2

        for name in ("residual_multinomial", "stratified"):
            assert variance(name) <= variance("multinomial") + 1e-10

    check()


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_has_no_mass(name):
    weights = jnp.array([[0.0, -jnp.inf, 1.0], [jnp.nan, 0.0, 0.0], [jnp.inf, 0.0, 0.0]])
    d = SCHEMES[name](weights, validate_args=False)
    bad = jnp.array([[2, 0, 0], [0, 1, 2], [0, 2, 3], [-1, 0, 2]])
    log_mass = np.asarray(jax.jit(d.log_prob)(bad[:, None]))
    assert log_mass.shape == (4, 3)
    assert np.all(log_mass[:, 0] == -np.inf)
    assert np.all(np.isnan(log_mass[:, 1:]))
    drawn = np.asarray(jax.jit(lambda k: d.sample(k, (200,)))(jax.random.key(0)))
    assert drawn.dtype == jnp.result_type(int)
    assert not np.any(drawn[:, 0] == 1)
    assert np.all(drawn[:, 1:] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_log_masses_hold_no_nan(name):
    def total(log_weights):
        d = SCHEMES[name](log_weights)
        log_mass = d.log_prob(d.finite_values())
        return jnp.sum(jnp.where(log_mass == -jnp.inf, 0.0, log_mass))

    grad = jax.jit(jax.grad(total))
    for weights in ([3, 0, 7], [0, 0, 0], [1, 1, 1], [0, 5, 0]):
        assert np.all(np.isfinite(grad(jnp.asarray(log_of(weights), jnp.float32)))), weights


# --- As sites -------------------------------------------------------------------------------------


LOG_WEIGHTS = log_of([3, 7, 1])


def sites(cls):
    """A scheme in a batch, under `vmap`, in a scan whose weights follow the draws, in a branch."""

    def batch(w):
        return ppl.sample("a", cls(jnp.stack([w, w[::-1]]), 2))

    def lanes(w):
        return jax.vmap(lambda x: ppl.sample("a", cls(x, 2)))(jnp.stack([w, w[::-1]]))

    def loop(w):
        def step(w, _):
            a = ppl.sample("a", cls(w, 3))
            return w[a], a

        return jax.lax.scan(step, w, length=2)[1]

    def branch(w):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        return jax.lax.cond(z == 1, lambda: ppl.sample("a", cls(w, 2)), lambda: jnp.zeros(2, int))

    return [batch, lanes, loop, branch]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_sites_in_models(name):
    reading, w = READINGS[name], [3, 7, 1]
    one, flipped = (reading(shares(x, 2), 2) for x in (w, w[::-1]))
    both = {(a, b): p * q for (a, p), (b, q) in itertools.product(one.items(), flipped.items())}
    loop = collections.Counter()
    for a, p in reading(shares(w, 3), 3).items():
        for b, q in reading(shares([w[i] for i in a], 3), 3).items():
            loop[a, b] += p * q
    branch = collections.Counter({a: p * Fraction(3, 10) for a, p in one.items()})
    branch[0, 0] += Fraction(7, 10)
    for model, law in zip(sites(SCHEMES[name]), (both, both, loop, branch), strict=True):
        program = ppl.model(model)(jnp.asarray(LOG_WEIGHTS))
        found = collections.Counter()
        for value, mass in ppl.enumerate(program):
            rows = np.asarray(value).tolist()
            found[tuple(map(tuple, rows)) if isinstance(rows[0], list) else tuple(rows)] += mass
        assert set(found) == {a for a, p in law.items() if p}
        assert max(abs(found[a] - float(p)) for a, p in law.items()) < 1e-10
        if model.__name__ in ("lanes", "loop"):  # others compile the same
            assert found[tuple(map(tuple, ppl.run(program, key=0).tolist()))] > 0


@ppl.model
def resampled(program, cls, count):
    """Run copies of a program, and resample them; the evidence stays."""
    runs = jax.vmap(lambda _: ppl.weighted(program)())(jnp.arange(count))
    evidence = jax.nn.logsumexp(runs.log_weight) - jnp.log(count)
    ancestors = ppl.sample("ancestors", cls(runs.log_weight))
    values = jax.tree.map(lambda x: x[ancestors], runs.value)
    return ppl.Population(values, jnp.zeros(count), evidence, {})


class Forgetful(SCHEMES["multinomial"]):
    """Draws as if all weights were equal."""

    def _log_mass(self, log_weights, ancestors):
        return super()._log_mass(jnp.where(log_weights == -jnp.inf, -jnp.inf, 0.0), ancestors)


@ppl.model
def weighty():
    x = ppl.sample("x", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    ppl.factor("f", jnp.array([0.3, -1.0, -jnp.inf])[x])
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_resampling_preserves_a_program(name):
    report = ppl.check.preserves(lambda p: resampled(p, SCHEMES[name], 2), weighty()).require()
    assert report.false_alarm == 0
    broken = ppl.check.preserves(lambda p: resampled(p, Forgetful, 2), weighty())
    assert broken.verdict == "failed"


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_resampling_preserves_programs(name):
    @hypothesis.settings(max_examples=8, database=None)
    @hypothesis.given(ppl.check.programs())
    def check(program):
        report = ppl.check.preserves(lambda p: resampled(p, SCHEMES[name], 2), program)
        assert report.require().false_alarm == 0

    check()


# --- Names and refusals ---------------------------------------------------------------------------


def test_schemes_by_name():
    for name, cls in SCHEMES.items():
        assert scheme(name) is cls
        assert scheme(cls) is cls
    with pytest.raises(ArgumentError, match=r"'sytematic'; needs .* Did you mean \"systematic\""):
        scheme("sytematic")
    for wrong in (Resampling, dist.Normal, None, 3):
        with pytest.raises(ArgumentError, match="the scheme"):
            scheme(wrong)


def test_bad_arguments_are_refused():
    cls = SCHEMES["ssp"]
    for bad in (0.0, jnp.zeros((2, 0))):
        with pytest.raises(DistributionError, match=r"log_weights of shape .* one particle"):
            cls(bad)
    for num in (0, -1, 2.0, True):
        with pytest.raises(DistributionError, match=r"num = .* positive Python integer"):
            cls(jnp.zeros(3), num)
    with pytest.raises(DistributionError, match="num = a traced value"):
        jax.jit(lambda n: cls(jnp.zeros(3), n).log_prob(jnp.zeros(3, int)))(3)
    with pytest.raises(UnsupportedError, match=r"20 particles and 20 ancestors, which makes \d+ v"):
        cls(jnp.zeros(20)).finite_values()
    for bad in (jnp.nan, jnp.inf):
        program = ppl.model(lambda bad=bad: ppl.sample("a", cls(jnp.array([0.0, bad]))))
        with pytest.raises(DistributionError, match=r'SSPResampling with log_weights .* at "a"'):
            program()
