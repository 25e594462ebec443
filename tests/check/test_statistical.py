"""`same_measure`, `same_mean`: right programs pass, wrong ones fail, few draws are undecided."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.check import CheckFailed, same_mean, same_measure
from ppl.errors import ArgumentError, ModelError, OpenObservationsError, ResultError
from tests.zoo import NORMAL_DATA, normal_normal, two_coins


@ppl.model
def one_normal(scale=1.0, shift=0.0):
    return ppl.sample("x", dist.Normal(shift, scale))


@ppl.model
def sum_of_two():
    return 0.6 * ppl.sample("a", dist.Normal(0.0, 1.0)) + ppl.sample("b", dist.Normal(0.0, 0.8))


@ppl.model
def pair(correlation):
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    e = ppl.sample("e", dist.Normal(0.0, 1.0))
    return {"x": x, "y": correlation * x + jnp.sqrt(1 - correlation**2) * e}


@ppl.model
def conjugate(y, error=0.0, evidence=0.0):
    """`normal_normal`, integrated by hand: the posterior, weighted by the evidence."""
    precision = 1 / 4.0 + y.shape[0] / 0.25
    mean = (1.0 / 4.0 + y.sum() / 0.25) / precision
    covariance = 0.25 * jnp.eye(y.shape[0]) + 4.0
    prior = dist.MultivariateNormal(jnp.ones(y.shape[0]), covariance)
    ppl.factor("evidence", prior.log_prob(y) + evidence)
    return ppl.sample("mu", dist.Normal(mean + error, 1 / jnp.sqrt(precision)))


# --- Draws of equal weight: exact tests ---------------------------------------------------------


def test_equal_laws_pass():
    report = same_measure(one_normal(), sum_of_two(), key=0)
    assert report.passed
    assert report.false_alarm == 1e-6
    assert report.budget["draws of each"] >= 1000
    assert "A difference of 0.09998 in the probability" in str(report)


# Distances of the distribution functions: 0.20, 0.16, 0.20 (mean; sd; correlation, seen by the
# components). With n = 1,512 to 2,500 draws a distance d has exponent n d^2 >= 38 against the
# log(2 / 2e-7) = 16 of a failure at the first stage, and later stages have four times the draws.
WRONG_LAWS = {
    "mean": (one_normal(), one_normal(shift=0.5)),
    "sd": (one_normal(), one_normal(scale=1.7)),
    "correlation": (pair(0.9), pair(0.5)),
}


@pytest.mark.parametrize("name", WRONG_LAWS)
def test_different_laws_fail(name):
    report = same_measure(*WRONG_LAWS[name], key=1)
    assert report.verdict == "failed"
    with pytest.raises(CheckFailed, match=r"differs: .* against"):
        report.require()


def test_what_statistics_look_at():
    p, q = pair(0.9), pair(0.5)
    assert same_measure(p, q, key=2, statistics=lambda v: v["x"]).passed
    assert not same_measure(p, q, key=2, statistics=lambda v: v["x"] * v["y"])


def test_few_draws_are_undecided():
    report = same_measure(one_normal(), sum_of_two(), key=3, max_draws=200)
    assert report.verdict == "undecided"
    assert not report
    with pytest.raises(CheckFailed, match=r"Set max_draws to 1,512 or more"):
        report.require()


def test_level_of_the_whole_check():
    # 60 checks that may fail with probability 0.2 each; limit of 1e-6.
    failed = sum(
        same_measure(one_normal(), sum_of_two(), key=k, false_alarm=0.2).verdict == "failed"
        for k in range(60)
    )
    assert failed <= stats.binom.isf(1e-6, 60, 0.2)


def test_discrete_values():
    @ppl.model
    def coins(p):
        a = ppl.sample("a", dist.Bernoulli(0.5))
        return a, ppl.sample("b", dist.Bernoulli(jnp.where(a == 1, p, 1 - p)))

    assert same_measure(coins(0.7), coins(0.7), key=4)
    assert not same_measure(coins(0.7), coins(0.3), key=4)  # the same margins


def test_nan_counts_as_a_value():
    @ppl.model
    def sometimes(p):
        x = ppl.sample("x", dist.Uniform(0.0, 1.0))
        return jnp.where(x < p, jnp.nan, ppl.sample("y", dist.Normal(0.0, 1.0)))

    assert same_measure(sometimes(0.3), sometimes(0.3), key=5)
    assert not same_measure(sometimes(0.3), sometimes(0.6), key=5)


# --- Weighted draws -----------------------------------------------------------------------------


def test_equal_measures_pass():
    report = same_measure(normal_normal(NORMAL_DATA), conjugate(NORMAL_DATA), key=0)
    assert report.passed
    assert "of the mass" in str(report)


# The posterior sd is 0.248. Relative errors of masses are about 0.01 with the draws of the first
# stage: a mass 20 % too great is 20 standard errors away; a mean 1/2 sd too great changes the share
# of {x <= median} from 0.5 to 0.31.
@pytest.mark.parametrize("wrong", [{"evidence": math.log(1.2)}, {"error": 0.125}])
def test_different_measures_fail(wrong):
    report = same_measure(normal_normal(NORMAL_DATA), conjugate(NORMAL_DATA, **wrong), key=1)
    assert report.verdict == "failed"
    name = "log total mass" if "evidence" in wrong else "value <= "
    assert any(name in row[0] for row in report.differences)


def test_level_of_the_weighted_check():
    # 60 checks that may fail with probability 0.2 each; limit of 1e-6.
    p, q = normal_normal(NORMAL_DATA), conjugate(NORMAL_DATA)
    failed = sum(
        same_measure(p, q, key=k, false_alarm=0.2, resolution=0.3).verdict == "failed"
        for k in range(60)
    )
    assert failed <= stats.binom.isf(1e-6, 60, 0.2)


def test_variable_weights_get_the_draws_they_need():
    # Weights exp(1.5 x) and the same measure without them: N(1.5, 1) times exp(1.125).
    @ppl.model
    def tilted(direct):
        x = ppl.sample("x", dist.Normal(1.5 if direct else 0.0, 1.0))
        ppl.factor("w", 1.125 if direct else 1.5 * x)
        return x

    report = same_measure(tilted(False), tilted(True), key=9)
    assert report.passed
    assert report.budget["draws of each"] > 10_000
    short = same_measure(tilted(False), tilted(True), key=9, max_draws=3000)
    assert short.verdict == "undecided"
    assert "Set max_draws to " in short.notes[0]


@ppl.model
def ridge(y, shift):
    """Two choices of sd 3 that are tied together to within 0.1."""
    a = ppl.sample("a", dist.Normal(0.0, 3.0))
    b = ppl.sample("b", dist.Normal(a + shift, 0.1))
    ppl.sample("y", dist.Normal(a, 3.0), obs=y)
    return a, b


def test_a_small_shift_across_a_ridge_fails():
    # b - a is 1/2 sd off, which is 1/60 of the sd of b: only a component sees it.
    right, wrong = ridge(1.0, 0.0), ridge(1.0, 0.05)
    assert same_measure(right, right, key=7)
    report = same_measure(right, wrong, key=7)
    assert report.verdict == "failed"
    assert report.differences[0][0].startswith("component 1")


def test_infinite_values_of_both_signs():
    @ppl.model
    def infinite(p):
        x = ppl.sample("x", dist.Uniform(0.0, 1.0))
        return jnp.where(x < p, jnp.inf, jnp.where(x > 0.8, -jnp.inf, x))

    assert same_measure(infinite(0.3), infinite(0.3), key=8)
    assert not same_measure(infinite(0.3), infinite(0.6), key=8)


def test_a_dropped_evidence_is_told():
    report = same_measure(
        two_coins(), ppl.mask(two_coins(), False), key=2, statistics=lambda v: v[0]
    )
    assert report.verdict == "failed"
    mass = next(row for row in report.differences if row[0] == "log total mass")
    assert float(mass[2]) == 0.0
    # log 0.3775 with a relative error below 0.05, which is five standard errors or more.
    assert abs(float(mass[1]) - math.log(0.3775)) < 0.05


def test_weighted_check_with_few_draws_is_undecided():
    report = same_measure(normal_normal(NORMAL_DATA), conjugate(NORMAL_DATA), key=3, max_draws=1000)
    assert report.verdict == "undecided"
    assert "asks for" in report.notes[0]


@pytest.mark.parametrize("rate", [20.0, 1000.0])
def test_weights_carried_by_a_few_draws_are_undecided(rate):
    # A weight exp(20 x), or exp(1000 x): of 10,000 draws the largest carries nearly all.
    @ppl.model
    def heavy(rate):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("w", rate * x)
        return x

    report = same_measure(heavy(rate), heavy(rate), key=4, max_draws=10_000)
    assert report.verdict == "undecided"
    assert "carry all of the weight" in report.notes[0]


def test_measures_of_mass_zero_are_undecided():
    @ppl.model
    def nothing():
        ppl.factor("w", -jnp.inf)
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    assert same_measure(nothing(), nothing(), key=5, max_draws=2000).verdict == "undecided"


def test_constant_weights_are_compared_up_to_rounding():
    @ppl.model
    def constant(log_weights):
        for i, w in enumerate(log_weights):
            ppl.factor(f"w{i}", w)
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    parts = [0.1 * i for i in range(20)]
    assert same_measure(constant(parts), constant([sum(parts)]), key=6)
    assert not same_measure(constant(parts), constant([sum(parts) + 0.01]), key=6)


# --- Errors -------------------------------------------------------------------------------------


def test_values_of_different_form():
    with pytest.raises(ArgumentError, match=r"same_measure got .* differ in form at value"):
        same_measure(one_normal(), pair(0.5), key=0)


def test_value_without_numbers():
    @ppl.model
    def silent():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ArgumentError, match="whose value holds no array; needs at least one"):
        same_measure(silent(), silent(), key=0)


def test_keys_are_compared_by_their_bits():
    @ppl.model
    def keyed(key):
        return key, ppl.sample("x", dist.Normal(0.0, 1.0))

    one, two = jax.random.key(0), jax.random.key(1)
    assert same_measure(keyed(one), keyed(one), key=0)
    assert not same_measure(keyed(one), keyed(two), key=0)


def test_weight_that_is_no_number():
    @ppl.model
    def broken():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("w", jnp.log(x))
        return x

    with pytest.raises(ResultError, match="same_measure got a run of log weight nan; needs"):
        same_measure(broken(), broken(), key=0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"resolution": 0.0}, "same_measure got resolution=0.0; needs a number between 0 and 1"),
        ({"max_draws": 10}, "same_measure got max_draws=10; needs an integer of at least 100"),
        ({"false_alarm": 2}, "same_measure got false_alarm=2; needs a number between 0 and 0.5"),
        ({"draws": 10}, "same_measure got the unknown keyword draws=10; needs"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ArgumentError, match=text):
        same_measure(one_normal(), one_normal(), key=0, **settings)


def test_models_are_not_programs():
    with pytest.raises(ArgumentError, match="same_measure got Model; needs a Program"):
        same_measure(one_normal, one_normal(), key=0)


def test_statistics_that_cannot_be_traced():
    with pytest.raises(ModelError, match="needs the value of an array"):
        same_measure(one_normal(), one_normal(), key=0, statistics=float)


# --- Means --------------------------------------------------------------------------------------


@ppl.model
def estimator(bias=0.0):
    x = ppl.sample("x", dist.Exponential(1.0))
    return {"mean": x + bias, "square": x * jnp.array([x, 1.0])}


EXACT = {"mean": 1.0, "square": np.array([2.0, 1.0])}


def test_right_mean_passes():
    report = same_mean(estimator(), EXACT, key=0)
    assert report.passed
    assert "standard deviations would have been seen" in report.notes[0]


# The first stage has 2,001 draws: 0.3 sd is 13 standard errors, where 5.5 fail.
@pytest.mark.parametrize("wrong", [{"bias": 0.3}, {"square": 2.0}])
def test_wrong_mean_fails(wrong):
    exact = {**EXACT, "square": np.array([1.0, 1.0])} if "square" in wrong else EXACT
    report = same_mean(estimator(wrong.get("bias", 0.0)), exact, key=1)
    assert report.verdict == "failed"
    name = "square[0]" if "square" in wrong else "mean"
    assert report.notes[0].startswith(f"The mean of {name} is ")


def test_means_of_few_draws_are_undecided():
    report = same_mean(estimator(), EXACT, key=2, max_draws=100)
    assert report.verdict == "undecided"
    assert "raise max_draws" in report.notes[0]


def test_means_carried_by_few_draws_are_undecided():
    @ppl.model
    def heavy():
        return jnp.exp(4 * ppl.sample("x", dist.Normal(0.0, 1.0)))

    assert same_mean(heavy(), math.exp(8.0), key=3).verdict == "undecided"


def test_constants_have_their_mean():
    @ppl.model
    def constant():
        return jnp.float32(0.1) + 0 * ppl.sample("x", dist.Normal(0.0, 1.0))

    assert same_mean(constant(), 0.1, key=4)
    assert not same_mean(constant(), 0.1001, key=4)


def test_errors_of_means():
    with pytest.raises(OpenObservationsError, match="which scores at"):
        same_mean(two_coins(), (0.0, 0.0), key=0)
    with pytest.raises(ArgumentError, match=r"same_mean got exact means of shapes \[\(2,"):
        same_mean(one_normal(), np.zeros(2), key=0)
    with pytest.raises(ArgumentError, match="same_mean got exact means that are not finite"):
        same_mean(one_normal(), math.nan, key=0)
