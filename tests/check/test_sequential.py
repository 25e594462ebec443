"""The sequential test keeps its level and finds what is wrong; its p-values are valid."""

import numpy as np
import pytest
from scipy import stats

from ppl.check import sequential
from ppl.check.bands import band, grid, simultaneous, uniformity
from ppl.check.pvalues import (
    contrast,
    detectable,
    known_mean,
    kolmogorov,
    log_tail,
    moments,
)
from ppl.check.sequential import passing_level
from ppl.errors import ArgumentError, ResultError

# --- sequential ---------------------------------------------------------------------------------


def failures(rng, runs, draw, **settings):
    outcomes = [sequential(lambda i, n: draw(rng), **settings) for _ in range(runs)]
    return sum(o.verdict == "failed" for o in outcomes)


@pytest.mark.parametrize("count", [1, 5])
def test_level(count):
    # Uniform p-values; Bonferroni is exact for one, and nearly so for several independent ones. The
    # number of failures is at most binomial; both limits have a false-alarm rate of 1e-6.
    runs, level = 20000, 0.05
    failed = failures(
        np.random.default_rng(0), runs, lambda rng: rng.uniform(size=count), false_alarm=level
    )
    assert failed <= stats.binom.isf(1e-6, runs, level)
    assert failed >= stats.binom.ppf(1e-6, runs, 0.5 * level)


def test_level_of_p_values_with_atoms():
    # P(p <= u) <= u with equality at the multiples of 1/50 only: the level holds still.
    runs, level = 20000, 0.1
    failed = failures(
        np.random.default_rng(1),
        runs,
        lambda rng: rng.integers(1, 51, size=1) / 50,
        false_alarm=level,
    )
    assert failed <= stats.binom.isf(1e-6, runs, level)


def test_limits_of_the_stages():
    base, pass_above = 1e-6 / 5, passing_level(1e-6, 5)
    for ends in range(5):
        limit = pass_above if ends == 4 else base / pass_above**ends
        script = [pass_above] * ends + [limit]
        outcome = sequential(lambda i, n, script=script: [script[i]], first=10)
        assert outcome.verdict == "failed"
        assert outcome.stages == ends + 1
        assert outcome.draws == 10 + 40 * ends
        np.testing.assert_allclose(outcome.level, limit, rtol=1e-12)
        script[ends] = pass_above * 1.01
        assert sequential(lambda i, n, script=script: [script[i]], first=10).verdict == "passed"


def test_p_values_are_multiplied_by_their_number():
    one, two = (sequential(lambda i, n, count=c: [1.5e-7] * count) for c in (1, 2))
    assert (one.stages, one.p_value) == (1, 1.5e-7)
    assert (two.stages, two.p_value) == (2, 3e-7)  # 3e-7 is above the 2e-7 of the first stage


def test_budget_that_ends_is_undecided():
    outcome = sequential(lambda i, n: [0.01], first=100, max_draws=300)
    assert outcome.verdict == "undecided"
    assert outcome.draws == 100


def test_p_value_that_is_no_number_is_an_error():
    with pytest.raises(ResultError, match=r"sequential got the p-values \[nan\]; needs .* Fix:"):
        sequential(lambda i, n: [np.nan])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"false_alarm": 0.0}, r"sequential got false_alarm=0.0; needs a number between 0 and 0.5"),
        ({"stages": 0}, r"sequential got stages=0; needs an integer of at least 1"),
        ({"first": 2.5}, r"sequential got first=2.5; needs an integer of at least 1"),
        ({"growth": 0.5}, r"sequential got growth=0.5; needs at least 1"),
    ],
)
def test_settings_out_of_range(settings, text):
    with pytest.raises(ArgumentError, match=text):
        sequential(lambda i, n: [1.0], **settings)


# --- p-values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 20, 300, 4000])
def test_kolmogorov_is_exact(n):
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.2, 1.0):
        x, y = rng.normal(size=n), rng.normal(size=n) + shift
        distance, p_value = kolmogorov(x, y)
        expected = stats.ks_2samp(x, y, method="exact")
        np.testing.assert_allclose(distance, expected.statistic, rtol=1e-12)
        np.testing.assert_allclose(p_value, min(1.0, expected.pvalue), rtol=1e-8)


def test_kolmogorov_of_nearly_equal_large_samples():
    x = np.arange(200_000.0)  # a distance of 1/n, whose series is longest
    assert kolmogorov(x, x + 0.5)[1] == pytest.approx(1.0, abs=1e-9)


def test_kolmogorov_with_ties_and_infinities_is_valid():
    # Bernoulli(1/2), and infinity for "absent": P(p <= 0.2) <= 0.2; limit of 1e-6.
    rng = np.random.default_rng(2)
    values = np.array([0.0, 1.0, np.inf])
    p = [kolmogorov(*values[rng.integers(0, 3, size=(2, 100))])[1] for _ in range(4000)]
    assert np.sum(np.array(p) <= 0.2) <= stats.binom.isf(1e-6, 4000, 0.2)


SKEWED = {
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0),
    "log-normal": (lambda rng, size: rng.lognormal(size=size), np.exp(0.5)),
    "rare": (lambda rng, size: (rng.random(size) < 0.02).astype(float), 0.02),
    "student": (lambda rng, size: rng.standard_t(4, size=size), 0.0),
}


@pytest.mark.parametrize("name", SKEWED)
def test_tail_of_means_of_skewed_draws(name):
    # 20,000 samples of 1,000: the share of p <= a is at most a, up to 1e-6 in binomial noise. A
    # plain z-test fails this at a = 1e-3 for the log-normal and the rare event.
    draw, mean = SKEWED[name]
    rng = np.random.default_rng(3)
    found = [known_mean(moments(draw(rng, (1000, 1000))), mean).p_value for _ in range(20)]
    p = np.concatenate(found)
    for a in (1e-1, 1e-2, 1e-3, 1e-4):
        assert np.sum(p <= a) <= stats.binom.isf(1e-6, p.size, a), a


def test_means_carried_by_one_draw_are_never_significant():
    x = np.zeros((1000, 1))
    x[0] = 1e6
    found = known_mean(moments(x), 0.0)
    assert found.p_value[0] > 0.1
    assert detectable(found.error, found.skewness, 1e-6)[0] == np.inf


def test_constant_samples_differ_for_certain_or_not_at_all():
    one, two = moments(np.ones((100, 1))), moments(np.full((100, 1), 1.5))
    assert contrast(one, two).p_value[0] == 0.0
    assert contrast(one, one).p_value[0] == 1.0
    assert contrast(one, moments(np.full((100, 1), 1 + 1e-9)), 1e-8).p_value[0] == 1.0


def test_detectable_has_the_p_value_it_is_asked_for():
    z = detectable(np.ones(3), np.array([0.0, 0.01, 0.08]), 1e-6)
    np.testing.assert_allclose(np.exp(log_tail(z, np.array([0.0, 0.01, 0.08]))), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(z[0], stats.norm.isf(5e-7), rtol=1e-9)


# --- bands --------------------------------------------------------------------------------------


def test_simultaneous_level_by_brute_force():
    # Two ranks of three draws: all 16 pairs.
    pairs = np.array([(i, j) for i in range(4) for j in range(4)])
    levels = np.array([uniformity(pair, 3).level for pair in pairs])
    for level in np.unique(levels):
        np.testing.assert_allclose(
            simultaneous(level, 2, 3), np.mean(levels <= level * (1 + 1e-12)), rtol=1e-12
        )


def test_simultaneous_level_by_simulation():
    rng = np.random.default_rng(4)
    levels = np.array([uniformity(rng.integers(0, 100, 200), 99).level for _ in range(4000)])
    for level in (0.05, 0.01, 0.002):
        exact = simultaneous(level, 200, 99)
        low, high = stats.binom.ppf(1e-6, 4000, exact), stats.binom.isf(1e-6, 4000, exact)
        assert low <= np.sum(levels <= level) <= high


def test_band_has_its_coverage():
    limits = band(0.95, 200, 99)
    rng = np.random.default_rng(5)
    ranks = rng.integers(0, 100, size=(4000, 200))
    counts = (ranks[:, :, None] < grid(99)).mean(axis=1)
    inside = np.all((counts >= limits.low) & (counts <= limits.high), axis=1).sum()
    # Counts are whole, so coverage is at least 0.95, and less than a point more.
    assert stats.binom.ppf(1e-6, 4000, 0.95) <= inside <= stats.binom.isf(1e-6, 4000, 0.96)
