"""Models with discrete latents, by Gibbs and its combinations, against exact answers.

Chains start from exact draws of the posterior and must go on having its means. A chain's average
over its moves is one number, and the chains are independent: every statistic is tested by a z-score
over chains, at a level that adds up to a false alarm in a million for each test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.inference.blockwise import on
from ppl.inference.combinators import cycle, mixture
from ppl.inference.gibbs import gibbs
from ppl.semantics.kernel import choices_of

FALSE_ALARM = 1e-6
B, sample = dist.Bernoulli, ppl.sample


@ppl.model
def chains(kernel, program, start, statistics, num_moves):
    """The averages of statistics along each of many chains, and how many of them moved."""

    def one(choices):
        def step(trace, _):
            trace = kernel(trace)
            return trace, statistics(trace.choices)

        start = ppl.trace_of(program, choices)
        end, along = lax.scan(step, start, length=num_moves)
        moved = jnp.array([jnp.any(end.choices[a] != choices[a]) for a in choices])
        return jnp.mean(along.astype(float), 0), jnp.any(moved)

    return jax.vmap(one)(start)


def z_scores(kernel, program, start, statistics, exact, num_moves=20, key=0):
    start = {a: jnp.asarray(x) for a, x in start.items()}
    found, moved = ppl.run(chains(kernel, program, start, statistics, num_moves), key)
    assert np.mean(moved) > 0.5
    found = np.asarray(found, np.float64)
    return (found.mean(0) - exact) / (found.std(0) / np.sqrt(len(found)))


def agrees(z):
    return np.max(np.abs(z)) < stats.norm.isf(FALSE_ALARM / 2 / len(z))


def posterior(program, count, seed=0):
    """Exact draws of all choices, by enumeration, and the measure."""
    measure = ppl.enumerate(choices_of(program)).normalize()
    picked = np.random.default_rng(seed).choice(len(measure), count, p=measure.masses)
    return {a: np.stack([measure.points[i][a] for i in picked]) for a in program.latents}, measure


def compared(kernel, program, statistics, count=400, **settings):
    """Whether the chains of a finite program agree with its enumeration."""
    start, measure = posterior(program, count)
    exact = np.asarray(measure.expect(lambda c: statistics(c).astype(float)))
    return agrees(z_scores(kernel, program, start, statistics, exact, **settings))


# --- An Ising lattice ---------------------------------------------------------------------------


@ppl.model
def ising(field, coupling):
    with ppl.plate("row", 3), ppl.plate("column", 3):
        s = sample("s", B(0.5))
    spin = 2.0 * s - 1
    ppl.factor("field", jnp.sum(field * spin))
    ppl.factor("rows", coupling * jnp.sum(spin[1:] * spin[:-1]))
    ppl.factor("columns", coupling * jnp.sum(spin[:, 1:] * spin[:, :-1]))


def of_lattice(choices):
    s = choices["s"]
    return jnp.concatenate([s.ravel(), (s[1:] == s[:-1]).ravel(), (s[:, 1:] == s[:, :-1]).ravel()])


@ppl.kernel
def all_at_once(trace):
    """A mutant: every spin given the old values of its neighbours."""

    def density(value, i):
        s = trace.choices["s"].ravel().at[i].set(value).reshape(3, 3)
        return ppl.log_density(trace.program, {"s": s})

    weights = jax.vmap(lambda i: jax.vmap(lambda v: density(v, i))(jnp.arange(2)))(jnp.arange(9))
    s = sample("draw", dist.CategoricalLogits(weights))
    return trace.with_choices({"s": s.reshape(3, 3)})


def test_ising():
    program = ising(jnp.linspace(-0.4, 0.4, 9).reshape(3, 3), 0.4)
    assert compared(gibbs(), program, of_lattice)
    assert not compared(all_at_once, program, of_lattice)


# --- A random number of components --------------------------------------------------------------


@ppl.model
def components(y):
    """One coin or two; each toss is of one of them. Every number has sites of its own."""
    num = sample("num", B(0.6))

    def of(k):
        def tosses():
            with ppl.plate(f"coin{k}", k):
                bias = sample(f"bias{k}", dist.Categorical(jnp.array([0.3, 0.3, 0.4])))
            with ppl.plate(f"toss{k}", y.shape[0]):
                z = sample(f"z{k}", dist.DiscreteUniform(0, k - 1))
            return jnp.array([0.1, 0.5, 0.8])[bias[z]]

        return tosses

    p = lax.switch(num, [of(1), of(2)])
    with ppl.plate("toss", y.shape[0]):
        sample("y", B(p), obs=y)


def of_components(choices):
    num, bias = choices["num"], choices["bias2"]
    return jnp.concatenate([num[None], (num == 1) & (bias == 2)])


@pytest.mark.slow
def test_a_random_number_of_components():
    program = components(jnp.array([1, 1, 0]))
    within = gibbs(addresses=["bias1", "bias2", "z2"])
    kernel = cycle(on("num", ppl.kernels.single_site()), ppl.kernels.single_site("num"), within)
    assert compared(kernel, program, of_components)


# --- A mixture of normals: discrete and continuous together -------------------------------------

DATA, WEIGHT, SD = np.array([-0.5, 0.4, 2.0, 2.9]), 0.35, 1.5


@ppl.model
def normals(y):
    mu = sample("mu", dist.Normal(1.0, SD).expand([2]).to_event(1))
    with ppl.plate("n", y.shape[0]):
        z = sample("z", B(WEIGHT))
        sample("y", dist.Normal(mu[z], 1.0), obs=y)


def of_normals(choices):
    mu, z = choices["mu"], choices["z"]
    return jnp.concatenate([mu, mu[:1] * mu[1:], z, mu[1] * z])


def by_quadrature():
    """The same means: sums over z for each mu, and the trapezoidal rule over both means."""
    grid = np.linspace(1 - 9 * SD, 1 + 9 * SD, 401)
    one, two = np.meshgrid(grid, grid, indexing="ij")
    terms = np.stack([stats.norm.pdf(y, [one, two], 1.0) for y in DATA])
    terms *= np.array([1 - WEIGHT, WEIGHT])[:, None, None]
    density = stats.norm.pdf(one, 1, SD) * stats.norm.pdf(two, 1, SD) * terms.sum(1).prod(0)
    density /= density.sum()
    second = terms[:, 1] / terms.sum(1)  # of each datum's belonging to the second normal
    rows = [one, two, one * two, *second, *(two * second)]
    return np.array([np.sum(density * row) for row in rows])


def by_rejection(count, seed=0):
    """Exact draws: from the prior, accepted by the likelihood relative to its bound."""
    rng = np.random.default_rng(seed)
    mu, z = rng.normal(1.0, SD, (400_000, 2)), rng.random((400_000, 4)) < WEIGHT
    log_ratio = -0.5 * np.sum((DATA - np.where(z, mu[:, 1:], mu[:, :1])) ** 2, 1)
    kept = np.flatnonzero(rng.random(400_000) < np.exp(log_ratio))[:count]
    assert len(kept) == count
    return {"mu": mu[kept].astype(np.float32), "z": z[kept].astype(np.int32)}


KERNELS = {
    "hmc": cycle(ppl.kernels.hmc(0.3, 5, addresses=["mu"]), gibbs(addresses=["z"])),
    "hmc on": cycle(on("mu", ppl.kernels.hmc(0.3, 5)), gibbs()),
    "random walk": mixture(ppl.kernels.random_walk(0.6), gibbs(), weights=[2, 1]),
    "some of the members": cycle(ppl.kernels.random_walk(0.6), on("z", ppl.kernels.single_site())),
}


SLOW = ("hmc on", "some of the members")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in KERNELS]
)
def test_a_mixture_of_normals(name):
    program = normals(jnp.asarray(DATA, jnp.float32))
    z = z_scores(KERNELS[name], program, by_rejection(1000), of_normals, by_quadrature())
    assert agrees(z)


@ppl.kernel
def from_the_prior(trace):
    """A mutant: the labels without their likelihood."""
    return trace.with_choices({"z": sample("z", B(jnp.full(4, WEIGHT)))})


def test_a_kernel_of_another_target_is_found():
    program = normals(jnp.asarray(DATA, jnp.float32))
    kernel = cycle(ppl.kernels.random_walk(0.6), from_the_prior)
    assert not agrees(z_scores(kernel, program, by_rejection(1000), of_normals, by_quadrature()))
