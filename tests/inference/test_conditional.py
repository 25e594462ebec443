"""Conditional SMC: exact invariance, and what must fail."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference import conditional
from ppl.inference.conditional import Conditional, ConditionalSMC, conditional_smc
from ppl.inference.particles.backward import History
from ppl.inference.particles.future import choose_particle
from ppl.resampling import MultinomialResampling
from tests.inference import particle_models as models
from tests.inference.particle_models import B, p, sample

pytestmark = pytest.mark.usefixtures("x64")

KINDS = {
    "plain": {},
    "ancestor": {"ancestor_sampling": True},
    "backward": {"backward_sampling": True},
}


def exactly(kernel, program):
    """Check invariance, and that no draw was needed for it."""
    report = ppl.check.invariant(kernel, program)
    assert report.false_alarm == 0, report
    return report


# --- Invariance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.CASES)
def test_the_measure_stays(name, kind):
    exactly(conditional_smc(2, **KINDS[kind]), models.CASES[name]()).require()


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_particles_and_any_threshold(kind):
    program = models.hidden_markov(models.THREE)
    for count, threshold in [(2, 0.8), (3, 1.0), (2, 0.0)]:
        kernel = conditional_smc(count, ess_threshold=threshold, **KINDS[kind])
        exactly(kernel, program).require()


scoring = ppl.check.programs(
    size=6,
    latents=(2, 4),
    max_worlds=8,
    observations=True,
    control_flow=("scan", "cond", "vmap", "plate"),
)


def on_programs(check, count):
    """Check random programs; one that asks for what is refused by name is none of them."""

    @hypothesis.settings(max_examples=count, database=None)
    @hypothesis.given(scoring)
    def run(program):
        check(program)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_measure_of_random_programs_stays(kind):
    kernel = conditional_smc(2, ess_threshold=0.8, **KINDS[kind])
    on_programs(lambda program: exactly(kernel, program).require(), 40)


def test_sites_that_are_kept():
    """The kernel moves the loop given the parameter, whichever way it looks for ancestors."""
    program = models.parameter(models.THREE)
    for settings in KINDS.values():
        kernel = conditional_smc(2, addresses="x", **settings)
        exactly(kernel, program).require()

    @ppl.kernel
    def stays(trace):
        moved = kernel(trace)
        same = jnp.all(moved.choices["t"] == trace.choices["t"])
        return trace.with_choices({"t": jnp.where(same, trace.choices["t"], -1)})

    exactly(stays, program).require()


def test_it_alternates_with_another_kernel():
    particles = conditional_smc(2, addresses=["x"], ancestor_sampling=True)
    single = ppl.kernels.single_site(addresses=["t"])

    @ppl.kernel
    def both(trace):
        with ppl.scope("particles"):
            trace = particles(trace)
        with ppl.scope("single"):
            return single(trace)

    exactly(both, models.parameter(models.THREE)).require()


def test_a_kept_site_in_a_branch_that_does_not_change():
    @ppl.model
    def model():
        flag = sample("flag", B(0.4))
        a = lax.cond(flag == 1, lambda: sample("a", B(0.3)), lambda: 1)
        x = sample("x", B(p(0.2, 0.6)[a]))
        models.observe(1, p(0.1, 0.8)[x])
        return flag, a, x

    exactly(conditional_smc(2, addresses=["x"]), model()).require()
    with pytest.raises(UnsupportedError, match=r'"a".* in a branch and depends on "flag"'):
        exactly(conditional_smc(2, addresses=["x", "flag"]), model())


# --- What must fail -----------------------------------------------------------------------------


class _Forgetful(Conditional):
    """Ancestors by the density of what follows, without the weight."""

    def joined(self, run, place, cloud):
        found = super().joined(run, place, cloud) - cloud.weights.log_weights
        return jnp.where(cloud.weights.log_weights == -jnp.inf, -jnp.inf, found)


class _Blind(Conditional):
    """Ancestors by the weight, without the density of what follows."""

    def joined(self, run, place, cloud):
        return cloud.weights.log_weights


class _Deadly(Conditional):
    """All ancestors by weight: the particle that follows the trace may lose its past."""

    def resampled(self, run, place, cloud):
        ancestors = sample("ancestors", MultinomialResampling(cloud.weights.log_weights))
        equal = jnp.zeros_like(cloud.weights.log_weights)
        weights = cloud.weights.resampled_to(equal, cloud.weights.log_mean, 0.0)
        return cloud.take(ancestors)._replace(weights=weights)


class _Weightless(History):
    """Backwards by the density of what follows, without the weight."""

    def log_weights(self, point, given, levels):
        return super().log_weights(point, given, levels) - point.log_weights


def mutant(strategy, **settings):
    kind = type(strategy.__name__, (ConditionalSMC,), {})
    kind.strategy = lambda self, prefix: strategy(self.ess_threshold, True, prefix)
    return ppl.kernel(kind(2, None, 1.0, True, False).move)


@pytest.mark.parametrize("strategy", [_Forgetful, _Blind, _Deadly])
@pytest.mark.parametrize("name", ["hidden Markov", "parameter", "remembered"])
def test_wrong_ancestors_are_found_out(strategy, name):
    assert exactly(mutant(strategy), models.CASES[name]()).verdict == "failed"


def test_the_right_strategy_is_not():
    exactly(mutant(Conditional), models.hidden_markov(models.THREE)).require()


def test_backward_draws_need_the_weight(monkeypatch):
    def fresh():  # programs keep their staged form: this one is met for the first time
        return ppl.scale(models.hidden_markov(models.THREE), 1.0)

    kernel = conditional_smc(2, backward_sampling=True)
    exactly(kernel, fresh()).require()
    monkeypatch.setattr(conditional, "History", _Weightless)
    wrong = type("Wrong", (ConditionalSMC,), {})(2, None, 1.0, False, True)
    assert exactly(ppl.kernel(wrong.move), fresh()).verdict == "failed"


def test_the_last_particle_is_drawn_by_weight(monkeypatch):
    monkeypatch.setattr(
        conditional, "choose_particle", lambda a, w: choose_particle(a, jnp.zeros_like(w))
    )
    wrong = type("Wrong", (ConditionalSMC,), {})(2, None, 1.0, False, False)
    program = models.hidden_markov(models.THREE)
    assert exactly(ppl.kernel(wrong.move), program).verdict == "failed"


# --- Refusals, and runs without weight ----------------------------------------------------------


@ppl.model
def stacked(y):
    """A draw after the loop reads what all iterations stacked."""

    def step(x, y):
        x = sample("x", B(p(0.2, 0.6)[x]))
        models.observe(y, p(0.2, 0.7)[x])
        return x, x

    _, xs = lax.scan(step, 0, y)
    return sample("z", B(0.1 + 0.2 * jnp.sum(xs)))


def test_rows_that_are_read_later_are_refused_by_name():
    program = stacked(models.THREE)
    exactly(conditional_smc(2), program).require()
    for kind in ("ancestor", "backward"):
        with pytest.raises(UnsupportedError, match=r'"z" .* stacked in all its iterations'):
            exactly(conditional_smc(2, **KINDS[kind]), program)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"num_particles": 1}, ArgumentError, "at least two particles"),
        ({"num_particles": 2.5}, ArgumentError, "positive integer"),
        ({"num_particles": 2, "ess_threshold": 2.0}, ArgumentError, "ess_threshold=2.0"),
        ({"num_particles": 2, "resample": "systematic"}, UnsupportedError, "Systematic"),
        ({"num_particles": 2, "ancestors": True}, ArgumentError, "ancestor_sampling"),
        ({"num_particles": 2, "addresses": []}, AddressError, "addresses="),
        (
            {"num_particles": 2, "ancestor_sampling": True, "backward_sampling": True},
            ArgumentError,
            "needs one of them",
        ),
    ],
)
def test_settings_are_checked(settings, error, match):
    with pytest.raises(error, match=match):
        conditional_smc(**settings)


def test_unknown_addresses_are_refused():
    trace = ppl.trace(models.hidden_markov(models.THREE), jax.random.key(0))
    with pytest.raises(AddressError, match='unknown address "q"'):
        conditional_smc(2, addresses=["q"])(trace)


@pytest.mark.parametrize("kind", KINDS)
def test_without_weight_there_are_numbers_all_the_same(kind):
    @ppl.model
    def impossible(y):
        def step(x, y):
            x = sample("x", dist.Normal(x, 1.0))
            ppl.factor("f", jnp.where(y == 1, -jnp.inf, -(x**2)))
            return x, x

        return lax.scan(step, 0.0, y)[1]

    trace = ppl.trace(impossible(models.THREE), jax.random.key(0))
    moved = ppl.run(conditional_smc(3, **KINDS[kind])(trace), key=1)
    assert moved.log_density == -jnp.inf
    assert jnp.all(jnp.isfinite(moved.choices["x"]))
