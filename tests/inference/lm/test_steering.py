"""Steering: exact measures, and which particles are kept."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm import steering
from ppl.inference.lm.steering import inclusion, keep, steer
from tests.inference.lm.tasks import only, share, strict, task

pytestmark = pytest.mark.usefixtures("x64")
INF = np.inf


@pytest.mark.parametrize(("num", "expand"), [(1, 1), (1, 3), (2, 2), (3, 1), (2, 3)])
def test_the_measure_stays(num, expand):
    of = task(3 if num * expand < 5 else 2)
    ppl.check.preserves(lambda _: steer(of, num, expand), of.program).require()


@pytest.mark.parametrize("aggregate", ["last", "min", "max", "mean"])
def test_the_measure_stays_whatever_the_aggregate(aggregate):
    of = task(3, key=1, aggregate=aggregate, link="logit", absorbing=False, sharpness=0.7)
    ppl.check.preserves(lambda _: steer(of, 2, 2), of.program).require()


def test_the_measure_stays_where_runs_are_lost():
    of = task(3, key=2, verifier=strict)
    ppl.check.preserves(lambda _: steer(of, 2, 2), of.program).require()
    lost = task(2, verifier=lambda c: jnp.where(c.length < 2, 0.0, 0.5))
    assert ppl.enumerate(lost.program).total_mass == 0
    assert ppl.enumerate(ppl.extract(steer(lost, 2, 2))).total_mass == 0


def test_evidence_is_unbiased_at_every_step():
    of = task(2, key=3)
    wanted = [ppl.enumerate(task(n, key=3).program).total_mass for n in (1, 2)]
    measure = ppl.enumerate(steer(of, 2, 2)).pushforward(lambda p: p.steps["log_evidence"])
    np.testing.assert_allclose(measure.expect(jnp.exp), wanted, rtol=1e-10)


CASES = {
    "one large": [5.0, 1.0, 0.5, 0.25, 0.25],
    "two large": [5.0, 4.0, 0.5, 0.25, 0.25],
    "equal": [1.0, 1.0, 1.0, 1.0, 1.0],
    "ties at c": [1.0, 1.0, 1.0, 0.5, 0.5],
    "zeros": [0.0, 3.0, 0.0, 1.0, 1.0],
    "as many as are kept": [0.0, 3.0, 0.0, 1.0, 2.0],
    "fewer": [0.0, 3.0, 0.0, 0.0, 1.0],
    "one": [0.0, 0.0, 1e-300, 0.0, 0.0],
    "none": [0.0, 0.0, 0.0, 0.0, 0.0],
    "far apart": [1e100, 1e-100, 1e60, 1.0, 3.0],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_chances(case, num):
    weights = np.array(CASES[case])
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    model = ppl.model(functools.partial(inclusion, num=num))
    chance = np.exp(only(model(jnp.asarray(log_weights))))
    assert np.all(chance <= 1)
    assert chance.sum() == pytest.approx(num, rel=1e-13)
    positive = weights > 0
    if positive.sum() <= num:
        assert np.all(chance[positive] == 1)
        assert set(chance) <= {0.0, 1.0}
    else:
        # There is one c with p = min(1, w / c): the candidate that fits, in exact arithmetic.
        exact = [Fraction(w) for w in weights.tolist()]
        falling = sorted(exact, reverse=True)
        (c,) = {
            c
            for c in (sum(falling[k:]) / (num - k) for k in range(num))
            if sum(min(Fraction(1), w / c) for w in exact) == num
        }
        wanted = [float(min(Fraction(1), w / c)) for w in exact]
        np.testing.assert_allclose(chance, wanted, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num", [1, 2, 3])
def test_keeping_changes_no_sum_on_average(case, num):
    weights = np.array(CASES[case])
    weights /= max(weights.max(), 1e-300)

    @ppl.model
    def kept(log_weights):
        index, new = keep(log_weights, num)
        return jnp.zeros_like(log_weights).at[index].add(jnp.exp(new)), jnp.sort(index)

    with np.errstate(divide="ignore"):
        measure = ppl.enumerate(kept(jnp.log(jnp.asarray(weights))))
    np.testing.assert_allclose(measure.expect(lambda v: v[0]), weights, rtol=1e-10, atol=1e-14)
    twice = sum(mass for (_, index), mass in measure if len(set(index.tolist())) < num)
    assert twice < 1e-14


def test_keeping_many_draws_none_twice():
    # By draws, with the arithmetic of a run: single precision, and sums of 32 bits.
    with jax.enable_x64(False):
        weights = 3 * jax.random.normal(jax.random.key(0), (200, 64))
        draw = jax.jit(jax.vmap(lambda key, w: ppl.run(_kept(w), key)))
        index, new = draw(jax.random.split(jax.random.key(1), 200), weights)
        assert new.dtype == jnp.float32
        assert all(len(set(row)) == 16 for row in np.asarray(index).tolist())
        assert np.all(np.isfinite(new))


@ppl.model
def _kept(log_weights):
    return keep(log_weights, 16)


def test_weights_that_are_no_numbers_stay():
    _, new = ppl.run(_kept(jnp.zeros(64).at[3].set(np.nan)), 0)
    assert np.all(np.isnan(new))
    _, new = ppl.run(_kept(jnp.zeros(64).at[3].set(INF)), 0)
    assert new.max() == INF


def test_a_wrong_chance_is_found(monkeypatch):
    """As in a thinning that forgets c: p_i = min(1, N W_i)."""
    of = task(2)

    def wrong(log_weights, num):
        return jnp.minimum(jax.nn.log_softmax(log_weights) + jnp.log(num), 0.0)

    monkeypatch.setattr(steering, "inclusion", wrong)
    assert not ppl.check.preserves(lambda _: steer(of, 2, 2), of.program)


def test_what_a_run_shows():
    for found, _ in ppl.enumerate(steer(task(2), 2, 2)):
        assert found.num_particles == 2
        assert found.steps["ess"].shape == (2,)
        assert found.log_evidence == pytest.approx(np.logaddexp(*found.log_weights))


def test_one_particle_is_a_weighted_run():
    for found, _ in ppl.enumerate(steer(task(2), 1, 1)):
        np.testing.assert_allclose(found.log_weights, found.values.log_potential, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: steer(task(2).program, 2, 2), "Reasoning task"),
        (lambda: steer(task(2), 0, 2), "num_particles"),
        (lambda: steer(task(2, verifier=share), 2, 0.5), "expand"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()
