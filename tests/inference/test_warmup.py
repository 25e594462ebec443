"""Warmups that begin far away: what they must not learn there, and where they arrive."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.inference import together, warmup
from ppl.inference.lockstep import Move, Place, follow
from ppl.inference.metric import LowRank, beyond_rounding
from ppl.inference.nuts import _units
from ppl.inference.warmup import Moments
from ppl.results.diagnostics import rhat

rng = np.random.default_rng(0)
X = rng.normal(size=(200, 2)).astype(np.float32)
LIFE = rng.weibull(1.5, 200) * np.exp(2.0 + X @ [0.5, -0.3])
CENSORED, TIME = LIFE > 15, np.minimum(LIFE, 15).astype(np.float32)

#: Where the log densities are about -1e7, -1e16 and -1e25: the resolution of single precision is
#: about 1, 1e9 and 1e18 there.
FAR = {
    1e7: {"shape": 2.5, "a": -1.5, "b": np.float32([0.5, -1.0])},
    1e16: {"shape": 4.0, "a": -2.5, "b": np.float32([-1.0, 1.0])},
    1e25: {"shape": 5.0, "a": -2.5, "b": np.float32([-1.8, 1.5])},
}


@ppl.model
def survival(x, time, censored):
    """Weibull lives, with a scale by regression. Far away its density falls exponentially."""
    shape = ppl.sample("shape", dist.HalfNormal(2.0))
    a = ppl.sample("a", dist.Normal(0.0, 5.0))
    b = ppl.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    log_scale = a + x @ b
    log_ratio = jnp.log(time) - log_scale
    hazard = jnp.log(shape) - log_scale + (shape - 1) * log_ratio
    total = jnp.sum(jnp.where(censored, 0.0, hazard) - jnp.exp(shape * log_ratio))
    ppl.factor("lives", total)


PROGRAM = survival(X, TIME, CENSORED)


@pytest.mark.parametrize("far", FAR)
def test_the_starts_are_as_far_as_is_said(far):
    density = ppl.trace_of(PROGRAM, FAR[far]).log_density
    assert 0.03 < float(-density) / far < 30


def settled(kernel, far, num_warmup, num_chains):
    """Run chains that start far away; say whether they have all arrived."""
    program = ppl.mcmc(PROGRAM, kernel, 200, num_warmup, num_chains, init=FAR[far])
    chains = ppl.run(program, 0, progress=False)
    x = np.concatenate([chains["shape"][..., None], chains["a"][..., None], chains["b"]], -1)
    # About 490, but for a few; and all chains agree.
    assert np.all(np.abs(np.asarray(chains.stats["lp"]) + 490) < 30)
    assert np.max(rhat(x.astype(float))) < 1.05
    return chains


@pytest.mark.parametrize("low_rank", [0, 3])
@pytest.mark.parametrize("far", FAR)
def test_nuts_arrives(far, low_rank):
    """Before, chains learned a metric on the way in which no position could change any more."""
    chains = settled(ppl.kernels.nuts(low_rank=low_rank), far, 300, 8)
    assert not np.any(chains.stats["diverging"])


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("kernel", [ppl.kernels.chees(), ppl.kernels.mams()], ids=["chees", "mams"])
def test_chains_in_lockstep_arrive(kernel, far):
    """Before, the farthest chain set the step of all; a constant speed left it where it was."""
    settled(kernel, far, 300, 32)


def moving_average():
    rng = np.random.default_rng(1)
    noise = 0.2 * rng.normal(size=201)
    y = np.zeros(201)
    for t in range(1, 201):
        y[t] = 0.9 * y[t - 1] + noise[t] - 0.1 * noise[t - 1]
    return y[1:].astype(np.float32)


@ppl.model
def explosive(y):
    """An ARMA(1, 1) series, whose errors grow without bound where |theta| > 1."""
    mu, phi, theta = (ppl.sample(a, dist.Normal(0.0, 2.0)) for a in ("mu", "phi", "theta"))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))

    def error(old, pair):
        new = pair[1] - mu - phi * pair[0] - theta * old
        return new, new

    _, errors = jax.lax.scan(error, jnp.zeros(()), (y[:-1], y[1:]))
    ppl.factor("y", jnp.sum(dist.Normal(0.0, sigma).log_prob(errors)))


def test_nuts_arrives_from_where_a_recursion_explodes():
    start = {"mu": -0.9, "phi": 1.4, "theta": -1.08, "sigma": 0.5}
    program = explosive(moving_average())
    assert ppl.trace_of(program, start).log_density < -1e13
    kernel = ppl.kernels.nuts()
    chains = ppl.run(ppl.mcmc(program, kernel, 200, 300, 16, init=start), 0, progress=False)
    assert np.all(np.asarray(chains.stats["lp"]) > -50)
    assert np.max(rhat(np.stack([chains[a] for a in start], -1).astype(float))) < 1.05


def test_rounding_counts_for_less_at_first():
    """Of 300 moves the opening has 50, of 100 it has 30, of 1000 100."""
    for num_warmup, opening in ((0, 0), (100, 30), (300, 50), (1000, 100)):
        units = np.asarray(_units(jnp.arange(200), num_warmup))
        assert np.all(units[:opening] == 256)
        assert np.all(units[opening:] == 4)


def test_a_metric_is_not_fitted_on_the_way():
    """Draws and gradients of an exponential wall, and of the law behind it."""

    def learned(places):
        old = young = Moments.none(jnp.zeros(1))
        mass = jnp.asarray([7.0])
        for index, place in enumerate(places):
            place = jnp.asarray(place)[:, None]
            old, young, mass = warmup.refit(old, young, mass, index, 100, place, True)
        return float(mass[0])

    wall = [(2.0 - 0.1 * i, -np.exp(20 * (2.0 - 0.1 * i))) for i in range(8)]
    assert learned(wall) == 7.0
    np.testing.assert_allclose(learned([(x, -x / 9.0) for x in (1.0, -2.0, 0.5, 3.0)]), 9.0, 1e-5)


def test_directions_are_not_found_on_the_way():
    """Draws that come down an exponential wall, and those of a normal law with a long axis."""
    x = np.random.default_rng(2).normal(size=(80, 2))

    @jax.jit
    def stretch(places):
        def learn(known, item):
            index, place = item
            return warmup.update(known, index, 1000, place, 0.8, True, 0.8), None

        known = warmup.start(places[0], low_rank=1)
        known, _ = jax.lax.scan(learn, known, (jnp.arange(80), places))
        assert isinstance(known.inverse_mass, LowRank)
        return known.inverse_mass.stretch[0]

    wall = np.linspace(2.0, 0.5, 80)[:, None] + 0.01 * x
    assert stretch(jnp.asarray(np.stack([wall, -np.exp(20 * wall)], 1))) == 1
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    draws, gradients = x * [5.0, 1.0] @ turn, -x / [5.0, 1.0] @ turn
    found = stretch(jnp.asarray(np.stack([draws, gradients], 1)))
    np.testing.assert_allclose(jnp.abs(jnp.log(found)), np.log(5), rtol=0.1)


def test_rounding_is_no_error_of_the_energy():
    """Four units in the last place, and what is more counts."""
    found = beyond_rounding(jnp.float32([0.0, -1e9, 1e9, -1e12, -jnp.inf]), jnp.float32(-1e16))
    assert np.all(found[:3] == 0)
    assert found[3] < -9e11
    assert found[4] == -jnp.inf
    # Of a density as it is near the mode, what is left out is nothing.
    near = beyond_rounding(jnp.float32(-0.3), jnp.float32(-500.0))
    assert abs(float(near) + 0.3) < 3e-4


def test_slack_forgives_a_part_of_a_gain_alone():
    """Down a slope and up, with a density that is lower than its gradient says."""

    def gradient(z):
        return -1e6 * z[0] - 3e5 * jnp.abs(1 - z[0]), jnp.asarray([-1e6])

    start = Place(jnp.ones(1), *gradient(jnp.ones(1))[::-1])

    def made(slack, speed):
        return follow(gradient, start, jnp.full(1, speed), 1e-3, 1.0, 1, slack=slack)

    strict, loose, up = made(0.0, 0.0), made(0.5, 0.0), made(0.5, 2e3)
    assert strict.end.log_density - start.log_density > 1e5
    assert (strict.rate, strict.log_ratio) == (0.0, -jnp.inf)
    assert loose.rate == 1.0
    assert up.end.log_density < start.log_density
    assert up.rate == 0.0


def test_a_step_is_as_long_in_another_metric():
    known = together.Learned.start(jnp.zeros(2), None, None, None)
    new = known._replace(inverse_mass=jnp.asarray([1e-4, 1e-6]))
    adapts: dict[str, bool] = {name: True for name in together.SETTINGS}
    begun = together.begin(known, new, jnp.log(0.002), adapts)
    np.testing.assert_allclose(begun.step_size, 0.002 / np.sqrt(1e-5), rtol=1e-5)
    assert begun.trajectory_length == begun.step_size
    fixed = together.begin(known, new, jnp.log(0.002), adapts | {"trajectory_length": False})
    assert fixed.trajectory_length == known.trajectory_length


def test_a_step_stays_as_long_while_the_metric_is_learned(x64):
    rates = jnp.full(50, 0.651)
    scales = jnp.asarray([[10.0], [0.1]])
    adapts = dict.fromkeys(together.SETTINGS, True) | {"trajectory_length": False}

    @jax.jit
    def learned(known, index, key):
        x = scales * jax.random.normal(key, (2, 50))
        place = Place(x, -x / scales**2, rates)
        made = Move(place, place, x, (rates, rates), jnp.log(rates), rates)
        return together.learn(known, index, 100, made, place, 5, 0.651, 100.0, adapts)

    known = together.Learned.start(jnp.ones(2), None, None, 1.0)
    lengths, masses = [], []
    for index in range(20):
        known = learned(known, index, jax.random.key(index))
        masses.append(known.inverse_mass)
        lengths.append(known.step_size * jnp.exp(jnp.mean(jnp.log(known.inverse_mass)) / 2))
    assert np.max(np.ptp(np.log(masses), axis=0)) > 1
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
