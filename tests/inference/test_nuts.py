"""NUTS: what a trajectory is, that it leaves densities invariant, and what warmup finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, UnsupportedError
from ppl.inference import metric as metric_of
from ppl.inference import warmup
from ppl.inference.trajectory import Noise, grow, rest
from ppl.results.diagnostics import mcse

MASS = np.array([1.5, 0.3])
SCALE = np.array([1.0, 0.4])


def gradient(z):
    """A log density that is not normal, and its gradient."""
    return jax.value_and_grad(lambda z: -jnp.sum(jnp.cosh(z / SCALE)) + 0.3 * z[0] * z[1])(z)


# --- Trajectories against a plain recursion -----------------------------------------------------


def density(z):
    return -np.sum(np.cosh(z / SCALE)) + 0.3 * z[0] * z[1]


def force(z):
    return -np.sinh(z / SCALE) / SCALE + 0.3 * z[::-1]


def leapfrog(z, p, step):
    half = p + 0.5 * step * force(z)
    z = z + step * MASS * half
    return z, half + 0.5 * step * force(z)


def energy(z, p):
    return density(z) - 0.5 * np.sum(MASS * p * p)


def turns(leaves):
    """Tell whether a tree, with its leaves in order of time, makes a U-turn; as Stan does."""
    momenta = [p for _, p in leaves]
    middle = len(momenta) // 2

    def turn(part):
        speed = MASS * sum(part)
        return part[0] @ speed <= 0 or part[-1] @ speed <= 0

    return turn(momenta) or turn(momenta[: middle + 1]) or turn(momenta[middle - 1 :])


def valid(leaves):
    """Tell whether no subtree makes a U-turn."""
    if len(leaves) == 1:
        return True
    middle = len(leaves) // 2
    return valid(leaves[:middle]) and valid(leaves[middle:]) and not turns(leaves)


def plain(z, p, step, directions, max_depth):
    """Build the tree by the definition: its leaves in order of time, its depth, what ended it."""
    leaves, depth = [(z, p)], 0
    while True:
        new, (end_z, end_p) = [], leaves[-1 if directions[depth] > 0 else 0]
        for _ in range(2**depth):
            end_z, end_p = leapfrog(end_z, end_p, directions[depth] * step)
            new.append((end_z, end_p))
        new = new if directions[depth] > 0 else new[::-1]
        if not valid(new):
            return leaves, depth
        leaves = leaves + new if directions[depth] > 0 else new + leaves
        depth += 1
        if turns(leaves) or depth == max_depth:
            return leaves, depth


@pytest.fixture(scope="module")
def grown():
    """Grow a trajectory in given directions, and draw which of its leaves are taken."""
    with jax.enable_x64(True):
        mass = jnp.asarray(MASS)
        step = jax.jit(lambda old, eps, noise: grow(gradient, old, eps, mass, noise))

        def run(z, p, eps, directions, seed):
            here, slope = gradient(jnp.asarray(z))
            t, rng = rest(jnp.asarray(z), slope, here, 6), np.random.default_rng(seed)
            while True:
                depth = 0 if t.numbers.status else int(t.numbers.depth)
                coins = jnp.asarray(directions[[0, depth + 1]], float)
                logs = jnp.log(jnp.asarray(rng.random(2)))
                start = jnp.asarray(p * np.sqrt(MASS))
                t = step(t, eps, Noise(start, start @ start / 2, coins, logs))
                if t.numbers.status:
                    return t

        yield run


@pytest.mark.parametrize("seed", range(40))
def test_a_trajectory_is_the_tree_of_the_definition(grown, seed, x64):
    rng = np.random.default_rng(seed)
    z, p = rng.normal(size=2) * SCALE, rng.normal(size=2) / np.sqrt(MASS)
    eps, directions = rng.uniform(0.05, 0.6), rng.choice([-1, 1], size=8)
    leaves, depth = plain(z, p, eps, directions, 6)
    end = grown(z, p, eps, directions, seed)
    numbers, drawn = end.numbers, end.here
    assert int(numbers.depth) == depth
    # What was drawn is a leaf of the tree, and the weights are those of its leaves.
    energies = np.array([energy(*leaf) for leaf in leaves])
    total = np.log(np.sum(np.exp(energies - energy(z, p))))
    np.testing.assert_allclose(numbers.log_weight, total, rtol=1e-9, atol=1e-9)
    apart = [np.max(np.abs(leaf[0] - drawn.position)) for leaf in leaves]
    assert min(apart) < 1e-9
    np.testing.assert_allclose(drawn.log_energy, energies[np.argmin(apart)], atol=1e-9)
    np.testing.assert_allclose(drawn.log_density, density(drawn.position), atol=1e-9)
    np.testing.assert_allclose(drawn.gradient, force(drawn.position), atol=1e-9)
    assert len(leaves) - 1 <= int(numbers.num_steps)
    assert depth > 0 or numbers.num_steps == 1


def test_the_trees_of_the_test_are_of_many_kinds(x64):
    """Shows that the test above sees deep trees, and trees whose last half was dropped."""
    depths = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        z, p = rng.normal(size=2) * SCALE, rng.normal(size=2) / np.sqrt(MASS)
        depths.add(plain(z, p, rng.uniform(0.05, 0.6), rng.choice([-1, 1], size=8), 6)[1])
    assert {1, 2, 3, 4, 5} <= depths


def test_the_tree_is_as_likely_from_each_of_its_states():
    """From every state of a tree there is one way to build it: the reason why NUTS is correct."""
    rng, seen = np.random.default_rng(5), 0
    for _ in range(12):
        z, p = rng.normal(size=2) * SCALE, rng.normal(size=2) / np.sqrt(MASS)
        eps, directions = rng.uniform(0.1, 0.5), rng.choice([-1, 1], size=8)
        leaves, depth = plain(z, p, eps, directions, 6)
        seen += len(leaves)
        for place, leaf in enumerate(leaves):
            # The directions that lead from this leaf to the same tree are the digits of its place;
            # then the tree goes on, or does not, as it did.
            ways = [1 if (place >> k) % 2 == 0 else -1 for k in range(depth)]
            again, found = plain(*leaf, eps, [*ways, *directions[depth:]], 6)
            assert found == depth
            np.testing.assert_allclose(again[0][0], leaves[0][0], atol=1e-6)
            np.testing.assert_allclose(again[-1][0], leaves[-1][0], atol=1e-6)
    assert seen > 60


def test_no_leaf_of_infinite_density_is_chosen(x64):
    """Not even by way of the candidate that an earlier trajectory has left behind."""

    def walled(z):
        value, slope = gradient(z)
        return jnp.where(z[0] > 0.5, jnp.inf, value), slope

    z = jnp.array([0.4, 0.1])
    here, slope = gradient(z)
    old = rest(z, slope, here, 6)
    old = old._replace(candidate=rest(z - 1, slope, here, 6).candidate)
    noise = Noise(jnp.array([5.0, 0.0]), 12.5, jnp.ones(2), jnp.log(jnp.array([0.5, 0.5])))
    end = grow(walled, old, 0.2, jnp.asarray(MASS), noise)
    assert end.numbers.status == 2  # a divergence, which ends it
    np.testing.assert_array_equal(end.here.position, z)


# --- Chains -------------------------------------------------------------------------------------


@ppl.model
def normal():
    covariance = jnp.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 100.0]])
    return ppl.sample("x", dist.MultivariateNormal(jnp.zeros(3), covariance))


SD = np.array([1.0, 1.0, 10.0])


@pytest.fixture(scope="module")
def adapted():
    program = ppl.mcmc(normal(), ppl.kernels.nuts(), num_samples=4000, num_warmup=1000)
    return ppl.run(program, 1, progress=False)


def errors(x):
    """Means and sds of coordinates, in standard errors."""
    x = np.asarray(x, float)
    return np.r_[x.mean((0, 1)) / mcse(x), (x.std((0, 1)) - SD) / mcse(x, "sd")]


def test_moments_of_a_correlated_normal(adapted):
    # Six numbers, each beyond 5 standard errors with probability 6e-7.
    assert np.all(np.abs(errors(adapted["x"])) < 5)
    assert np.all(np.asarray(adapted.stats["n_steps"]) < 64)


@pytest.mark.parametrize("max_tree_depth", [1, 2, 3])
def test_short_trees_leave_it_invariant_too(max_tree_depth):
    kernel = ppl.kernels.nuts(
        step_size=0.5, inverse_mass=jnp.array([1.0, 1.0, 60.0]), max_tree_depth=max_tree_depth
    )
    program = ppl.mcmc(normal(), kernel, num_samples=6000, num_warmup=500)
    chains = ppl.run(program, 2, progress=False)
    assert np.all(np.abs(errors(chains["x"])) < 5)


def test_warmup_finds_scales_and_the_acceptance_asked_for(adapted):
    accepted = np.asarray(adapted.stats["acceptance_rate"]).mean()
    # Over 40 keys 0.830, with a standard deviation of 0.009; 0.892 if the step swings to the end.
    assert 0.785 < accepted < 0.875
    kernel = adapted.kernel
    mass = np.asarray(kernel.inverse_mass)
    # For a normal density sqrt(var z / var grad) is known: the diagonal of the covariance over that
    # of its inverse. The fit has seen some hundred draws.
    inverse = np.linalg.inv([[1.0, 0.9], [0.9, 1.0]])[0, 0]
    np.testing.assert_allclose(mass, [np.sqrt(1 / inverse)] * 2 + [100.0], rtol=0.4)


def test_the_adapted_kernel_is_a_value(adapted):
    """It runs without a warmup, with other numbers of chains, and inside a composition."""
    chains = ppl.run(
        ppl.mcmc(normal(), adapted.kernel, num_samples=2000, num_warmup=50, num_chains=3),
        3,
        progress=False,
    )
    assert np.all(np.abs(errors(chains["x"])) < 5)
    assert len(np.unique(np.asarray(chains.stats["step_size"]))) == 1


def test_the_kernel_on_traces_leaves_the_measure_invariant():
    kernel = ppl.kernels.nuts(step_size=0.6, inverse_mass=jnp.array([1.0, 1.0, 60.0]))
    report = ppl.check.invariant(kernel, normal())
    assert report.passed, report


@ppl.model
def mixed():
    k = ppl.sample("k", dist.Bernoulli(0.4))
    return ppl.sample("x", dist.LogNormal(1.0 * k, 0.5))


def test_stats_of_a_composition_are_those_of_the_draw():
    kernel = ppl.kernels.cycle(ppl.kernels.nuts(addresses=["x"]), ppl.kernels.gibbs())
    program = ppl.mcmc(mixed(), kernel, num_samples=50, num_warmup=50, num_chains=2)
    chains = ppl.run(program, 0, progress=False)
    choices = {"k": chains["k"].reshape(-1), "x": chains["x"].reshape(-1)}
    density = jax.vmap(lambda c: ppl.log_density(mixed(), c))(choices)
    np.testing.assert_allclose(np.ravel(chains.stats["lp"]), density, rtol=1e-5)


def test_a_part_of_a_mixture_adapts_by_its_own_moves():
    """Whichever of the moves are its own: its step is the average, and is fixed after warmup."""
    parts = ppl.kernels.nuts(addresses=["x"]), ppl.kernels.gibbs()
    kernel = ppl.kernels.mixture(*parts, weights=jnp.array([0.3, 0.7]))
    for seed in range(3):
        program = ppl.mcmc(mixed(), kernel, num_samples=200, num_warmup=200, num_chains=2)
        chains = ppl.run(program, seed, progress=False)
        sizes, rates = (np.asarray(chains.stats[n]) for n in ("step_size", "acceptance_rate"))
        memory = chains.state.memory[0]
        for chain in range(2):
            own = np.isfinite(sizes[chain])
            assert 20 < own.sum() < 120
            expected = np.exp(np.asarray(memory.mean_log_step)[chain])
            np.testing.assert_allclose(sizes[chain][own], expected, rtol=1e-6)
            assert rates[chain][own].mean() > 0.5
        assert np.all(np.asarray(memory.updates) < 30)  # of 200 moves the last 30 average


def test_addresses_move_and_the_rest_is_held():
    @ppl.model
    def two():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0))
        return ppl.sample("k", dist.Bernoulli(0.5))

    kernel = ppl.kernels.nuts(addresses=["x"])
    chains = ppl.run(
        ppl.mcmc(two(), kernel, num_samples=3000, num_warmup=300, num_chains=2), 0, progress=False
    )
    y, k = np.asarray(chains["y"]), np.asarray(chains["k"])
    assert np.all(np.ptp(y, axis=1) == 0)
    assert np.all(np.ptp(k, axis=1) == 0)
    x = np.asarray(chains["x"], float) - y / 2
    z = (x - x.mean(1, keepdims=True)).std() - np.sqrt(0.5)
    assert abs(z) < 5 * float(mcse(x, "sd"))


def test_settings_are_checked():
    with pytest.raises(ArgumentError, match=r"target_accept=1\.5"):
        ppl.kernels.nuts(target_accept=1.5)
    with pytest.raises(ArgumentError, match="max_tree_depth=0"):
        ppl.kernels.nuts(max_tree_depth=0)
    with pytest.raises(ArgumentError, match="step_size"):
        ppl.kernels.nuts(step_size=-1.0)
    with pytest.raises(ArgumentError, match="needs one number"):
        ppl.kernels.nuts(step_size=jnp.ones(2))
    with pytest.raises(ArgumentError, match="low_rank=2 beside"):
        ppl.kernels.nuts(low_rank=2, inverse_mass=1.0)
    with pytest.raises(ArgumentError, match="no step size"):
        ppl.kernels.nuts()(ppl.trace(normal(), 0))
    with pytest.raises(ArgumentError, match="num_warmup=0"):
        ppl.mcmc(normal(), ppl.kernels.nuts(), num_warmup=0)
    with pytest.raises(ArgumentError, match=r"inverse_mass of shape \(2,\)"):
        ppl.mcmc(normal(), ppl.kernels.nuts(inverse_mass=jnp.ones(2)))

    @ppl.model
    def discrete():
        return ppl.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(UnsupportedError, match='discrete latent site "k"'):
        ppl.mcmc(discrete(), ppl.kernels.nuts())


# --- Warmup -------------------------------------------------------------------------------------


def test_dual_averaging_reaches_the_acceptance_asked_for(x64):
    """On an acceptance that falls smoothly with the step, the fixed step accepts as asked."""
    known = warmup.start(jnp.ones((2, 1)), None, 1.0)

    def learn(known, index):
        rate = jnp.exp(-known.step_size)
        after = warmup.update(
            known, index, 1000, jnp.ones((2, 1)), rate, True, 0.7, inverse_mass=False
        )
        return after, after.step_size

    end, _ = jax.lax.scan(learn, known, jnp.arange(1000))
    assert abs(float(jnp.exp(-end.step_size)) - 0.7) < 0.02


def test_an_acceptance_that_is_noise_does_not_shorten_the_step(x64):
    """All or nothing is the noisiest that a rate can be; a hundred chains tell of the mean."""
    known = warmup.start(jnp.ones((2, 1)), None, 1.0)

    def one(coins):
        def learn(known, given):
            index, coin = given
            rate = jnp.where(coin < jnp.exp(-known.step_size), 1.0, 0.0)
            place = jnp.ones((2, 1))
            known = warmup.update(known, index, 1000, place, rate, True, 0.7, inverse_mass=False)
            return known, None

        return jax.lax.scan(learn, known, (jnp.arange(1000), coins))[0].step_size

    rates = jnp.exp(-jax.vmap(one)(jax.random.uniform(jax.random.key(0), (100, 1000))))
    assert abs(float(rates.mean()) - 0.7) < 0.02, rates.mean()


def test_the_metric_is_exact_for_an_uncorrelated_normal(x64):
    """Gradients are linear then: the Fisher metric is the variance, whatever was drawn."""
    sd = jnp.array([0.1, 1.0, 20.0])
    draws = jax.random.normal(jax.random.key(0), (200, 3)) * sd
    known = warmup.start(jnp.stack([draws[0], -draws[0] / sd**2]), 0.5, None)

    def learn(known, x):
        index, z = x
        place = jnp.stack([z, -z / sd**2])
        after = warmup.update(known, index, 200, place, 0.8, True, 0.8, step_size=False)
        return after, after.inverse_mass

    end, masses = jax.lax.scan(learn, known, (jnp.arange(200), draws))
    np.testing.assert_allclose(end.inverse_mass, sd**2, rtol=1e-9)
    # In the last part of the warmup the metric is fixed.
    np.testing.assert_array_equal(masses[170:], jnp.broadcast_to(masses[170], (30, 3)))


COVARIANCE = np.array(
    [[4.0, 1.9, 0.0, 0.0], [1.9, 1.0, 0.0, 0.0], [0, 0, 9.0, -2.0], [0, 0, -2.0, 0.5]]
)


def low_rank(rank):
    """Fit a metric to some draws of a normal distribution, and the gradients there."""
    root = np.linalg.cholesky(COVARIANCE)
    draws = np.random.default_rng(3).normal(size=(80, 4)) @ root.T
    slopes = -draws @ np.linalg.inv(COVARIANCE)
    variance = jnp.sqrt(jnp.asarray(draws.var(0) / slopes.var(0)))
    plain = metric_of.LowRank(variance, jnp.eye(4, rank), jnp.ones(rank))
    return warmup._fitted(plain, jnp.asarray(np.stack([draws, slopes])), jnp.asarray(True))


def matrix(metric):
    return np.asarray(metric_of.velocity(metric, jnp.eye(4)))


def test_a_metric_of_full_rank_is_the_covariance(x64, monkeypatch):
    """The geometric mean of Fisher divergence is exact for a normal, however few the draws are."""
    monkeypatch.setattr(warmup, "_GUESSES", (0.0, 0.0))
    np.testing.assert_allclose(matrix(low_rank(4)), COVARIANCE, rtol=1e-8, atol=1e-8)
    # With two directions of the four, it is nearer than the diagonal.
    diagonal = np.diag(np.asarray(low_rank(4).variance))
    assert np.linalg.cond(np.linalg.solve(COVARIANCE, matrix(low_rank(2)))) < np.linalg.cond(
        np.linalg.solve(COVARIANCE, diagonal)
    )


def test_a_metric_is_fitted_to_draws_of_ones_own_moves(x64, monkeypatch):
    """A chain that makes every other move has as many recent draws, and no gaps among them."""
    monkeypatch.setattr(warmup, "_GUESSES", (0.0, 0.0))
    root, precision = np.linalg.cholesky(COVARIANCE), np.linalg.inv(COVARIANCE)
    draws = np.random.default_rng(4).normal(size=(200, 4)) @ root.T
    # A mean, so that a place of zeros would be told from a draw.
    places = jnp.asarray(np.stack([draws + 3.0, -draws @ precision], axis=1))
    known = warmup.start(places[0], 0.5, None, low_rank=4)

    def learn(known, x):
        index, place = x
        return warmup.update(known, index, 1000, place, 0.8, True, 0.8, step_size=False), None

    end, _ = jax.lax.scan(learn, known, (2 * jnp.arange(200), places))
    np.testing.assert_allclose(matrix(end.inverse_mass), COVARIANCE, rtol=1e-7, atol=1e-7)


def test_momenta_have_the_covariance_of_the_mass(x64):
    metric = low_rank(3)
    root = np.asarray(metric_of.momentum(metric, jnp.eye(4)))  # of noise that is a basis
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(matrix(metric)), rtol=1e-9, atol=1e-9)
    x = jnp.asarray(np.random.default_rng(0).normal(size=4))
    np.testing.assert_allclose(metric_of.velocity(metric, x), matrix(metric) @ x, rtol=1e-9)
    np.testing.assert_allclose(
        metric_of.kinetic(metric, x), 0.5 * x @ matrix(metric) @ x, rtol=1e-9
    )


def test_low_rank_shortens_the_trajectories_of_correlated_posteriors():
    @ppl.model
    def ridge():
        covariance = jnp.asarray(0.999 * np.ones((3, 3)) + 0.001 * np.eye(3), float)
        return ppl.sample("x", dist.MultivariateNormal(jnp.zeros(3), covariance))

    def fitted(rank):
        kernel = ppl.kernels.nuts(low_rank=rank)
        return ppl.run(ppl.mcmc(ridge(), kernel, num_samples=2000), 0, progress=False)

    plain, bent = fitted(0), fitted(1)
    steps = [np.asarray(c.stats["n_steps"]).mean() for c in (plain, bent)]
    assert steps[1] < steps[0] / 3
    x = np.asarray(bent["x"], float)
    assert np.all(np.abs(x.mean((0, 1)) / mcse(x)) < 5)
    assert np.all(np.abs((x.std((0, 1)) - 1) / mcse(x, "sd")) < 5)
    again = ppl.run(
        ppl.mcmc(ridge(), bent.kernel, num_samples=500, num_warmup=0, num_chains=2),
        1,
        progress=False,
    )
    assert np.asarray(again.stats["n_steps"]).mean() < steps[0] / 3
