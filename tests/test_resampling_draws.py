"""Draws of resampling schemes: their law, and what holds for a million particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ppl.resampling import SCHEMES
from tests.resampling_readings import READINGS, log_of, shares

NAMES = sorted(SCHEMES)
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
        values = cls(jnp.zeros(size), num).finite_values()
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
