"""`chees`: laws that are kept, what warmup finds, and that chains are in lock-step."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference import together
from ppl.inference.coordinates import coordinates
from ppl.inference.lockstep import Move, Place, follow, lengths, num_steps
from ppl.inference.many import Noise
from ppl.inference.trace_kernel import accepted
from ppl.inference.warmup import Moments
from ppl.results.diagnostics import ess, mcse
from ppl.semantics import lanes, suspended
from tests.compiling import compilations
from tests.zoo import (
    COUNTS,
    beta_binomial,
    beta_binomial_answer,
    gamma_poisson,
    gamma_poisson_answer,
)

chees = ppl.kernels.chees


def run(program, kernel, samples=200, warmup=200, num_chains=64, key=0, **options):
    program = ppl.mcmc(program, kernel, samples, warmup, num_chains)
    return ppl.run(program, key, progress=False, **options)


# --- Moves --------------------------------------------------------------------------------------

SCALE, MASS = np.array([1.0, 0.4]), np.array([1.5, 0.3])


def gradient(z):
    """A log density that is not normal, and its gradient, of positions (size, chain)."""

    def density(z):
        return -jnp.sum(jnp.cosh(z / SCALE)) + 0.3 * z[0] * z[1]

    return jax.vmap(jax.value_and_grad(density), in_axes=-1, out_axes=(0, -1))(z)


def test_trajectories_are_those_of_the_definition(x64):
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    density, force = gradient(jnp.asarray(z))
    made = follow(gradient, Place(jnp.asarray(z), force, density), noise, 0.2, jnp.asarray(MASS), 7)
    for chain in range(3):
        q, p = z[:, chain], noise[:, chain] / np.sqrt(MASS)

        def energy(q, p):
            kinetic = 0.5 * np.sum(MASS * p * p)
            return np.sum(np.cosh(q / SCALE)) - 0.3 * q[0] * q[1] + kinetic

        def pull(q):
            return -np.sinh(q / SCALE) / SCALE + 0.3 * q[::-1]

        before = energy(q, p)
        for _ in range(7):
            p = p + 0.1 * pull(q)
            q = q + 0.2 * MASS * p
            p = p + 0.1 * pull(q)
        np.testing.assert_allclose(made.end.position[:, chain], q, rtol=1e-10)
        np.testing.assert_allclose(made.velocity[:, chain], MASS * p, rtol=1e-10)
        np.testing.assert_allclose(made.log_ratio[chain], before - energy(q, p), atol=1e-10)


def test_no_end_of_infinite_or_lost_energy_is_accepted(x64):
    def walled(value):
        def gradient(z):
            return jnp.where(z[0] > 0.5, value, -0.5 * jnp.sum(z**2, 0)), -z

        return gradient

    start = jnp.zeros((1, 1))
    for value in (jnp.inf, jnp.nan, -jnp.inf, -2000.0):
        density, force = walled(value)(start)
        made = follow(walled(value), Place(start, force, density), jnp.ones((1, 1)), 1.0, 1.0, 1)
        assert made.end.position[0, 0] > 0.5
        assert made.log_ratio[0] == -jnp.inf


def test_lengths_are_spread_evenly():
    places = np.sort(np.asarray(lengths(jnp.arange(100))))
    assert np.max(np.diff(places, prepend=0.0, append=1.0)) < 0.02
    steps = [int(num_steps(2.0, 0.1, place, 1000)) for place in (0.0, 0.5, 0.999)]
    assert steps == [10, 20, 30]
    assert int(num_steps(0.01, 0.1, 0.5, 1000)) == 1
    assert int(num_steps(20.0, 0.1, 0.5, 12)) == 12


# --- Invariance ---------------------------------------------------------------------------------


@ppl.model
def bounded():
    """A rate, and a share whose bound depends on it."""
    rate = ppl.sample("rate", dist.Gamma(3.0, 2.0))
    ppl.sample("share", dist.Uniform(0.0, rate))


SETTLED = chees(step_size=0.5, trajectory_length=1.5, inverse_mass=jnp.array([0.4, 2.0]))


def broken(length, accept):
    """The kernel, of parts that a mutant can change."""

    @ppl.kernel
    def mutant(trace):
        space = coordinates("mutant", trace, None)
        gradient = jax.value_and_grad(space.log_density)

        def move(z, _):
            density, force = gradient(z)
            noise = ppl.sample("momentum", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            made = follow(gradient, Place(z, force, density), noise, 0.7, jnp.ones(2), length(z))
            take = accepted(made.log_ratio) | ~accept
            return jnp.where(take, made.end.position, z), None

        end, _ = jax.lax.scan(move, space.vector(), length=5)
        return space.moved(end, True)

    return mutant


def test_the_settled_kernel_leaves_measures_invariant():
    report = ppl.check.invariant(SETTLED, bounded(), key=3)
    assert report.passed, report
    assert ppl.check.invariant(ppl.kernels.cycle(SETTLED, SETTLED), bounded(), key=4).passed


@pytest.mark.parametrize(
    ("length", "accept", "passes"),
    [
        (lambda z: 3, True, True),
        (lambda z: 3, False, False),  # no acceptance test
        (lambda z: jnp.where(z[0] > 0.2, 4, 1), True, False),  # it depends on the state
    ],
)
def test_broken_ones_do_not(length, accept, passes):
    report = ppl.check.invariant(broken(length, jnp.asarray(accept)), bounded(), key=5)
    assert report.passed == passes, report


def test_the_flat_loop_and_the_trace_move_agree(x64):
    """Given one momentum; whether ends are accepted is drawn in two ways."""
    program, rng = bounded(), np.random.default_rng(1)
    space = ppl.unconstrain(program)
    single = jax.value_and_grad(space.log_density)
    z, noise = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=(2, 5)))
    seeds = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
    start = SETTLED.flat_start(single, z.T, seeds)._replace(index=jnp.asarray(7))
    sure = Noise(noise.T, jnp.full(5, -1e9))
    _, out = SETTLED.flat_step(single, start, sure, 0)
    ends, stats = SETTLED.flat_stats(out)

    @ppl.model
    def one(trace, place):
        return SETTLED._stepped(trace, place)

    for chain in range(5):
        trace = ppl.trace_of(program, space.unflatten(z[:, chain]))
        move = one(trace, lengths(7))
        given = {"momentum": noise[:, chain], "accept": 1}
        end = ppl.run(ppl.do(move, given), 0)
        np.testing.assert_allclose(space.flatten(end.trace.choices), ends[chain], rtol=1e-8)
        for name, x in end.stats.items():
            np.testing.assert_allclose(x, stats[name][chain], rtol=1e-8, err_msg=name)


# --- Chains -------------------------------------------------------------------------------------


@ppl.model
def together_models():
    covariance = jnp.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 100.0]])
    ppl.sample("x", dist.MultivariateNormal(jnp.array([0.0, 1.0, -5.0]), covariance))
    # A hierarchy of known variances: m ~ N(0, 4), t ~ N(m, 1), y ~ N(t, 1/4).
    m = ppl.sample("m", dist.Normal(0.0, 2.0))
    with ppl.plate("group", 3):
        t = ppl.sample("t", dist.Normal(m, 1.0))
        ppl.sample("y", dist.Normal(t, 0.5), obs=Y)
    with ppl.scope("beta"):
        beta_binomial(np.array(4, np.int32))
    with ppl.scope("gamma"):
        gamma_poisson(COUNTS)


Y = np.array([0.3, -0.5, 1.2])


def answers():
    precision = np.diag([0.25 + 3, *[1.0 + 4] * 3])
    precision[0, 1:] = precision[1:, 0] = -1.0
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ np.r_[0.0, 4 * Y], np.sqrt(np.diag(covariance))
    beta, gamma = beta_binomial_answer(4)[:2], gamma_poisson_answer()[:2]
    return {
        "x": (np.array([0.0, 1.0, -5.0]), np.array([1.0, 1.0, 10.0])),
        "m": (mean[0], sd[0]),
        "t": (mean[1:], sd[1:]),
        "beta/p": beta,
        "gamma/rate": gamma,
    }


@pytest.fixture(scope="module")
def adapted():
    return run(together_models(), chees(), 250)


@pytest.mark.parametrize("address", answers())
def test_moments(adapted, address):
    # 18 numbers in all, each beyond 5.5 standard errors with probability 4e-8.
    mean, sd = answers()[address]
    x = np.asarray(adapted[address], float)
    assert np.all(np.abs((x.mean((0, 1)) - mean) / mcse(x)) < 5.5)
    assert np.all(np.abs((x.std((0, 1)) - sd) / mcse(x, "sd")) < 5.5)


def test_statistics(adapted):
    stats = {name: np.asarray(x) for name, x in adapted.stats.items()}
    assert {"energy", "diverging", "n_steps", "acceptance_rate", "step_size"} < set(stats)
    assert not stats["diverging"].any()
    # In lock-step, after the warmup with one setting.
    assert np.all(stats["n_steps"] == stats["n_steps"][:1])
    for name in ("step_size", "trajectory_length"):
        assert len(np.unique(stats[name])) == 1
        np.testing.assert_allclose(stats[name][0, 0], getattr(adapted.kernel, name), rtol=1e-6)
    # The energy is minus the log density plus a kinetic energy, of which half the dimension is
    # the mean: 64 * 250 draws of sd sqrt(9 / 2), of an effective size of more than a tenth.
    assert stats["energy"].shape == (64, 250)
    assert abs(np.mean(stats["energy"] + stats["lp"]) - 4.5) < 5.5 * math.sqrt(4.5 / 1600)
    # What is aimed at hangs on the few worst chains of a move: over six keys it was 0.66, with a
    # standard deviation of 0.045 between keys, of which 0.18 is four.
    rates = np.maximum(stats["acceptance_rate"], together._LEAST)
    assert abs(np.mean(1 / np.mean(1 / rates, 0)) - 0.651) < 0.18
    assert 0.75 < np.mean(rates) < 0.95
    assert adapted.summary()["m"]["rhat"] < 1.05


def test_the_adapted_kernel_is_a_value(adapted):
    """It runs without a warmup, with other numbers of chains, and as a part."""
    found = run(together_models(), adapted.kernel, 500, 0, 3, key=1)
    other = dataclasses.replace(
        adapted.kernel, trajectory_length=0.9 * found.kernel.trajectory_length
    )
    with compilations() as again:
        run(together_models(), other, 20, 0, 3)
    assert again.count == 0  # settings are data
    x = np.asarray(found["beta/p"], float)[:, 100:]
    mean, _ = answers()["beta/p"]
    assert abs((x.mean() - mean) / mcse(x)) < 5.5

    @ppl.model
    def mixed():
        k = ppl.sample("k", dist.Bernoulli(0.4))
        ppl.sample("z", dist.LogNormal(1.0 * k, 0.5))

    kernel = dataclasses.replace(adapted.kernel, inverse_mass=None, addresses=("z",))
    parts = ppl.kernels.cycle(kernel, ppl.kernels.gibbs())
    k = np.asarray(run(mixed(), parts, 400, 0, 8)["k"], float)
    assert abs((k.mean() - 0.4) / mcse(k)) < 5.5


def test_after_warmup_a_chain_knows_its_own_seed_only(x64):
    """Chains beside it change none of its draws, nor the lengths of its moves."""
    few = run(bounded(), SETTLED, 30, 0, 2)
    start = {a: np.asarray(few[a][:, -1]) for a in few.draws}

    def go(num):
        space = ppl.unconstrain(bounded())
        gradient = jax.value_and_grad(space.log_density)
        z = jnp.stack([space.flatten({a: x[i % 2] for a, x in start.items()}) for i in range(num)])
        seeds = jax.random.key_data(jax.random.split(jax.random.key(3), 6))[:num]
        state = SETTLED.flat_start(gradient, z, seeds)
        noise = SETTLED.ahead(0, 10, 2, seeds)
        _, out = jax.lax.scan(lambda s, n: SETTLED.flat_step(gradient, s, n, 0), state, noise)
        return np.asarray(SETTLED.flat_stats(out)[0])

    np.testing.assert_allclose(go(6)[:, :2], go(2), rtol=1e-10)


def test_extended_and_resumed_runs_are_the_same(tmp_path, monkeypatch):
    """Bit for bit, adaptation included."""
    program, kernel = bounded(), chees()
    whole = run(program, kernel, 60, 40, 8)
    same(run(program, kernel, 25, 40, 8).extend(35), whole)
    monkeypatch.setattr(suspended, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(lanes, "SECONDS", 0.0)
    path, advance, left = str(tmp_path / "c"), lanes.Lanes.advance, [30]

    def interrupted(self, total):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return advance(self, total)

    monkeypatch.setattr(lanes.Lanes, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):  # in the warmup
        run(program, kernel, 60, 40, 8, checkpoint=path)
    same(run(program, kernel, 60, 40, 8, checkpoint=path), whole)
    thin = ppl.mcmc(program, kernel, 20, 40, 8, thin=3, keep=["share"])
    thin = ppl.run(thin, 0, progress=True)
    np.testing.assert_array_equal(thin["share"], whole["share"][:, 2::3])
    assert list(thin.draws) == ["share"]


def same(one, other):
    for found, expected in ((one.draws, other.draws), (one.stats, other.stats)):
        for name, x in expected.items():
            np.testing.assert_array_equal(found[name], x)
    jax.tree.map(np.testing.assert_array_equal, one.kernel, other.kernel)


# --- Adaptation ---------------------------------------------------------------------------------

SIZE = 10


@ppl.model
def rotated():
    """A normal law of standard deviations from 0.1 to 3, along no axis."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))
    root = basis * np.logspace(-1, 0.5, SIZE)
    return ppl.sample("x", dist.MultivariateNormal(jnp.zeros(SIZE), jnp.asarray(root @ root.T)))


def test_the_length_is_near_the_best():
    """By effective draws a gradient, of values and of squares, the worst of all coordinates.

    Over 16 keys the adapted length had 1.29 of the best of six others, with a standard deviation of
    0.06: 0.9 is six of those away.
    """
    found = run(rotated(), chees(), 300, 300).kernel

    def worth(factor):
        kernel = dataclasses.replace(found, trajectory_length=factor * found.trajectory_length)
        chains = run(rotated(), kernel, 300, 30, key=1)
        x = np.asarray(chains["x"], float)
        sizes = ess(x, "mean"), ess((x - x.mean((0, 1))) ** 2, "mean")
        return np.min(sizes) / np.mean(np.asarray(chains.stats["n_steps"]))

    assert worth(1.0) > 0.9 * max(map(worth, (0.25, 0.5, 0.7, 1.4, 2.0, 4.0)))


def test_the_slope_is_that_of_the_criterion(x64):
    """Against the criterion itself, differentiated by the length, where the flow is a rotation."""
    rng, root = np.random.default_rng(2), np.sqrt(MASS)[:, None]
    one, two = jnp.asarray(rng.normal(size=(2, 2, 50)))

    def position(time):
        return root * (one * jnp.cos(time) + two * jnp.sin(time))

    def criterion(log_time):
        end = (position(jnp.exp(log_time)) - mean) / root
        begin = one - one.mean(1, keepdims=True)
        return jnp.log(jnp.mean(jnp.sum(end**2 - begin**2, 0) ** 2))

    time, none = 0.9, jnp.zeros(50)
    end, mean = position(time), position(time).mean(1, keepdims=True)
    velocity = root * (two * jnp.cos(time) - one * jnp.sin(time))
    begin = Place(position(0.0), end, none)
    made = Move(begin, Place(end, end, none), velocity, (none, none), none, none + 1)
    found = together.slope(made, jnp.asarray(MASS), time)
    expected = jax.grad(criterion)(jnp.log(time))
    assert 0.1 < abs(float(expected)) < together._STEEPEST
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # A chain that accepts nothing, and is nowhere, does not count.
    lost = Place(end.at[:, 3].set(jnp.nan), end, none)
    lost = made._replace(end=lost, rate=made.rate.at[3].set(0.0))
    assert np.isfinite(together.slope(lost, jnp.asarray(MASS), time))


def test_moments_of_many_are_those_of_all(x64):
    rng = np.random.default_rng(3)
    places = rng.normal(size=(4, 2, 3, 6)) * 2 + 1
    counts = rng.random((4, 6)) < 0.7
    counts[2] = False
    found = Moments.none(jnp.zeros(3))
    for place, count in zip(places, counts, strict=True):
        place = np.where(count, place, np.nan)  # what does not count is not looked at
        found = found.add(jnp.asarray(place), jnp.asarray(count))
    kept = np.concatenate([p[..., c] for p, c in zip(places, counts, strict=True)], -1)
    np.testing.assert_allclose(found.number, counts.mean(1).sum())
    np.testing.assert_allclose(found.mean, kept.mean(-1))
    np.testing.assert_allclose(found.squares / found.number, kept.var(-1))


def test_the_step_size_reaches_the_acceptance_asked_for(x64):
    """On acceptances that fall smoothly with the step, and differ between chains."""
    nowhere, chains = Place(jnp.zeros((1, 50)), jnp.zeros((1, 50)), jnp.zeros(50)), jnp.arange(50)
    adapts = dict.fromkeys(together.SETTINGS, False) | {"step_size": True}

    def log_rates(step_size):
        return -step_size * (0.5 + chains / 50)

    def move(known, index):
        logs = log_rates(known.step_size)
        made = Move(nowhere, nowhere, nowhere.position, (logs, logs), logs, jnp.exp(logs))
        return together.learn(
            known, index, 300, made, nowhere, 5, 0.7, 100.0, adapts
        ), None  # fmt: skip

    start = together.Learned.start(jnp.zeros(1), None, 1.0, 1.0)
    end, _ = jax.lax.scan(move, start, jnp.arange(300))
    reached = 1 / jnp.mean(jnp.exp(-log_rates(end.step_size)))
    assert abs(float(reached) - 0.7) < 0.01


def test_one_chain_of_many_counts_early_and_not_later():
    """Early none is left behind; later one of a thousand does not set the step size of all."""
    rates = jnp.ones(1000).at[0].set(0.0)
    nowhere = Place(jnp.zeros((1, 1000)), jnp.zeros((1, 1000)), rates)
    made = Move(nowhere, nowhere, jnp.zeros((1, 1000)), (rates, rates), jnp.log(rates), rates)
    known = together.Learned.start(jnp.zeros(1), 0.1, 1.0, 1.0)
    adapts = dict.fromkeys(together.SETTINGS, False) | {"step_size": True}

    def step_size(index):
        after = together.learn(known, index, 100, made, nowhere, 5, 0.651, 100.0, adapts)
        return float(after.step_size)

    assert step_size(10) < 0.06
    assert step_size(40) > 0.11
    assert step_size(99) > 0.1


# --- What is refused ----------------------------------------------------------------------------


def test_settings_are_checked():
    for settings, match in (
        ({"target_accept": 1.0}, r"target_accept=1\.0"),
        ({"max_num_steps": 0}, "max_num_steps=0"),
        ({"step_size": -1.0}, "step_size=-1"),
        ({"trajectory_length": jnp.ones(2)}, r"trajectory_length of shape \(2,\)"),
        ({"inverse_mass": jnp.eye(2)}, r"inverse_mass of shape \(2, 2\)"),
        ({"num_steps": 3}, "num_steps"),
    ):
        with pytest.raises(ArgumentError, match=match):
            chees(**settings)
    with pytest.raises(ArgumentError, match=r"num_warmup=0.*trajectory_length"):
        ppl.mcmc(bounded(), chees(step_size=0.1), num_warmup=0)
    with pytest.raises(ArgumentError, match=r"inverse_mass of shape \(3,\)"):
        ppl.mcmc(bounded(), chees(inverse_mass=jnp.ones(3)), num_chains=64)
    with pytest.raises(ArgumentError, match=r"num_chains=4 .* adapt inverse_mass.*nuts\(\)"):
        ppl.mcmc(bounded(), chees(step_size=0.1, trajectory_length=1.0))
    ppl.mcmc(bounded(), SETTLED, num_chains=1)

    @ppl.model
    def discrete():
        return ppl.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(UnsupportedError, match='discrete latent site "k"'):
        ppl.mcmc(discrete(), chees(), num_chains=64)


def test_a_chain_alone_adapts_nothing():
    trace = ppl.trace(bounded(), 0)
    for call in (
        lambda: chees()(trace),
        lambda: run(bounded(), chees(addresses=["rate"])),
        lambda: run(bounded(), ppl.kernels.repeat(chees(), 2)),
    ):
        with pytest.raises(ArgumentError, match=r"no step_size and no trajectory_length.*chains"):
            call()
