"""`extract`: a population method is right if its collapse denotes the program's measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError
from ppl.semantics.extract import collapse, is_weighted
from tests import zoo

B, C, sample = dist.Bernoulli, dist.Categorical, ppl.sample

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
P, E, Y = RNG.dirichlet(np.ones(2), 2), RNG.dirichlet(np.ones(3), 2), RNG.integers(0, 3, 3)


@ppl.model
def hmm(p, e, y):
    def step(z, y):
        z = sample("z", C(probs=p[z]))
        sample("y", C(probs=e[z]), obs=y)
        return z, None

    return lax.scan(step, 0, y)[0]


@ppl.model
def bootstrap(p, e, y, n, resample_weights=True):
    """Bootstrap SMC with multinomial resampling at every step, written out."""

    def step(carry, y):
        z, logw, evidence = carry
        z = z[sample("ancestors", C(logits=logw).expand([n]))]
        z = jax.vmap(lambda z: sample("z", C(probs=p[z])))(z)
        logw = jnp.log(e[z, y])
        gain = jax.nn.logsumexp(logw) - jnp.log(n)
        return (z, logw, evidence + gain * resample_weights), None

    start = (jnp.zeros(n, int), jnp.zeros(n), jnp.zeros(()))
    (z, logw, evidence), _ = lax.scan(step, start, y)
    return ppl.Population(z, logw, evidence, {})


@pytest.mark.parametrize("particles", [1, 2, 3])
def test_particle_filters_denote_the_model(particles):
    data = (P, E, Y)
    found = ppl.enumerate(ppl.extract(bootstrap(*data, particles)))
    assert found.total_variation(ppl.enumerate(hmm(*data))) < 1e-12


def test_a_particle_filter_that_drops_the_evidence_is_found_out():
    found = ppl.enumerate(ppl.extract(bootstrap(P, E, Y, 2, resample_weights=False)))
    wanted = ppl.enumerate(hmm(P, E, Y))
    assert found.total_variation(wanted) > 0.1


@pytest.mark.parametrize("particles", [1, 2, 4])
def test_importance_sampling_denotes_the_model(particles):
    program = zoo.two_coins()
    found = ppl.enumerate(ppl.extract(ppl.importance(program, num_particles=particles)))
    assert found.total_variation(ppl.enumerate(program)) < 1e-12


def test_importance_sampling_with_a_proposal_denotes_the_model():
    def proposal():
        a = sample("a", B(0.6))
        sample("b", B(0.5 + 0.2 * a))

    q = ppl.importance(zoo.two_coins(), num_particles=2, proposal=ppl.model(proposal)())
    assert ppl.enumerate(ppl.extract(q)).total_variation(ppl.enumerate(zoo.two_coins())) < 1e-12


@ppl.model
def filters(weights, evidence, values):
    return ppl.Population(values, weights, evidence, {})


def test_a_population_is_its_weighted_particles_times_its_evidence():
    logs = jnp.log(jnp.array([1.0, 3.0, 0.0, 4.0])) + 800.0  # no sum of these is finite
    values = {"x": jnp.array([5, 6, 7, 5]), "v": jnp.array([[1.0], [2.0], [3.0], [1.0]])}
    found = ppl.enumerate(ppl.extract(filters(logs, jnp.log(0.25), values)))
    assert len(found) == 2
    assert found.mass({"x": 5, "v": np.ones(1)}) == pytest.approx(0.25 * 5 / 8, rel=1e-12)
    assert found.mass({"x": 6, "v": 2 * np.ones(1)}) == pytest.approx(0.25 * 3 / 8, rel=1e-12)


def test_a_population_without_weight_has_no_mass():
    nothing = jnp.full(3, -jnp.inf)
    found = ppl.enumerate(ppl.extract(filters(nothing, -jnp.inf, jnp.arange(3))))
    assert len(found) == 0

    def impossible():
        value = ppl.sample("c", B(0.5))
        ppl.factor("never", jnp.where(value < 2, -jnp.inf, 0.0))
        return value

    q = ppl.importance(ppl.model(impossible)(), num_particles=2)
    assert ppl.enumerate(ppl.extract(q)).total_mass == 0.0


def test_some_runs_may_lose_all_particles():
    """Two particles of a coin that must show heads: half of the mass, whatever the runs."""

    def model():
        a = sample("a", B(0.5))
        ppl.factor("heads", jnp.where(a == 1, 0.0, -jnp.inf))
        return a

    q = ppl.extract(ppl.importance(ppl.model(model)(), num_particles=2))
    found = ppl.enumerate(q)
    assert found.total_mass == pytest.approx(0.5, rel=1e-12)
    assert found.mass(1) == pytest.approx(0.5, rel=1e-12)


def test_weighted_and_traced_values_are_weighed():
    wanted = ppl.enumerate(zoo.two_coins())
    for transformer in (ppl.weighted, ppl.traced):
        q = transformer(zoo.two_coins())
        assert is_weighted(q)
        assert ppl.enumerate(q).total_mass == pytest.approx(1.0, rel=1e-12)
        assert ppl.enumerate(ppl.extract(q)).total_variation(wanted) < 1e-12


def test_scores_of_the_program_itself_stay():
    @ppl.model
    def model():
        ppl.factor("mine", jnp.log(0.5))
        return ppl.Weighted(sample("a", B(0.25)), jnp.log(3.0))

    assert ppl.enumerate(ppl.extract(model())).mass(1) == pytest.approx(0.375, rel=1e-12)


def test_collapse_is_the_statement_form():
    @ppl.model
    def nested():
        a = sample("a", B(0.25))
        return collapse(ppl.Weighted(a, jnp.where(a == 1, jnp.log(2.0), 0.0)))

    found = ppl.enumerate(nested())
    assert found.mass(0) == pytest.approx(0.75, rel=1e-12)
    assert found.mass(1) == pytest.approx(0.5, rel=1e-12)


def test_programs_without_weights_are_refused():
    assert not is_weighted(zoo.two_coins())
    with pytest.raises(ArgumentError, match=r"extract got two_coins, which returns tuple; needs"):
        ppl.extract(zoo.two_coins())
    with pytest.raises(ArgumentError, match="extract"):
        ppl.extract(lambda: 0)
