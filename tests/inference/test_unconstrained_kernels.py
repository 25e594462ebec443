"""`random_walk`, `adapted_random_walk` and `hmc`: laws that are kept, the flow, what is refused."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference.coordinates import coordinates
from ppl.inference.dynamics import leapfrog, log_energy, momentum, phase
from ppl.inference.trace_kernel import accepted
from ppl.staging import stage
from tests import zoo
from tests.inference.test_kernels import branching, mixed

random_walk, hmc, adapted = (
    ppl.kernels.random_walk,
    ppl.kernels.hmc,
    ppl.kernels.adapted_random_walk,
)


# --- Invariance ---------------------------------------------------------------------------------


def walk(space, start, density):
    """A random walk, of parts that a mutant can change."""
    there = start + 0.9 * ppl.sample("noise", dist.Normal(0.0, 1.0).expand([space.size]))
    return space.moved(there, accepted(density(there) - density(start)))


@ppl.kernel
def without_jacobian(trace):
    space = coordinates("walk", trace, None)
    return walk(
        space,
        space.start(),
        lambda z: space.space.at(z).log_density - space.space.at(z).log_jacobian,
    )


@ppl.kernel
def stale_auxiliaries(trace):
    """A site that does not exist starts at zero, and not at a draw."""
    space = coordinates("walk", trace, None)
    return walk(space, space.vector(), space.log_density)


@ppl.kernel
def held_sites_come_and_go(trace):
    space = dataclasses.replace(coordinates("walk", trace, None), fixed=())
    return walk(space, space.start(), space.log_density)


@ppl.kernel
def correct(trace):
    space = coordinates("walk", trace, None)
    return walk(space, space.start(), space.log_density)


@pytest.mark.parametrize(
    ("kernel", "verdict"),
    [
        (random_walk(0.8, num_steps=2), "passed"),
        pytest.param(hmc(0.4, 3, inverse_mass=0.7), "passed", marks=pytest.mark.slow),
        (without_jacobian, "failed"),
    ],
)
def test_a_bounded_site_is_moved_with_its_jacobian(kernel, verdict):
    """Beta prior, binomial data: at level 1e-6, for every datum the program can give."""
    report = ppl.check.geweke(kernel, zoo.beta_binomial(3), key=5)
    assert report.verdict == verdict, report


def check_mixed(kernel, **settings):
    return ppl.check.invariant(kernel, mixed(1.0), key=7, resolution=0.03, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [random_walk(0.9, num_steps=2), hmc(0.4, 3), random_walk(0.9, addresses=["u"])]
)
def test_sites_come_and_go_while_discrete_ones_are_held(kernel):
    """An interval that moves with another site; a branch with a held site, one with a moving."""
    check_mixed(kernel).require()


def ten_times(kernel):
    """What one move does wrong, ten make plain."""

    @ppl.kernel
    def repeated(trace):
        return lax.scan(lambda t, _: (kernel(t), None), trace, length=10)[0]

    return repeated


@ppl.model
def doors():
    """A branch on a continuous site: one way a discrete site, the other a continuous one."""
    x = ppl.sample("x", dist.Normal(0.0, 1.0))

    def there():
        b = ppl.sample("b", dist.Categorical(probs=jnp.array([0.1, 0.2, 0.7])))
        return b.astype(float)

    return lax.cond(x > 0, there, lambda: ppl.sample("u", dist.Normal(2.0, 0.3)))


@ppl.model
def gate():
    """A branch on a continuous site, with a continuous site inside."""
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    return lax.cond(x > 0, lambda: ppl.sample("u", dist.Normal(2.0, 0.5)), lambda: x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "kernel", "verdict"),
    [
        (doors, correct, "passed"),
        (doors, held_sites_come_and_go, "failed"),
        (gate, correct, "passed"),
        (gate, stale_auxiliaries, "failed"),
    ],
)
def test_branches_need_auxiliary_draws_and_held_sites(program, kernel, verdict):
    assert ppl.check.invariant(ten_times(kernel), program(), key=7).verdict == verdict


def test_a_branch_is_entered_and_left():
    """The chain is not merely invariant: from x < 0 it finds the site that is not there."""
    trace = ppl.trace_of(gate(), {"x": -0.5, "u": 0.0})
    many = ppl.model(lambda k, t: jax.vmap(lambda _: k(t))(jnp.arange(500)))
    there = ppl.run(many(random_walk(0.9, num_steps=10), trace), 0)
    found = np.asarray(there.choices["u"])[np.asarray(there.present["u"])]
    assert 100 < found.size < 400
    assert abs(found.mean() - 2.0) < 0.3


def test_tempered_programs_are_moved_at_their_temperature():
    """Normal prior, one datum at power 1/4: the posterior is normal in closed form."""
    power, y = 0.25, 3.0
    variance = 1 / (1 + power / 0.5**2)
    mean = variance * power * y / 0.5**2

    @ppl.model
    def cold(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(mu, 0.5), obs=y)

    @ppl.model
    def many(kernel, program, power):
        scaled = ppl.scale(program, power, ["y"])

        def one(_):
            mu = ppl.sample("start", dist.Normal(mean, np.sqrt(variance)))
            step = lambda t, _: (kernel(t), None)  # noqa: E731
            trace = ppl.trace_of(scaled, {"mu": mu})
            return lax.scan(step, trace, length=10)[0].choices["mu"]

        return jax.vmap(one)(jnp.arange(4000))

    for kernel in (random_walk(0.9), hmc(0.5, 2)):
        mu = np.asarray(ppl.run(many(kernel, cold(y), jnp.array(power)), 1), float)
        z = (mu - mean) / np.sqrt(variance)
        # Each beyond 5 with probability 6e-7.
        assert abs(z.mean()) * np.sqrt(4000) < 5
        assert abs((z**2).mean() - 1) * np.sqrt(2000) < 5


# --- The Hamiltonian flow -----------------------------------------------------------------------


def quartic(z):
    return -jnp.sum(z**4) / 4 - 0.5 * jnp.sum(z) ** 2 + jnp.sin(z[0] * z[1])


MASSES = (0.7, np.array([0.5, 1.5]), np.array([[1.0, 0.4], [0.4, 0.8]]))
vectors = st.tuples(*[st.floats(-1.5, 1.5)] * 2).map(np.array)


def flow(step, inverse_mass, size, count=3):
    def go(z, p):
        state = phase(quartic, z, p)
        for _ in range(count):
            state = step(quartic, state, size, inverse_mass)
        return state.position, state.momentum

    return go


def turned(go):
    """There and back: what the map gives with the momentum negated before and after."""

    def there_and_back(z, p):
        z, p = go(*(lambda z, p: (z, -p))(*go(z, p)))
        return z, -p

    return there_and_back


def half_kicked(log_density, state, size, inverse_mass):
    """Volume is preserved, but a kick before the drift only is not its own inverse."""
    p = state.momentum + size * state.gradient
    return phase(log_density, state.position + size * inverse_mass * p, p)


def euler(log_density, state, size, inverse_mass):
    """Both moved by what was: volume is not preserved."""
    z = state.position + size * inverse_mass * state.momentum
    return phase(log_density, z, state.momentum + size * state.gradient)


def defects(step, inverse_mass):
    """How far from volume preserving, and from reversible, a step is at a point."""
    go = flow(step, inverse_mass, 0.2)

    @jax.jit
    def measure(z, p):
        matrix = jax.jacobian(lambda x: jnp.concatenate(go(x[:2], x[2:])))(jnp.concatenate([z, p]))
        back = turned(go)(z, p)
        gap = jnp.max(jnp.abs(jnp.concatenate(back) - jnp.concatenate([z, p])))
        return jnp.abs(jnp.abs(jnp.linalg.det(matrix)) - 1), gap

    return measure


@pytest.mark.parametrize("inverse_mass", MASSES, ids=["number", "vector", "matrix"])
def test_the_leapfrog_preserves_volume_and_is_reversible(inverse_mass):
    with jax.enable_x64(True):
        measure = defects(leapfrog, inverse_mass)

        @hypothesis.settings(max_examples=50, database=None)
        @hypothesis.given(vectors, vectors)
        def run(z, p):
            with jax.enable_x64(True):
                volume, gap = measure(z, p)
                assert volume < 1e-10
                assert gap < 1e-10

        run()


def test_wrong_integrators_are_seen(x64):
    z, p = jnp.array([0.5, -1.0]), jnp.array([1.0, 0.3])
    volume, gap = defects(half_kicked, 0.7)(z, p)
    assert volume < 1e-10
    assert gap > 1e-3
    assert defects(euler, 0.7)(z, p)[0] > 1e-3


def test_the_energy_error_is_of_second_order(x64):
    z, p, mass = jnp.array([0.5, -1.0]), jnp.array([1.0, 0.3]), MASSES[2]

    def drift(size, count):
        state = first = phase(quartic, z, p)
        for _ in range(count):
            state = leapfrog(quartic, state, size, mass)
        return abs(float(log_energy(state, mass) - log_energy(first, mass)))

    assert drift(0.02, 10) / drift(0.01, 20) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("inverse_mass", MASSES, ids=["number", "vector", "matrix"])
def test_the_momentum_has_the_mass_for_covariance(x64, inverse_mass):
    """It is linear in standard normal noise, so that its matrix tells."""
    root = jax.vmap(lambda e: momentum(inverse_mass, e))(jnp.eye(2)).T
    full = inverse_mass if jnp.ndim(inverse_mass) == 2 else inverse_mass * jnp.eye(2)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(full), rtol=1e-12, atol=1e-14)


def test_divergent_trajectories_are_rejected():
    trace = ppl.trace_of(zoo.normal_normal(zoo.NORMAL_DATA), {"mu": 0.3})
    moved = ppl.run(hmc(1e30, 5)(trace), 0)
    assert float(moved.choices["mu"]) == np.float32(0.3)
    assert np.isfinite(float(moved.log_density))


# --- Fitted steps -------------------------------------------------------------------------------


@ppl.model
def pair():
    with ppl.plate("n", 2):
        ppl.sample("x", dist.LogNormal(0.0, 1.0))


def population(program, choices, log_weights, present=None):
    count = jnp.asarray(log_weights)
    return ppl.Population(None, count, jnp.zeros(()), choices, program, None, present or {})


def test_steps_are_fitted_to_the_weighted_covariance(x64):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 2)) @ np.array([[1.0, 0.0], [0.8, 0.5]])
    log_weights = rng.normal(size=40)
    points = population(pair(), {"x": jnp.exp(z)}, log_weights)
    kernel = adapted(num_steps=3)(points)
    weights = np.exp(log_weights) / np.exp(log_weights).sum()
    ess = 1 / np.sum(weights**2)
    shrink = 5 / (ess + 5)
    wanted = np.cov(z.T, aweights=weights, bias=True)
    deviation = np.sqrt(np.diag(wanted))
    correlation = (1 - shrink) * wanted / np.outer(deviation, deviation)
    np.fill_diagonal(correlation, 1.0)
    deviation = np.sqrt((1 - shrink) * deviation**2 + shrink * 1e-3)
    found = np.asarray(kernel.scale) / 2.38 * np.sqrt(2)
    np.testing.assert_allclose(
        found @ found.T, correlation * np.outer(deviation, deviation), rtol=1e-10
    )
    assert kernel.num_steps == 3


@pytest.mark.parametrize(
    "log_weights",
    [np.full(9, -np.inf), np.array([0.0] + [-np.inf] * 8), np.zeros(9)],
    ids=["none", "one", "all"],
)
def test_fitted_steps_are_finite_whatever_the_weights(log_weights):
    """In single precision, with correlation one and dead particles anywhere."""
    t = np.linspace(-1, 1, 9)
    x = np.exp(np.stack([20 * t, 20 * t + 1], 1)).astype(np.float32)
    x[5] = np.where(log_weights[5] == 0, x[5], -1.0)  # outside of the support, weight zero
    scale = np.asarray(adapted()(population(pair(), {"x": jnp.asarray(x)}, log_weights)).scale)
    assert np.isfinite(scale).all()
    assert (np.diagonal(scale) > 0).all()


def test_absent_sites_count_as_standard_normal(x64):
    x = jnp.array([1.0, 2.0, -1.0, -2.0])
    here = x > 0
    points = population(gate(), {"x": x, "u": jnp.where(here, 2.0, jnp.nan)}, np.zeros(4))
    points = dataclasses.replace(points, present={"u": here})
    scale = np.asarray(adapted()(points).scale) / 2.38 * np.sqrt(2)
    second = (2.0**2 + 2.0**2 + 1 + 1) / 4 - 1.0**2  # mean 1, two of variance one about zero
    shrink = 5 / 9
    wanted = (1 - shrink) * second + shrink * 1e-3
    assert (scale @ scale.T)[1, 1] == pytest.approx(wanted, rel=1e-10)


def test_a_fitted_kernel_moves_its_population_inside_a_program():
    """Particles from the posterior, equally weighted: they stay its draws, and all have moved."""
    program, answer = zoo.normal_normal(zoo.NORMAL_DATA), zoo.normal_normal_answer()

    @ppl.model
    def moved(fit, program, count=2000):
        normal = dist.Normal(answer.mean, answer.sd)
        mu = ppl.sample("mu", normal.expand([count]))
        kernel = fit(population(program, {"mu": mu}, jnp.zeros(count)))
        trace = lambda mu: ppl.trace_of(program, {"mu": mu})  # noqa: E731
        return mu, jax.vmap(lambda mu: kernel(trace(mu)).choices["mu"])(mu)

    first = moved(adapted(num_steps=5), program)
    assert first.structure is moved(adapted(num_steps=5), program).structure
    start, end = (np.asarray(x, float) for x in ppl.run(first, 0))
    assert np.mean(start != end) > 0.8
    z = (end - answer.mean) / answer.sd
    # Each beyond 5 with probability 6e-7.
    assert abs(z.mean()) * np.sqrt(2000) < 5
    assert abs((z**2).mean() - 1) * np.sqrt(1000) < 5


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda **k: random_walk(0.1, **k), "random_walk"), (lambda **k: hmc(0.1, 2, **k), "hmc")],
)
def test_discrete_sites_are_refused(make, name):
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(UnsupportedError, match=f"{name} got branching, which has no continuous"):
        make()(trace)
    with pytest.raises(
        UnsupportedError, match=rf'{name} got the discrete site "flag" \(.*test_kernels.py:\d+\)'
    ):
        make(addresses=["flag"])(trace)


def test_settings_out_of_range_are_refused():
    for bad in (0.0, -1.0, np.nan, np.inf, [1.0, 0.0], np.zeros((2, 3)), np.ones((1, 1, 1)), "a"):
        with pytest.raises(
            ArgumentError, match=r"(?s)random_walk got scale=.*needs a positive number"
        ):
            random_walk(bad)
        with pytest.raises(ArgumentError, match=r"(?s)hmc got step_size=.*needs a positive number"):
            hmc(bad, 3)
    for bad in (0, -1, 1.5, None):
        with pytest.raises(ArgumentError, match=r"got num_steps=.*needs a positive integer"):
            random_walk(0.1, num_steps=bad)
        with pytest.raises(ArgumentError, match=r"got num_steps=.*needs a positive integer"):
            hmc(0.1, bad)
    with pytest.raises(ArgumentError, match=r"hmc got step_size of shape \(2,\)"):
        hmc([0.1, 0.2], 3)
    for bad in ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]):
        with pytest.raises(ArgumentError, match="needs a symmetric positive definite matrix"):
            hmc(0.1, 3, inverse_mass=bad)
    with pytest.raises(ArgumentError, match="adapted_random_walk got factor=0"):
        adapted(factor=0)
    with pytest.raises(ArgumentError, match="adapted_random_walk got Population without a program"):
        adapted()(ppl.Population(None, jnp.zeros(2), 0.0, {}))


def test_settings_of_another_dimension_are_refused():
    trace = ppl.trace_of(pair(), {"x": jnp.ones(2)})
    with pytest.raises(
        ArgumentError, match=r"random_walk got scale of shape \(3,\).*2 coordinates: x\[0\], x\[1\]"
    ):
        random_walk(np.ones(3))(trace)
    with pytest.raises(ArgumentError, match=r"hmc got inverse_mass of shape \(1, 1\)"):
        hmc(0.1, 2, inverse_mass=[[1.0]])(trace)


def test_all_shapes_of_a_scale_mean_one_step():
    """Equal in law, and equal draw by draw: the noise is the same."""
    trace = ppl.trace_of(pair(), {"x": jnp.ones(2)})
    scales = (0.3, [0.3, 0.3], 0.3 * np.eye(2))
    ends = [ppl.run(stage(lambda k, t: k(t), (random_walk(s), trace)), 4) for s in scales]
    for end in ends[1:]:
        np.testing.assert_allclose(end.choices["x"], ends[0].choices["x"], rtol=1e-6)
    assert (np.asarray(ends[0].choices["x"]) != 1.0).all()
