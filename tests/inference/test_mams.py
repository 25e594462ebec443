"""`mams`: the dynamics against its definition, laws that are kept, and what it is for."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ppl
import ppl.distributions as dist
from ppl.errors import UnsupportedError
from ppl.inference.chees import chees
from ppl.inference.coordinates import coordinates
from ppl.inference.isokinetic import MICROCANONICAL
from ppl.inference.lockstep import Motion, Place, follow
from ppl.inference.many import Noise
from ppl.inference.trace_kernel import accepted
from ppl.results.diagnostics import ess, mcse

mams = ppl.kernels.mams
SCALE, MASS = np.array([1.0, 0.4, 2.0]), np.array([1.5, 0.3, 2.0])


def density(z):
    """A log density that is not normal, of a position (3,)."""
    return -jnp.sum(jnp.cosh(z / SCALE)) + 0.3 * z[0] * z[1]


gradient = jax.value_and_grad(density)


def followed(z, noise, step_size=0.2, num=7, mass=MASS):
    value, force = gradient(z)
    begin = Place(z, force, value)
    return follow(gradient, begin, noise, step_size, jnp.asarray(mass), num, MICROCANONICAL)


# --- The dynamics -------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1e-4, 0.3, 2.0, -0.7])
def test_a_kick_solves_the_equation_of_directions(x64, time):
    rng = np.random.default_rng(0)
    force, u = rng.normal(size=3), rng.normal(size=3)
    u /= np.linalg.norm(u)
    f = np.sqrt(MASS) * force

    def turn(_, state):
        u = state[:3]
        rate = math.sqrt(3) / 2
        return np.r_[rate * (f - (f @ u) * u), math.sqrt(3) * f @ u]

    solved = solve_ivp(turn, (0.0, time), np.r_[u, 0.0], rtol=1e-11, atol=1e-12).y[:, -1]
    motion = Motion(jnp.asarray(u), jnp.zeros(()))
    found = MICROCANONICAL.kicked(jnp.asarray(MASS), motion, jnp.asarray(force), time)
    np.testing.assert_allclose(found.vector, solved[:3], atol=1e-9)
    np.testing.assert_allclose(found.gained, solved[3], rtol=1e-8)


def test_kicks_in_single_precision():
    """Without a force, with one that is huge, and with one against the direction."""
    u = jnp.array([0.6, 0.8], jnp.float32)
    for force in (0.0, 1e-6, 50.0, 1e4, -1e4):
        motion = MICROCANONICAL.kicked(
            jnp.ones(2, jnp.float32), Motion(u, jnp.zeros((), jnp.float32)), -force * u, 0.5
        )
        assert motion.vector.dtype == jnp.float32
        np.testing.assert_allclose(jnp.sum(motion.vector**2), 1.0, rtol=1e-6)
        assert np.isfinite(motion.gained)


def test_what_is_gained_is_the_volume_that_is_lost(x64):
    """Over a whole trajectory, in coordinates of the sphere, whose area counts."""
    rng = np.random.default_rng(1)
    z, noise = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=3))

    def sphere(angles):
        low, turn = angles
        return jnp.stack([jnp.sin(low) * jnp.cos(turn), jnp.sin(low) * jnp.sin(turn), jnp.cos(low)])

    def flow(point):
        made = followed(point[:3], sphere(point[3:]))
        u = made.velocity / (math.sqrt(3) * jnp.sqrt(MASS))
        angles = jnp.stack([jnp.arccos(u[2]), jnp.arctan2(u[1], u[0])])
        return jnp.concatenate([made.end.position, angles]), made.log_ratio

    u = noise / jnp.linalg.norm(noise)
    start = jnp.concatenate([z, jnp.stack([jnp.arccos(u[2]), jnp.arctan2(u[1], u[0])])])
    (end, ratio), jacobian = flow(start), jax.jacobian(lambda p: flow(p)[0])(start)
    volume = jnp.linalg.slogdet(jacobian)[1]
    volume = volume + jnp.log(jnp.sin(end[3])) - jnp.log(jnp.sin(start[3]))
    assert abs(float(volume)) > 0.1  # it is not preserved
    np.testing.assert_allclose(ratio, density(end[:3]) - density(z) + volume, atol=1e-9)


def test_a_trajectory_can_be_run_back(x64):
    rng = np.random.default_rng(2)
    z, noise = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=3))
    there = followed(z, noise)
    back = followed(there.end.position, -there.velocity / jnp.sqrt(MASS))
    np.testing.assert_allclose(back.end.position, z, atol=1e-10)
    np.testing.assert_allclose(back.log_ratio, -there.log_ratio, atol=1e-10)
    assert abs(float(there.log_ratio)) > 1e-3


def test_errors_fall_with_the_square_of_the_step(x64):
    z, noise = jnp.asarray(np.random.default_rng(3).normal(size=(2, 20, 3)))

    def error(n):
        made = jax.vmap(lambda z, noise: followed(z, noise, 1.0 / n, n))(z, noise)
        return jnp.median(jnp.abs(made.log_ratio))

    errors = [float(error(n)) for n in (40, 80, 160)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4.0, rtol=0.05)


def test_no_end_of_infinite_or_lost_density_is_accepted(x64):
    def walled(value):
        def gradient(z):
            return jnp.where(z[0] > 0.5, value, -0.5 * jnp.sum(z**2, 0)), -z

        return gradient

    start = jnp.zeros((2, 1))
    for value in (jnp.inf, jnp.nan, -jnp.inf, -2000.0):
        place = Place(start, *walled(value)(start)[::-1])
        noise = jnp.array([[1.0], [0.0]])
        made = follow(walled(value), place, noise, 1.0, 1.0, 1, MICROCANONICAL)
        assert made.end.position[0, 0] > 0.5
        assert made.log_ratio[0] == -jnp.inf


# --- Invariance ---------------------------------------------------------------------------------


@ppl.model
def bounded():
    """A rate, and a share whose bound depends on it."""
    rate = ppl.sample("rate", dist.Gamma(3.0, 2.0))
    ppl.sample("share", dist.Uniform(0.0, rate))


SETTLED = mams(step_size=0.6, trajectory_length=1.5, inverse_mass=jnp.array([0.4, 2.0]))


def broken(gain):
    """The kernel, with another share of the volume in its ratio."""

    @ppl.kernel
    def mutant(trace):
        space = coordinates("mutant", trace, None)
        gradient = jax.value_and_grad(space.log_density)

        def move(z, _):
            density, force = gradient(z)
            noise = ppl.sample("momentum", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            place = Place(z, force, density)
            made = follow(gradient, place, noise, 0.9, jnp.ones(2), 3, MICROCANONICAL)
            lost = made.log_ratio - (made.end.log_density - density)
            take = accepted(made.end.log_density - density + gain * lost)
            return jnp.where(take, made.end.position, z), None

        end, _ = jax.lax.scan(move, space.vector(), length=5)
        return space.moved(end, True)

    return mutant


def test_the_settled_kernel_leaves_measures_invariant():
    report = ppl.check.invariant(SETTLED, bounded(), key=3)
    assert report.passed, report
    assert ppl.check.invariant(ppl.kernels.cycle(SETTLED, SETTLED), bounded(), key=4).passed


@pytest.mark.parametrize(("gain", "passes"), [(1.0, True), (0.0, False), (2.0, False)])
def test_volumes_have_to_count_once(gain, passes):
    report = ppl.check.invariant(broken(jnp.asarray(gain)), bounded(), key=5)
    assert report.passed == passes, report


def test_the_flat_loop_and_the_trace_move_agree(x64):
    program, rng = bounded(), np.random.default_rng(1)
    space = ppl.unconstrain(program)
    single = jax.value_and_grad(space.log_density)
    z, noise = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=(2, 5)))
    seeds = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
    start = SETTLED.flat_start(single, z.T, seeds)._replace(index=jnp.asarray(7))
    _, out = SETTLED.flat_step(single, start, Noise(noise.T, jnp.full(5, -1e9)), 0)
    ends, stats = SETTLED.flat_stats(out)
    assert "energy" not in stats

    @ppl.model
    def one(trace):
        return SETTLED._stepped(trace, ppl.inference.lockstep.lengths(7))

    for chain in range(5):
        trace = ppl.trace_of(program, space.unflatten(z[:, chain]))
        given = {"momentum": noise[:, chain], "accept": 1}
        end = ppl.run(ppl.do(one(trace), given), 0)
        np.testing.assert_allclose(space.flatten(end.trace.choices), ends[chain], rtol=1e-8)
        for name, x in end.stats.items():
            np.testing.assert_allclose(x, stats[name][chain], rtol=1e-8, err_msg=name)


# --- Chains -------------------------------------------------------------------------------------

Y = np.linspace(-2.0, 2.0, 30)


@ppl.model
def hierarchy(y):
    """Means around a mean, of known variances: m ~ N(0, 4), t ~ N(m, 1), y ~ N(t, 1/4)."""
    m = ppl.sample("m", dist.Normal(0.0, 2.0))
    with ppl.plate("group", y.size):
        t = ppl.sample("t", dist.Normal(m, 1.0))
        ppl.sample("y", dist.Normal(t, 0.5), obs=y)


def run(kernel, samples=300, warmup=300, num_chains=32, key=0):
    program = ppl.mcmc(hierarchy(Y), kernel, samples, warmup, num_chains)
    return ppl.run(program, key, progress=False)


@pytest.fixture(scope="module")
def adapted():
    return run(mams())


def test_moments(adapted):
    # 31 coordinates, means and variances: each is beyond 5.5 standard errors with probability 4e-8.
    precision = np.diag([0.25 + Y.size, *[5.0] * Y.size])
    precision[0, 1:] = precision[1:, 0] = -1.0
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ np.r_[0.0, 4 * Y], np.sqrt(np.diag(covariance))
    x = np.concatenate([adapted["m"][..., None], adapted["t"]], -1).astype(float)
    assert np.all(np.abs((x.mean((0, 1)) - mean) / mcse(x)) < 5.5)
    assert np.all(np.abs((x.std((0, 1)) - sd) / mcse(x, "sd")) < 5.5)


def test_statistics(adapted):
    stats = {name: np.asarray(x) for name, x in adapted.stats.items()}
    assert set(stats) == {
        *("lp", "diverging", "n_steps", "acceptance_rate", "step_size", "trajectory_length")
    }
    assert not stats["diverging"].any()
    assert np.all(stats["n_steps"] == stats["n_steps"][:1])
    assert 0.7 < np.mean(stats["acceptance_rate"]) < 0.95
    assert "BFMI" not in str(adapted.summary())


def test_the_adapted_kernel_is_a_value(adapted):
    found = run(adapted.kernel, 500, 0, 3, key=1)
    x = np.asarray(found["m"], float)[:, 100:]
    assert abs((x.mean() - np.asarray(adapted["m"], float).mean()) / mcse(x)) < 5.5


def test_there_are_more_effective_draws_a_gradient_than_by_chees(adapted):
    """Of means: over eight keys 1.99 times as many, at least 1.83; of squares 0.95 times."""

    def worth(chains):
        x = np.concatenate([chains["m"][..., None], chains["t"]], -1).astype(float)
        return np.min(ess(x, "mean")) / np.mean(np.asarray(chains.stats["n_steps"]))

    assert worth(adapted) > 1.5 * worth(run(chees()))


# --- What is refused ----------------------------------------------------------------------------


def test_one_coordinate_is_refused():
    @ppl.model
    def line():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    kernel = mams(step_size=0.5, trajectory_length=1.0)
    with pytest.raises(UnsupportedError, match=r"mams got a program of 1 .*at least 2"):
        ppl.mcmc(line(), kernel, num_warmup=0)
    with pytest.raises(UnsupportedError, match="at least 2"):
        kernel(ppl.trace(line(), 0))
