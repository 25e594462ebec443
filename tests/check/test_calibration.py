"""`sbc` and `tarp` on a conjugate toy: exact posteriors pass, four kinds of wrong ones fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.check import CheckFailed, sbc, tarp
from ppl.check.calibration import _ranks
from ppl.errors import (
    AddressError,
    ArgumentError,
    OpenObservationsError,
    ResultError,
    UnsupportedError,
)


@ppl.model
def toy(y):
    """theta ~ N(0, 1) and y ~ N(theta, 1/4) in the plane: theta | y ~ N(0.8 y, 0.2)."""
    theta = ppl.sample("theta", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)


TOY = toy(jnp.zeros(2))


def posterior(sd=1.0, shift=0.0, weight=0.8, num=100):
    """The exact posterior, or one that is off."""
    spread = sd * (0.2**0.5 if weight else 1.0)

    def infer(program, data):
        law = dist.Normal(weight * data["y"] + shift, spread).expand([num, 2])
        return {"theta": ppl.sample("draws", law)}

    return infer


RIGHT = posterior()  # one function, so that it is compiled once

WRONG = {
    "half the sd": {"sd": 0.5},
    "twice the sd": {"sd": 2.0},
    "shifted": {"shift": 0.3},
    "the prior": {"weight": 0.0},
}


# --- SBC ----------------------------------------------------------------------------------------


def test_sbc_of_the_exact_posterior_passes():
    report = sbc(RIGHT, TOY, key=0)
    assert report.passed
    assert report.false_alarm == 1e-6
    assert {row[0] for row in report.differences} == {"theta[0]", "theta[1]", "log likelihood"}


# Distances of the ranks' distribution functions from the uniform: 0.12, 0.12, 0.20 and (for the log
# likelihood; the prior's ranks of theta are uniform) 0.5. With 500 simulations the greatest
# distance of uniform ranks is below 0.12 but for 1e-6, and the bands are tighter in the tails.
@pytest.mark.parametrize("name", WRONG)
def test_sbc_of_wrong_posteriors_fails(name):
    report = sbc(posterior(**WRONG[name]), TOY, key=1)
    assert report.verdict == "failed"
    words = {
        "half the sd": "too narrow|too high",
        "twice the sd": "too wide|too low",
        "shifted": "theta.*too high",
        "the prior": "log likelihood: posterior draws are too low",
    }
    with pytest.raises(CheckFailed, match=words[name]):
        report.require()


def test_sbc_sees_the_prior_by_the_log_likelihood_only():
    report = sbc(posterior(weight=0.0), TOY, key=2)
    levels = {row[0]: float(row[4]) for row in report.differences}
    assert levels["log likelihood"] < 1e-20
    assert min(levels["theta[0]"], levels["theta[1]"]) > 1e-6


def test_sbc_of_few_simulations_is_undecided():
    report = sbc(RIGHT, TOY, key=3, num_simulations=100)
    assert report.verdict == "undecided"
    assert "set num_simulations=" in report.notes[0]


def test_level_of_sbc():
    # 60 checks that may fail with probability 0.2 each; limit of 1e-6.
    infer = posterior(num=9)
    failed = sum(
        sbc(infer, TOY, key=k, num_simulations=64, num_draws=9, false_alarm=0.2).verdict == "failed"
        for k in range(60)
    )
    assert failed <= stats.binom.isf(1e-6, 60, 0.2)


def test_ranks_with_ties_are_uniform():
    # Truth and draws are fair coins. P(rank = r) = 1/4 for r = 0..3; chi-squared, limit of 1e-6.
    rng = np.random.default_rng(0)
    coins = rng.integers(0, 2, size=(8000, 4, 1))
    counts = np.bincount(_ranks(coins[:, 0], coins[:, 1:], rng)[:, 0], minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_sbc_of_populations():
    # Of 2,000 particles drawn from the prior most count, and four draws of them are as good as
    # independent; with two particles they are nearly draws from the prior.
    @ppl.model
    def rough(y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    def importance(num):
        return lambda program: ppl.importance(program, num_particles=num)

    good = sbc(importance(2000), rough(0.0), key=4, num_draws=4)
    assert good.passed
    bad = sbc(importance(2), rough(0.0), key=4, num_draws=4)
    assert bad.verdict == "failed"


def test_sbc_of_chains():
    @ppl.model
    def line(y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    def chains(scale):
        def infer(program, data):
            draws = ppl.sample("d", dist.Normal(data["y"] / 2, scale).expand([2, 50]))
            return ppl.Chains({"x": draws}, {}, latents=("x",))

        return infer

    assert sbc(chains(0.5**0.5), line(0.0), key=5, num_draws=99)
    assert not sbc(chains(1.0), line(0.0), key=5, num_draws=99)


def test_sbc_of_some_choices_says_so():
    @ppl.model
    def two(y):
        ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.sample("b", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(b, 1.0), obs=y)

    def infer(program, data):
        return {"a": ppl.sample("d", dist.Normal(0.0, 1.0).expand([99]))}

    report = sbc(infer, two(0.0), key=6)
    assert report.passed
    assert "Draws lack some choices, so the log likelihood was not ranked." in report.notes


def test_plot_of_sbc():
    from matplotlib import pyplot as plt

    ax = sbc(RIGHT, TOY, key=0, num_simulations=64).plot()
    assert len(ax.lines) == 3
    assert ax.get_ylabel() == "ECDF minus uniform"
    plt.close("all")


# --- TARP ---------------------------------------------------------------------------------------


def test_tarp_of_the_exact_posterior_passes():
    report = tarp(RIGHT, TOY, key=0, num_simulations=2000)
    assert report.passed
    np.testing.assert_allclose(report.threshold, stats.kstwo.isf(1e-6, 2000), rtol=1e-12)


# With 5,000 simulations: 0.20, 0.25, 0.06 to 0.08 and 0.25, where 0.038 fails; the distance of an
# exact posterior is above 0.02 with probability 0.04.
@pytest.mark.parametrize("name", WRONG)
def test_tarp_of_wrong_posteriors_fails(name):
    report = tarp(posterior(**WRONG[name]), TOY, key=1, num_simulations=5000)
    assert report.verdict == "failed"
    with pytest.raises(CheckFailed, match="Coverage is not credibility"):
        report.require()


def test_tarp_with_points_that_ignore_the_data_passes_the_prior():
    def anywhere(data, key):
        return jax.random.normal(key, (2,))

    def at_the_data(data, key):
        return data["y"]

    prior = posterior(weight=0.0)
    assert tarp(prior, TOY, key=2, references=anywhere)
    assert not tarp(prior, TOY, key=2, references=at_the_data)
    assert tarp(RIGHT, TOY, key=2, references=at_the_data)


def test_tarp_of_few_simulations_is_undecided():
    report = tarp(RIGHT, TOY, key=3, num_simulations=200)
    assert report.verdict == "undecided"
    assert "set num_simulations=" in report.notes[0]


def test_plot_of_tarp():
    from matplotlib import pyplot as plt

    ax = tarp(RIGHT, TOY, key=0, num_simulations=64).plot()
    assert ax.get_ylabel() == "coverage"
    plt.close("all")


# --- Errors -------------------------------------------------------------------------------------

CHECKS = [sbc, tarp]


@pytest.mark.parametrize("check", CHECKS)
def test_programs_that_cannot_simulate_data(check):
    @ppl.model
    def weighed(y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("w", -(x**2))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(OpenObservationsError, match=rf'{check.__name__} got a factor .* at "w"'):
        check(RIGHT, weighed(0.0), key=0)
    with pytest.raises(ArgumentError, match="which observes nothing; needs"):
        check(RIGHT, ppl.unobserve(TOY), key=0)


@pytest.mark.parametrize("check", CHECKS)
def test_choices_in_branches(check):
    @ppl.model
    def branching(y):
        flag = ppl.sample("flag", dist.Bernoulli(0.5))
        x = jax.lax.cond(
            flag == 1, lambda: ppl.sample("x", dist.Normal(0.0, 1.0)), lambda: jnp.float32(0.0)
        )
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(UnsupportedError, match=r'got the latent site "x" .* in a branch; needs'):
        check(RIGHT, branching(0.0), key=0)


@pytest.mark.parametrize("check", CHECKS)
def test_results_of_another_kind(check):
    name = check.__name__
    with pytest.raises(ArgumentError, match=rf"{name}\(infer=\) gave float; needs"):
        check(lambda program: 1.0, TOY, key=0)
    with pytest.raises(AddressError, match=rf'{name}\(infer=\) got unknown address "x"'):
        check(lambda program: {"x": jnp.zeros((100, 2))}, TOY, key=0)
    with pytest.raises(ArgumentError, match=rf"{name} got 5 posterior draws; needs .* num_draws"):
        check(posterior(num=5), TOY, key=0)
    with pytest.raises(
        ArgumentError, match=rf"{name}\(infer=\) gave draws of shape \(3,\) at .theta.; needs"
    ):
        check(lambda program: {"theta": jnp.zeros((100, 3))}, TOY, key=0)
    with pytest.raises(ArgumentError, match=rf"{name}\(infer=\) gave no draws; needs .*theta"):
        check(lambda program: {}, TOY, key=0)


@pytest.mark.parametrize("check", CHECKS)
def test_draws_that_are_no_numbers(check):
    with pytest.raises(ResultError, match=rf"{check.__name__} got .*NaN"):
        check(lambda program: {"theta": jnp.full((100, 2), jnp.nan)}, TOY, key=0)


@pytest.mark.parametrize("check", CHECKS)
def test_settings_out_of_range(check):
    for name, value in (("num_simulations", 0), ("num_draws", 1.5), ("false_alarm", 1.0)):
        with pytest.raises(ArgumentError, match=rf"{check.__name__} got {name}={value}; needs"):
            check(RIGHT, TOY, key=0, **{name: value})


def test_reference_points_of_another_shape():
    with pytest.raises(ArgumentError, match=r"tarp got reference points of shape \(\); needs"):
        tarp(RIGHT, TOY, key=0, references=lambda data, key: 0.0, num_simulations=64)
