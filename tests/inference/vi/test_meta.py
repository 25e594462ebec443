"""Guides with auxiliaries whose density is estimated by particles or by a Markov chain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

import ppl
import ppl.distributions as dist
from ppl import sample, vi
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from tests.inference.vi.finite_sums import refuse_bias

pytestmark = pytest.mark.usefixtures("x64")
B = dist.Bernoulli
LENGTH = 2


@ppl.model
def program(th=0.4):
    """A chain of flips, with an observation of each."""

    def step(x, y):
        x = sample("x", B(sigmoid(th * (2 * x - 1))))
        sample("y", dist.Normal(x * 1.0, 1.0), obs=y)
        return x, None

    jax.lax.scan(step, 1, jnp.array([0.3, 1.2]))


@ppl.model
def guide(ph=(0.5, -0.8)):
    """The flips of `program`, each by way of a hidden one that remembers the last."""

    def step(a, _):
        a = sample("a", B(sigmoid(ph[0] * (2 * a - 1))))
        sample("x", B(sigmoid(ph[1] + 2.0 * a)))
        return a, None

    jax.lax.scan(step, 0, length=LENGTH)


@ppl.model
def reverse(x):
    """Hidden flips, near what they should be."""

    def step(_, x):
        sample("a", B(sigmoid(1.5 * x - 0.4)))
        return None, None

    jax.lax.scan(step, None, x)


METHODS = {
    "particles": ppl.kernels.conditional_smc(2),
    "particles resampled at times": ppl.kernels.conditional_smc(3, ess_threshold=0.8),
    "chain": vi.annealing(ppl.kernels.single_site(), [0.4, 1.0]),
    "chain, one step": vi.annealing(ppl.kernels.single_site(), [1.0], num_moves=2),
}


def pair(method=None, proposed=False, th=0.4, ph=(0.5, -0.8), **settings):
    given = (lambda c: reverse(c["x"])) if proposed else None
    sides = program(th), guide(jnp.array(ph))
    return vi.marginal(*sides, given, method=method, **settings)


def bound(*args, **kwargs):
    return float(ppl.enumerate(vi.elbo(*pair(*args, **kwargs))).expect(lambda v: v))


def exact_bound():
    """The bound with the guide's density of x itself."""
    found = 0.0
    for x in itertools.product([0, 1], repeat=LENGTH):
        given = {"x": np.array(x)}
        q = ppl.enumerate(ppl.condition(guide(), given)).total_mass
        found += q * (float(ppl.log_density(program(), given)) - np.log(q))
    return found


@pytest.mark.parametrize("proposed", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_methods_preserve_the_program_and_bound_it(name, proposed):
    target, drawn = pair(METHODS[name], proposed)
    assert ppl.check.equal(target, program()).passed
    assert ppl.check.equal(ppl.guided(target, drawn), program()).passed
    assert set(target.latents) == set(drawn.latents)
    assert bound(METHODS[name], proposed) < exact_bound()


@pytest.mark.parametrize("proposed", [False, True])
def test_bounds_tighten(proposed):
    """With more particles, and with more temperatures."""
    particles = [bound(ppl.kernels.conditional_smc(n), proposed) for n in (2, 3)]
    chains = [
        bound(vi.annealing(ppl.kernels.single_site(), t), proposed) for t in ([1.0], [0.5, 1.0])
    ]
    plain = bound(proposed=proposed)
    assert plain + 1e-3 < particles[0] < particles[1] - 1e-3 < exact_bound()
    # At the guide's own law of the auxiliaries a move changes no mean.
    assert chains[0] == pytest.approx(plain, abs=1e-10)
    assert plain + 1e-3 < chains[1] < exact_bound()


def test_without_a_reverse_the_guide_draws_its_auxiliaries_itself():
    """As with its own law of them, given nothing, as the reverse."""

    @ppl.model
    def alone(ph):
        def step(a, _):
            a = sample("a", B(sigmoid(ph[0] * (2 * a - 1))))
            return a, None

        jax.lax.scan(step, 0, length=LENGTH)

    at = jnp.array([0.5, -0.8])
    for number in (1, 2):
        same = vi.marginal(program(), guide(at), lambda c: alone(at), num_particles=number)
        found = ppl.enumerate(vi.elbo(*same)).expect(lambda v: v)
        assert bound(num_particles=number) == pytest.approx(float(found), abs=1e-10)


@ppl.kernel
def flip(trace):
    """Metropolis with the other value."""
    new = trace.with_choices({"a": 1 - trace.choices["a"]})
    take = sample("accept", B(jnp.minimum(1.0, jnp.exp(new.log_density - trace.log_density))))
    return trace.with_choices({"a": jnp.where(take, new.choices["a"], trace.choices["a"])})


@pytest.mark.parametrize("method", [METHODS["particles"], vi.annealing(flip, [0.5, 1.0])])
def test_gradients_are_unbiased(method):
    @ppl.model
    def one(th):
        x = sample("x", B(sigmoid(th)))
        sample("y", dist.Normal(x * 1.0, 1.0), obs=0.3)

    @ppl.model
    def hidden(ph):
        a = sample("a", B(sigmoid(ph[0])))
        sample("x", B(sigmoid(ph[1] + 2.0 * a)))

    def objective(p):
        return vi.elbo(*vi.marginal(one(p[0]), hidden(p[1:]), method=method))

    refuse_bias(objective, np.array([0.4, 0.5, -0.8]))


@pytest.mark.parametrize(
    "settings",
    [{"method": METHODS["particles"]}, {"method": METHODS["chain"]}, {"num_particles": 3}],
)
def test_a_guide_without_auxiliaries_has_its_own_density(settings):
    @ppl.model
    def plain():
        jax.lax.scan(
            lambda _, y: (None, sample("x", B(sigmoid(y)))), None, jnp.arange(1.0 * LENGTH)
        )

    target, drawn = vi.marginal(program(), plain(), **settings)
    assert set(target.latents) == set(drawn.latents) == {"x"}
    bounds = [vi.elbo(target, drawn), vi.elbo(program(), plain())]
    one, two = (ppl.enumerate(b).expect(lambda v: v) for b in bounds)
    assert float(one) == pytest.approx(float(two), abs=1e-12)


def test_a_kernel_that_is_not_invariant_is_found():
    @ppl.kernel
    def careless(trace):
        new = sample("new", B(jnp.full(LENGTH, 0.3)).to_event(1))
        return trace.with_choices({"a": new})

    target, _ = pair(vi.annealing(careless, [0.5, 1.0]))
    assert not ppl.check.equal(target, program()).passed


def test_methods_of_functions_of_parameters():
    """The objective is, at any parameters, that of the pair there; and it can be fitted."""
    params = {"th": jnp.array(0.4), "ph": jnp.array([0.5, -0.8])}
    parts = vi.marginal(
        lambda p: program(p["th"]),
        vi.guide(lambda p: guide(p["ph"]), params),
        lambda choices, p: reverse(choices["x"]),
        method=METHODS["particles"],
    )
    objective = vi.elbo(*parts)
    assert set(objective.params) == {"th", "ph"}
    there = {"th": jnp.array(-0.2), "ph": jnp.array([0.1, 0.3])}
    right = vi.elbo(*pair(METHODS["particles"], proposed=True, **there))
    assert ppl.check.equal(objective(there), right).passed
    assert not ppl.check.equal(objective(params), right).passed
    found = ppl.run(vi.fit(objective, num_steps=3), 0)
    assert np.all(np.isfinite(found.values))
    assert not np.allclose(found.params["th"], params["th"])


# --- Populations for `normalize` ------------------------------------------------------------------


@ppl.model
def other(th):
    """As `program`, with another observation."""

    def step(x, y):
        x = sample("x", B(sigmoid(th * x)))
        sample("y", dist.Normal(x * 2.0, 1.0), obs=y)
        return x, None

    jax.lax.scan(step, 1, jnp.array([0.1, 0.9]))


POPULATIONS = {
    "smc": lambda p: ppl.smc(p, 2, ess_threshold=1.0),
    "importance": lambda p: ppl.importance(p, 2),
    "annealed chain": lambda p: ppl.tempered_smc(
        p, 1, ppl.kernels.single_site(), temperatures=[0.5, 1.0]
    ),
}


@pytest.mark.parametrize("name", POPULATIONS)
def test_normalize_takes_populations(name):
    found = vi.normalize(program(), POPULATIONS[name](other(0.7)))
    assert ppl.check.equal(found, program()).passed
    value = ppl.enumerate(vi.evidence_bound(found)).expect(lambda v: v)
    assert value < np.log(ppl.enumerate(program()).total_mass)


def test_normalize_of_importance_is_that_of_a_target_and_a_number():
    one = vi.normalize(program(), other(0.7), num_particles=2)
    two = vi.normalize(program(), ppl.importance(other(0.7), 2))
    assert ppl.check.equal(vi.evidence_bound(one), vi.evidence_bound(two)).passed


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"method": 3}, ArgumentError, "conditional_smc"),
        ({"method": METHODS["chain"], "num_particles": 4}, ArgumentError, "of its own"),
        (
            {"method": ppl.kernels.conditional_smc(3, ancestor_sampling=True)},
            UnsupportedError,
            "ancestors",
        ),
        (
            {"method": ppl.kernels.conditional_smc(3, addresses=["a"])},
            UnsupportedError,
            "redraws all",
        ),
    ],
)
def test_marginal_refuses(settings, error, words):
    with pytest.raises(error, match=words):
        pair(**settings)


def test_annealing_refuses():
    with pytest.raises(ArgumentError, match="kernel"):
        vi.annealing(lambda trace: trace, [1.0])
    for wrong in ([], [0.5], [0.6, 0.4, 1.0], [0.0, 1.0], 1.0, "steep"):
        with pytest.raises(ArgumentError, match="increasing"):
            vi.annealing(ppl.kernels.single_site(), wrong)


def test_normalize_refuses():
    @ppl.model
    def elsewhere():
        sample("z", B(0.5))

    with pytest.raises(ArgumentError, match="already"):
        vi.normalize(program(), ppl.importance(other(0.7), 2), num_particles=3)
    with pytest.raises(AddressError, match="choices of z"):
        vi.normalize(program(), ppl.importance(elsewhere(), 2))
    with pytest.raises(AddressError, match="no latents"):
        vi.normalize(program(), ppl.smc(other(0.7), 2, trajectories=False))
    with pytest.raises(ArgumentError, match="num_particles"):
        vi.normalize(program(), other(0.7))
