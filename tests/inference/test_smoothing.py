"""Smoothing: trajectories drawn backwards keep the measure, and come to the exact smoother."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference import smoothing
from ppl.inference.particles.backward import History
from ppl.inference.smoothing import smooth
from tests.inference import particle_models as models
from tests.zoo import linear_gaussian, linear_gaussian_answer

pytestmark = pytest.mark.usefixtures("x64")


def exactly(transformer, program):
    report = ppl.check.preserves(transformer, program)
    assert report.false_alarm == 0, report
    return report


# --- The measure --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["parameter", "counting", "backwards", "nested", "branching", "remembered", "straight"]
)
def test_the_measure_stays(name):
    exactly(lambda p: smooth(p, 2, 1, ess_threshold=1.0), models.CASES[name]()).require()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_particles": 2, "num_trajectories": 2},
        {"num_particles": 3, "num_trajectories": 1, "resample": "multinomial"},
        {"num_particles": 3, "num_trajectories": 1, "resample": "stratified"},
        {"num_particles": 2, "num_trajectories": 1, "ess_threshold": 0.0},
    ],
)
def test_any_numbers_schemes_and_thresholds(settings):
    exactly(lambda p: smooth(p, **settings), models.hidden_markov(models.TWO)).require()


@pytest.mark.slow
@hypothesis.settings(max_examples=40, database=None)
@hypothesis.given(
    ppl.check.programs(
        size=6, latents=(2, 4), max_worlds=8, observations=True, control_flow=("scan", "cond")
    )
)
def test_the_measure_of_random_programs_stays(program):
    exactly(lambda p: smooth(p, 2, 1, ess_threshold=0.8), program).require()


class _Weightless(History):
    def log_weights(self, point, given, levels):
        return super().log_weights(point, given, levels) - point.log_weights


class _Blind(History):
    def log_weights(self, point, given, levels):
        return point.log_weights


@pytest.mark.parametrize("wrong", [_Weightless, _Blind])
def test_wrong_backward_weights_are_found_out(wrong, monkeypatch):
    monkeypatch.setattr(smoothing, "History", wrong)
    # Programs keep their staged form: this one is met for the first time.
    program = ppl.scale(models.hidden_markov(models.THREE), 1.0)
    assert exactly(lambda p: smooth(p, 2, 1), program).verdict == "failed"


# --- Against the exact smoother -----------------------------------------------------------------

Y = np.array([0.5, -0.3, 1.2, 0.8, -0.9, 0.1, 0.7, 1.5])


def test_the_smoother_of_a_linear_gaussian_model():
    """Each run weighs its averages by its evidence: that is unbiased, whatever N."""
    mean, covariance, log_evidence = linear_gaussian_answer(Y)
    program = smooth(linear_gaussian(Y), num_particles=30, num_trajectories=10)
    found = ppl.run(runs(program, 2000), key=0)
    weights = np.exp(np.asarray(found.log_evidence, float) - log_evidence)[:, None]
    x = np.asarray(found.choices["x"], float)
    products = x[..., :-1] * x[..., 1:]
    terms = np.concatenate([x, x**2, products], -1).mean(1) * weights
    expected = np.concatenate(
        [
            mean,
            mean**2 + covariance.diagonal(),
            mean[:-1] * mean[1:] + covariance.diagonal(1),
            [1.0],
        ]
    )
    terms = np.concatenate([terms, weights], 1)
    z = (terms.mean(0) - expected) / (terms.std(0, ddof=1) / np.sqrt(len(terms)))
    # 24 z-scores: one beyond 5.5 with probability 24 * 4e-8.
    assert np.max(np.abs(z)) < 5.5, z


@ppl.model
def runs(program, count):
    return jax.vmap(lambda _: program())(jnp.arange(count))


def test_early_states_stay_diverse():
    """After 200 steps the filter's particles have one ancestor; the trajectories do not."""
    y = np.sin(np.arange(200) / 5)
    found = ppl.run(smooth(linear_gaussian(y), 50, 50), key=0)
    assert len(np.unique(found.choices["x"][:, 0])) > 10
    np.testing.assert_array_equal(found.values, found.choices["x"])
    assert found.steps["ess"].shape == (200,)


# --- Edges --------------------------------------------------------------------------------------


def test_without_weight_there_are_numbers_all_the_same():
    @ppl.model
    def impossible():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("f", -jnp.inf)
        return x + ppl.sample("z", dist.Normal(0.0, 1.0))

    found = ppl.run(smooth(impossible(), 3, 2), key=0)
    assert found.log_evidence == -jnp.inf
    assert jnp.all(found.log_weights == -jnp.inf)
    assert jnp.all(jnp.isfinite(found.values))


def test_settings_are_checked():
    program = models.hidden_markov(models.TWO)
    with pytest.raises(ArgumentError, match="num_trajectories=0"):
        smooth(program, 2, 0)
    with pytest.raises(ArgumentError, match="num_particles=0"):
        smooth(program, 0, 2)
    with pytest.raises(ArgumentError, match="needs a Program"):
        smooth(models.hidden_markov, 2, 2)
    with pytest.raises(ArgumentError, match="unknown keyword"):
        smooth(program, 2, 2, scheme="systematic")


def test_rows_that_are_read_later_are_refused_by_name():
    @ppl.model
    def stacked(y):
        xs = models.hidden_markov(y)
        return ppl.sample("z", dist.Bernoulli(0.1 + 0.2 * jnp.sum(xs)))

    with pytest.raises(UnsupportedError, match=r'"z" .* stacked in all its iterations'):
        smooth(stacked(models.THREE), 2, 2)
