"""Resampling schemes: masses against readings in exact fractions; draws against masses."""

import collections
import functools
import itertools
import math
from fractions import Fraction

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, DistributionError, UnsupportedError
from ppl.resampling import SCHEMES, Resampling, offspring, scheme

NAMES = sorted(SCHEMES)
#: Particles and ancestors; every weighing of these shapes shares what is compiled for it.
SHAPES = [(3, 3), (4, 2), (2, 5), (1, 2)]


@functools.cache
def masses_at(name, size, num):
    """The values of a scheme, and a compiled function from log weights to their log masses."""
    cls = SCHEMES[name]
    values = cls(jnp.zeros(size), num).finite_values()
    return values, jax.jit(lambda log_weights: cls(log_weights, num).log_prob(values))


def log_of(weights):
    return np.array([math.log(w) if w else -np.inf for w in weights])


def masses(name, weights, num):
    """Probabilities of all ancestor vectors, for weights that are integers."""
    values, log_mass = masses_at(name, len(weights), num)
    return values, np.exp(np.asarray(log_mass(log_of(weights))))


# --- The schemes once more, in fractions ----------------------------------------------------------


def normalised(weights):
    weights = [1] * len(weights) if not any(weights) else weights
    return [Fraction(w, sum(weights)) for w in weights]


def shares(weights, num):
    """Expected numbers of offspring, exactly."""
    return [num * w for w in normalised(weights)]


def independently(tables):
    """The law of sorted vectors whose elements are drawn from one table each."""
    law = collections.Counter()
    for picks in itertools.product(*[range(len(t)) for t in tables]):
        law[tuple(sorted(picks))] += math.prod(t[i] for t, i in zip(tables, picks, strict=True))
    return law


def particle_at(point, expected):
    """The particle in whose interval of the cumulated expected offspring a point lies."""
    return next(i for i, end in enumerate(itertools.accumulate(expected)) if point < end)


def multinomial(expected, num):
    return independently([[x / num for x in expected] for _ in range(num)])


def stratified(expected, num):
    cuts = sorted({*range(num + 1), *itertools.accumulate(expected)})
    tables = [[Fraction(0)] * len(expected) for _ in range(num)]
    for low, high in itertools.pairwise(cuts):
        tables[math.floor(low)][particle_at((low + high) / 2, expected)] += high - low
    return independently(tables)


def systematic(expected, num):
    cuts = sorted({Fraction(0), Fraction(1), *(end % 1 for end in itertools.accumulate(expected))})
    law = collections.Counter()
    for low, high in itertools.pairwise(cuts):
        points = [i + (low + high) / 2 for i in range(num)]
        law[tuple(particle_at(p, expected) for p in points)] += high - low
    return law


def residual(rest):
    """Copies for whole parts, and another scheme for what is left."""

    def law(expected, num):
        copies = [math.floor(x) for x in expected]
        certain = [i for i, k in enumerate(copies) for _ in range(k)]
        left = num - len(certain)
        drawn = rest([x - k for x, k in zip(expected, copies, strict=True)], left)
        return {tuple(sorted([*certain, *more])): p for more, p in drawn.items()}

    return law


def ssp(expected, num):
    """Walk through all outcomes of the pairwise roundings."""
    law = collections.Counter()

    def walk(j, active, fractions, counts, p):
        if j == len(expected):
            assert fractions[active] == 0  # the total is whole
            law[tuple(i for i, k in enumerate(counts) for _ in range(k))] += p
            return
        a, b = fractions[active], fractions[j]
        step = functools.partial(settle, j, active, fractions, counts)
        if a + b == 0:
            step(j, 0, Fraction(0), p)
        elif a + b < 1:
            step(j, 0, a + b, p * a / (a + b))
            step(active, 0, a + b, p * b / (a + b))
        else:
            step(active, 1, a + b - 1, p * (1 - b) / (2 - a - b))
            step(j, 1, a + b - 1, p * (1 - a) / (2 - a - b))

    def settle(j, active, fractions, counts, settled, up, left, p):
        if p:
            other = active if settled == j else j
            fractions = [left if i == other else f for i, f in enumerate(fractions)]
            counts = [k + up if i == settled else k for i, k in enumerate(counts)]
            walk(j + 1, other, fractions, counts, p)

    walk(1, 0, [x % 1 for x in expected], [math.floor(x) for x in expected], Fraction(1))
    return law


READINGS = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual_multinomial": residual(multinomial),
    "residual_systematic": residual(systematic),
    "ssp": ssp,
}


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


# --- Masses ---------------------------------------------------------------------------------------


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
    log_mass = np.asarray(d.log_prob(bad[:, None]))
    assert log_mass.shape == (4, 3)
    assert np.all(log_mass[:, 0] == -np.inf)
    assert np.all(np.isnan(log_mass[:, 1:]))
    drawn = np.asarray(d.sample(jax.random.key(0), (200,)))
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


# --- Draws ----------------------------------------------------------------------------------------


DRAWS, FALSE_ALARM = 50_000, 1e-6


def fit(drawn, values, found):
    """The p-value of draws under masses, rare values taken together; 0 for an impossible one."""
    index = {v: i for i, v in enumerate(map(tuple, values.tolist()))}
    seen = np.bincount([index[v] for v in map(tuple, drawn.tolist())], minlength=len(values))
    wanted = found * len(drawn)
    if np.any(seen[found == 0]):
        return 0.0
    rare = wanted < 10
    seen = np.append(seen[~rare], seen[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    chi = ((seen - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum()
    return stats.chi2.sf(chi, max(np.sum(wanted > 0) - 1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_masses(name):
    """False alarm 1e-6 for each of 8 weighings; the other schemes' draws would be found out."""
    size, num = 4, 4
    cls = SCHEMES[name]
    draw = jax.jit(lambda k, w: cls(w, num).sample(k, (DRAWS,)))
    cases = [[3, 7, 2, 1], [0, 3, 0, 5], [1, 1, 1, 1], [7, 0, 0, 0]]
    cases += [[0, 0, 0, 0], [1, 2, 3, 0], [1, 1000, 1, 1], [2, 3, 3, 5]]
    for k, weights in enumerate(cases):
        drawn = np.asarray(draw(jax.random.key(k), jnp.asarray(log_of(weights), jnp.float32)))
        assert drawn.shape == (DRAWS, num)
        law = READINGS[name](shares(weights, num), num)
        values = masses_at(name, size, num)[0]
        wanted = np.array([float(law.get(tuple(v), 0)) for v in values.tolist()])
        assert fit(drawn, values, wanted) > FALSE_ALARM, weights
        for other in {*NAMES} - {name} if k == 0 else ():
            law = READINGS[other](shares(weights, num), num)
            wrong = np.array([float(law.get(tuple(v), 0)) for v in values.tolist()])
            same = {name, other} == {"systematic", "residual_systematic"}
            assert same or fit(drawn, values, wrong) < FALSE_ALARM, other


def awkward(size):
    """Weights that invite rounding: jitter around equality, heavy tails, half of them zero."""
    rng = np.random.default_rng(0)
    yield rng.normal(size=size) * 1e-6 - 5
    yield np.full(size, 0.3)
    yield rng.normal(size=size) * 8
    yield np.where(rng.random(size) < 0.5, -np.inf, rng.normal(size=size))
    yield np.where(np.arange(size) == size // 3, 0.0, -40.0)


def check_many(name, size):
    num = size
    draw = jax.jit(lambda k, w: SCHEMES[name](w, num).sample(k))
    for k, log_weights in enumerate(awkward(size)):
        log_weights = jnp.asarray(log_weights, jnp.float32)
        drawn = np.asarray(draw(jax.random.key(k), log_weights))
        assert drawn.shape == (num,)
        assert np.all(np.diff(drawn) >= 0)
        assert drawn[0] >= 0
        counts = np.bincount(drawn, minlength=size)
        assert len(counts) == size
        exact = np.exp(np.asarray(log_weights, np.float64))
        expected = num * exact / exact.sum()
        assert not np.any(counts[expected == 0])
        rounding = 1e-6 * (1 + expected)  # of weights in single precision
        if name == "residual_multinomial":
            assert np.all(counts >= np.floor(expected - rounding))
        elif name == "stratified":
            assert np.all(np.abs(counts - expected) < 2 + rounding)
        elif name != "multinomial":
            assert np.all(np.abs(counts - expected) < 1 + rounding)
        else:
            z = (counts - expected) / np.sqrt(expected.clip(1e-9))
            assert np.all(np.abs(z[expected > 10]) < 7.5)  # false alarm below 1e-6 of 1e6 counts


@pytest.mark.parametrize("name", NAMES)
def test_many_particles(name):
    check_many(name, 5000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_million_particles(name):
    check_many(name, 1_000_000)


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
        drawn = np.asarray(ppl.run(program, key=0))
        shown = tuple(map(tuple, drawn.tolist())) if drawn.ndim == 2 else tuple(drawn.tolist())
        assert found[shown] > 0


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
