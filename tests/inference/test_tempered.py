"""Tempered and waste-free SMC: exact on finite programs, calibrated on conjugate ones."""

from __future__ import annotations

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.check import equal, invariant, preserves, programs, unbiased
from ppl.inference.moving import Lineage
from ppl.inference.tempered import tempered_smc
from ppl.semantics.tempering import Tempered
from ppl.staging import stage
from tests.compiling import compilations
from tests.zoo import (
    beta_binomial,
    beta_binomial_answer,
    flat_normal,
    normal_normal,
    normal_normal_answer,
    two_coins,
)

pytestmark = pytest.mark.usefixtures("x64")

SCHEDULE = [0.4, 1.0]


@ppl.kernel
def stay(trace):
    return trace


def _afresh(trace, power=1):
    """Run the program again; accept by the ratio of the weights (to a power, which is wrong)."""
    with ppl.scope("new"):
        new = trace.with_choices(ppl.traced(trace.program)().choices)
    ratio = jnp.exp(jnp.minimum(0.0, power * (new.log_weight - trace.log_weight)))
    return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)


@ppl.kernel
def afresh(trace):
    return _afresh(trace)


@ppl.kernel
def too_cold(trace):
    return _afresh(trace, power=2)


def _walk(trace, step):
    ((address, x),) = trace.choices.items()
    there = x + step * ppl.sample("step", dist.Normal(0.0, 1.0).expand(x.shape))
    new = trace.with_choices({address: there})
    ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density))
    return ppl.choose(ppl.sample("accept", dist.Bernoulli(ratio)) == 1, new, trace)


@ppl.kernel
def walk(trace):
    return _walk(trace, 0.6)


def replicate(q, count, fun, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda k: fun(ppl.run(q, k))))(keys))


def exactly(check, *args):
    report = check(*args)
    assert report.false_alarm == 0
    return report


# --- Exact --------------------------------------------------------------------------------------


@ppl.model
def branches(y):
    a = ppl.sample("a", dist.Bernoulli(0.3))

    def yes():
        b = ppl.sample("b", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        ppl.sample("y", dist.Bernoulli(0.2 + 0.3 * b), obs=y)
        return b

    b = jax.lax.cond(a == 1, yes, lambda: ppl.sample("c", dist.Bernoulli(0.4)))
    ppl.factor("possible", jnp.where(b == 0, -jnp.inf, -0.3 * a))
    return b + 3 * a


@ppl.model
def chain(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(0.2 + 0.6 * x))
        with ppl.plate("twice", 2):
            ppl.sample("y", dist.Bernoulli(0.3 + 0.4 * x), obs=y)
        return x, x

    return jax.lax.scan(step, 0, ys)[1]


@ppl.model
def unscored():
    return ppl.sample("a", dist.Bernoulli(0.3))


@ppl.model
def no_choice(y):
    ppl.sample("y", dist.Bernoulli(0.3), obs=y)
    return y


CASES = {
    "coins": two_coins,
    "branches": lambda: branches(1),
    "chain": lambda: chain(np.array([[0, 1], [1, 1]])),
    # The latent keeps its scale: runs start with weights that differ.
    "scaled latent": lambda: ppl.scale(two_coins(), 0.5, ["a"]),
    "scaled factor": lambda: ppl.scale(two_coins(), 3.0, ["equal"]),
    "unscored": unscored,
    "no choice": lambda: no_choice(1),
}


def tempered(kernel, num_particles=2, resample="multinomial", **options):
    options = {"temperatures": SCHEDULE, **options}
    return lambda p: tempered_smc(p, num_particles, kernel, resample=resample, **options)


WAYS = {
    "stay": tempered(stay),
    "afresh": tempered(afresh),
    "systematic": tempered(afresh, resample="systematic"),
    "of the library": tempered(ppl.kernels.single_site()),
    "two moves": tempered(afresh, num_moves=2),
    "waste-free": tempered(afresh, 4, waste_free=2),
    "one chain": tempered(afresh, 3, waste_free=3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_here_are_right(case):
    assert exactly(invariant, afresh, CASES[case]()).passed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["coins", "branches"])
def test_the_measure_is_preserved(case, way):
    exactly(preserves, WAYS[way], CASES[case]()).require()


@pytest.mark.parametrize("case", ["chain", "scaled latent", "scaled factor", "unscored"])
def test_the_measure_is_preserved_in_loops_and_under_scales(case):
    exactly(preserves, WAYS["afresh"], CASES[case]()).require()


def test_the_measure_is_preserved_without_choices():
    exactly(preserves, WAYS["stay"], CASES["no choice"]()).require()


@pytest.mark.parametrize("case", CASES)
def test_tempered_programs(case):
    """At 1 the program itself; in between as `ppl.scale` of its scores says."""
    program = CASES[case]()
    family, scores = Tempered(program), program.sites.addresses("observed", "factor")
    exactly(equal, family.at(1.0), program).require()
    exactly(equal, family.at(0.3), ppl.scale(program, 0.3, scores)).require()
    trace = ppl.trace(family.at(0.3), 0)
    unweighed = ppl.trace_of(ppl.scale(program, 0.0, scores), trace.choices).log_weight
    weighed = ppl.trace_of(program, trace.choices).log_weight
    np.testing.assert_allclose(family.log_likelihood(trace), weighed - unweighed, rtol=1e-12)


@ppl.model
def constant():
    ppl.sample("a", dist.Bernoulli(0.3))
    return 0


@ppl.kernel
def redraw(trace):
    return trace.with_choices(ppl.traced(trace.program)().choices)


def test_constant_values():
    exactly(preserves, tempered(redraw, waste_free=2), constant()).require()


law = functools.partial(hypothesis.settings, database=None)


@law(max_examples=10)
@hypothesis.given(programs(size=5, max_worlds=6))
def test_random_programs(program):
    exactly(preserves, WAYS["afresh"], program).require()


@pytest.mark.slow
@law(max_examples=10)
@hypothesis.given(programs(size=5, max_worlds=5, observations=True))
def test_random_programs_waste_free(program):
    exactly(preserves, tempered(afresh, waste_free=2), program).require()


def _evidence(q):
    return jnp.exp(q().log_evidence)


def test_the_evidence_is_unbiased():
    program = branches(1)
    q = stage(_evidence, (WAYS["systematic"](program),), name="evidence")
    exactly(unbiased, q, ppl.enumerate(program).total_mass).require()


def test_it_nests():
    inner = ppl.extract(WAYS["stay"](two_coins()))
    exactly(preserves, lambda _: ppl.importance(inner, 2), two_coins()).require()


# --- Wrong versions are rejected ----------------------------------------------------------------


@ppl.model
def _without_evidence(q):
    result = q()
    evidence = jnp.where(result.log_evidence == -jnp.inf, -jnp.inf, 0.0)
    return ppl.Population(result.values, result.log_weights, evidence)


def _at_one(program):
    """Moves for the posterior at every temperature."""

    @ppl.kernel
    def move(trace):
        moved = afresh(ppl.trace_of(program, trace.choices))
        return trace.with_choices(moved.choices)

    return tempered(move)(program)


def _stopping_short(program):
    scores = program.sites.addresses("observed", "factor")
    return tempered(afresh, temperatures=[1.0])(ppl.scale(program, 0.4, scores))


MUTANTS = {
    "the evidence is dropped": lambda p: _without_evidence(WAYS["afresh"](p)),
    "the kernel is for another temperature": _at_one,
    "the kernel is wrong": tempered(too_cold),
    "no weight for what is left": _stopping_short,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_rejected(mutant):
    assert exactly(preserves, MUTANTS[mutant], two_coins()).verdict == "failed"


def test_the_declared_bias_is_found():
    """Temperatures that two particles choose; the bias is small, and there."""
    q = tempered(afresh, temperatures=None, ess_threshold=0.8, max_temperatures=4)
    report = exactly(preserves, q, two_coins())
    assert report.verdict == "failed"
    assert 1e-6 < report.statistic < 0.05


# --- Adaptive temperatures ----------------------------------------------------------------------

Y = np.array([0.3, 0.9, 1.2, 5.0])
NORMAL, BETA = normal_normal_answer(Y), beta_binomial_answer(3)


def check_moments(q, answer, runs=400):
    """Evidence, mean and variance over seeds; |z| < 5.2 for all three: 1e-6."""

    def summary(p):
        x = next(iter(p.choices.values()))
        moments = jnp.mean(x), jnp.mean((x - answer.mean) ** 2)
        return jnp.exp(p.log_evidence - answer.log_evidence), *moments

    for found, expected in zip(
        replicate(q, runs, summary), (1.0, answer.mean, answer.sd**2), strict=True
    ):
        assert abs(found.mean() - expected) < 5.2 * found.std() / math.sqrt(runs)


def fitted_walk(population):
    """A random walk as wide as the population."""
    mean, _ = population.expect("mu")
    step = jnp.sqrt(population.expect(lambda x: (x - mean) ** 2).value)
    assert population.program.latents == ("mu",)

    @ppl.kernel
    def move(trace):
        return _walk(trace, 2 * step)

    return move


@pytest.mark.parametrize(
    ("make", "kernel", "options", "answer"),
    [
        (lambda: normal_normal(Y), walk, {"num_moves": 4}, NORMAL),
        (lambda: normal_normal(Y), fitted_walk, {"waste_free": 5}, NORMAL),
        pytest.param(
            *(lambda: beta_binomial(3), afresh, {"num_moves": 2}, BETA), marks=pytest.mark.slow
        ),
    ],
    ids=["normal", "waste-free, fitted kernel", "beta"],
)
def test_evidence_and_posterior(make, kernel, options, answer):
    check_moments(tempered_smc(make(), 200, kernel, **options), answer)


# x ~ N(0, 3^2), and the likelihood has two narrow modes, at -4 and 4, of masses 1 and 3 (times
# density of the prior, which is even).


@ppl.model
def two_modes():
    x = ppl.sample("x", dist.Normal(0.0, 3.0))
    left, right = (dist.Normal(at, 0.2).log_prob(x) for at in (-4.0, 4.0))
    ppl.factor("modes", jnp.logaddexp(left, right + math.log(3.0)))
    return x


def test_two_modes():
    log_evidence = math.log(4) + stats.norm(0, math.hypot(3, 0.2)).logpdf(4)
    q = tempered_smc(two_modes(), 200, walk, num_moves=2)
    z, right = replicate(
        q, 300, lambda p: (jnp.exp(p.log_evidence - log_evidence), jnp.mean(p.values > 0))
    )
    # |z| < 5 for both: 1e-6. One walk does not cross: its own end is a mode, 0 or 1.
    assert abs(z.mean() - 1) < 5 * z.std() / math.sqrt(300)
    # A ratio of unbiased estimates, of bias about its variance.
    assert abs(right.mean() - 0.75) < 5 * right.std() / math.sqrt(300) + right.var()
    assert right.std() < 0.1


def adaptive(y=Y, ess_threshold=0.7):
    return tempered_smc(
        normal_normal(y), 400, walk, ess_threshold=ess_threshold, max_temperatures=8
    )


def test_temperatures_are_where_the_effective_sample_size_falls_to_the_threshold():
    result = ppl.run(adaptive(), 0)
    steps = {k: np.asarray(x) for k, x in result.steps.items()}
    used = int(np.sum(~np.isnan(steps["temperature"])))
    assert 2 < used < 8
    assert not steps["exhausted"]
    temperatures = steps["temperature"][:used]
    assert np.all(np.diff(temperatures) > 0)
    assert temperatures[-1] == 1
    np.testing.assert_allclose(steps["ess"][: used - 1], 0.7 * 400, rtol=1e-6)
    assert steps["ess"][used - 1] >= 0.7 * 400
    assert np.all((steps["moved"][:used] > 0) & (steps["moved"][:used] <= 1))
    np.testing.assert_array_equal(steps["log_evidence"][used - 1], result.log_evidence)
    for name in ("temperature", "ess", "log_evidence", "moved"):
        assert steps[name].shape == (8,)
        assert np.all(np.isnan(steps[name][used:]))


def test_temperatures_that_run_out_are_said_to():
    steps = ppl.run(adaptive(ess_threshold=0.95), 0).steps
    assert steps["exhausted"]
    assert steps["temperature"][7] == 1
    assert steps["ess"][7] < 0.95 * 400


@ppl.model
def tail(low):
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.factor("tail", jnp.where(x > low, 0.0, -jnp.inf))
    return x


def test_one_temperature_where_all_weights_are_equal():
    result = ppl.run(tempered_smc(tail(np.float64(-np.inf)), 400, afresh), 0)
    assert result.steps["temperature"][0] == 1
    assert np.all(np.isnan(result.steps["temperature"][1:]))
    assert result.log_evidence == 0
    np.testing.assert_allclose(result.weights, 1 / 400)
    np.testing.assert_array_equal(result.values, result.choices["x"])


def test_a_hard_constraint_takes_one_step():
    """Particles of weight zero have it at every temperature, and do not slow the others down."""
    result = ppl.run(tempered_smc(tail(np.float64(1.0)), 400, afresh), 0)
    assert np.sum(~np.isnan(result.steps["temperature"])) == 1
    assert np.all(np.asarray(result.values) > 1)
    np.testing.assert_allclose(result.steps["ess"][0], 400 * np.exp(result.log_evidence))


@pytest.mark.parametrize("temperatures", [None, SCHEDULE])
def test_no_particle_is_left(temperatures):
    result = ppl.run(tempered_smc(tail(np.float64(100.0)), 400, afresh, temperatures), 0)
    assert result.log_evidence == -np.inf
    np.testing.assert_array_equal(result.log_weights, -np.inf)
    assert np.all(np.isfinite(result.choices["x"]))
    assert result.ess == 0
    assert np.isnan(result.log_evidence_se)


# --- Standard errors ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "slack"),
    [
        ({"resample": "multinomial", "num_moves": 3}, 0.04),
        ({"resample": "multinomial", "temperatures": [0.02, 0.1, 0.4, 1.0]}, 0.04),
        # Resampling noise of other schemes is taken out only on average.
        ({"num_moves": 3}, 0.12),
        ({"waste_free": 5}, 0.12),
    ],
    ids=["multinomial", "given temperatures", "systematic", "waste-free"],
)
def test_standard_errors_of_the_evidence(options, slack):
    """Against the spread over 500 runs, whose own relative error is about 1 / sqrt(1000)."""
    q = tempered_smc(normal_normal(Y), 400, walk, **options)
    value, error = replicate(q, 500, lambda p: (p.log_evidence, p.log_evidence_se))
    ratio = np.sqrt(np.nanmean(error**2)) / np.std(value)
    assert abs(math.log(ratio)) < 5 / math.sqrt(1000) + slack
    assert np.mean(np.isnan(error)) < 0.02


def test_no_standard_error_from_one_ancestor():
    weights = jnp.array([0.5, 0.3, 0.2])
    lineage = Lineage.start(3, 1)
    # Before resampling it is that of importance sampling.
    np.testing.assert_allclose(lineage.variance(weights), (3 * jnp.sum(weights**2) - 1) / 2)
    alone = lineage.resampled(weights, jnp.array([1, 1, 1]))
    assert np.isnan(alone.variance(weights))
    assert np.isnan(Lineage.start(1, 3).variance(weights))


# --- Use ----------------------------------------------------------------------------------------


def test_new_data_settings_and_keys_compile_nothing():
    def once(y, temperatures, threshold, key):
        for q in (
            tempered_smc(normal_normal(y), 8, walk, temperatures),
            adaptive(y, threshold),
        ):
            ppl.run(q, key).log_evidence.block_until_ready()

    once(Y, [0.5, 1.0], 0.5, 0)
    with compilations() as found:
        once(Y + 1, [0.2, 1.0], 0.7, 1)
    assert found.count == 0


def test_single_precision():
    with jax.enable_x64(False):
        result = ppl.run(tempered_smc(branches(1), 200, afresh, SCHEDULE), 0)
    assert result.log_evidence.dtype == jnp.float32
    assert set(result.present) == {"b", "c"}
    assert set(result.program.latents) == {"a", "b", "c"}
    assert result.steps["temperature"].shape == (2,)
    expected = math.log(ppl.enumerate(branches(1)).total_mass)
    assert abs(result.log_evidence - expected) < 5 * result.log_evidence_se


@ppl.model
def unbounded():
    return jax.lax.while_loop(lambda n: n < 3, lambda n: n + ppl.sample("n", dist.Poisson(1.0)), 0)


ERRORS = {
    "while": (lambda: tempered_smc(unbounded(), 2, stay), '"n" .*while_loop|while_loop .*"n"'),
    "improper": (lambda: tempered_smc(flat_normal(Y), 2, stay), 'improper flat prior at "mu"'),
    "no particles": (lambda: tempered_smc(two_coins(), 0, stay), "num_particles=0"),
    "no moves": (lambda: tempered_smc(two_coins(), 2, stay, num_moves=0), "num_moves=0"),
    "true": (lambda: tempered_smc(two_coins(), True, stay), "num_particles=True"),
    "no kernel": (lambda: tempered_smc(two_coins(), 2, "nuts"), "the kernel 'nuts'"),
    "no fitted kernel": (lambda: tempered_smc(two_coins(), 2, lambda p: 1), "the kernel 1"),
    "decreasing": (lambda: tempered_smc(two_coins(), 2, stay, [0.5, 0.4, 1]), "temperatures="),
    "short": (lambda: tempered_smc(two_coins(), 2, stay, [0.5, 0.9]), "the last 1"),
    "from zero": (lambda: tempered_smc(two_coins(), 2, stay, [0, 1]), "above 0"),
    "empty": (lambda: tempered_smc(two_coins(), 2, stay, []), "temperatures="),
    "words": (lambda: tempered_smc(two_coins(), 2, stay, ["a"]), "temperatures="),
    "both": (
        lambda: tempered_smc(two_coins(), 2, stay, [0.5, 1.0], ess_threshold=0.5),
        "leave nothing to choose",
    ),
    "threshold": (lambda: tempered_smc(two_coins(), 2, stay, ess_threshold=1), "between 0 and 1"),
    "chains": (lambda: tempered_smc(two_coins(), 5, stay, waste_free=2), "num_particles=6"),
    "chain": (lambda: tempered_smc(two_coins(), 5, stay, waste_free=1), "waste_free=1"),
    "scheme": (lambda: tempered_smc(two_coins(), 5, stay, resample="sytematic"), "systematic"),
    "keyword": (lambda: tempered_smc(two_coins(), 5, stay, moves=2), "num_moves"),
    "no program": (lambda: tempered_smc(two_coins, 5, stay), "needs a Program"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, words = ERRORS[case]
    with pytest.raises(ppl.PPLError, match=words):
        call()


def test_a_traced_schedule_is_refused():
    with pytest.raises(ppl.PPLError, match="known when the program is made"):
        jax.jit(lambda t: tempered_smc(two_coins(), 2, stay, t) and t)(jnp.array(SCHEDULE))
