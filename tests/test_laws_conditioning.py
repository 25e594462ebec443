"""The laws of conditioning, of intervening and of the handlers: exact, on random programs."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.check import programs
from ppl.semantics.density import joint
from ppl.semantics.kernel import started
from ppl.staging import stage
from tests.laws import bound, computed, continuations, law, same, small

pytestmark = pytest.mark.usefixtures("x64")


# --- Conditioning -------------------------------------------------------------------------------


def states(program):
    """The measure on what was chosen, where it exists, and what was returned."""

    def run(p):
        trace = started(p)
        return (*trace.canonical, trace.value)

    return ppl.enumerate(stage(run, (program,), name="states"))


def certain(program):
    """Addresses of the latent sites that stand in no branch."""
    return [a for a in program.latents if not program.sites[a].conditional]


def a_run(data, program):
    """The choices of some run of positive weight."""
    choices = data.draw(st.sampled_from([point[0] for point in states(program).points]))
    return {a: jnp.asarray(x) for a, x in choices.items()}


@law
@hypothesis.given(programs(size=6, latents=(2, 5), max_worlds=32), st.data())
def test_conditioning_step_by_step_is_conditioning_at_once(program, data):
    choices = a_run(data, program)
    names = data.draw(st.permutations(program.latents))
    cut = data.draw(st.integers(0, len(names)))
    one, two = ({a: choices[a] for a in part} for part in (names[:cut], names[cut:]))
    stepwise = ppl.condition(ppl.condition(program, one), two)
    same(stepwise, ppl.condition(program, {**two, **one}))
    same(stepwise, ppl.condition(ppl.condition(program, two), one))


@law
@hypothesis.given(small, st.data())
def test_conditioning_restricts_the_measure_on_choices(program, data):
    choices = a_run(data, program)
    names = data.draw(st.lists(st.sampled_from(program.latents), unique=True))

    def agrees(point):
        found, present, _ = point
        flags = []
        for a in names:
            equal = found[a] == choices[a]
            if a in present:  # an observation that is not reached weighs nothing
                flag = present[a]
                equal = equal | ~flag.reshape(flag.shape + (1,) * (equal.ndim - flag.ndim))
            flags.append(jnp.all(equal))
        return jnp.all(jnp.array(flags, bool))

    # Where a site is not reached its value is free; so compare what is returned.
    conditioned = ppl.condition(program, {a: choices[a] for a in names})
    same(conditioned, states(program).condition(agrees).pushforward(lambda point: point[2]))


@law
@hypothesis.given(small, continuations)
def test_a_posterior_can_be_the_prior_of_what_follows(program, f):
    """Posterior and evidence of the first model, put before the second: the joint posterior."""
    measure = ppl.enumerate(program)
    posterior = measure.normalize()

    @ppl.model
    def drawn(log_masses, values):
        i = ppl.sample("point", dist.Categorical(logits=log_masses))
        return jax.tree.map(lambda x: jnp.asarray(x)[i], values)

    second = ppl.enumerate(bound(drawn(posterior.log_masses, posterior.values), f))
    both = ppl.enumerate(bound(program, f))
    rescaled = ppl.FiniteMeasure(second.values, second.log_masses + measure.log_evidence)
    same(rescaled, both)
    if both.total_mass:
        same(second.normalize(), both.normalize())


@law
@hypothesis.given(small, st.data())
def test_conditioning_disintegrates(program, data):
    """Posteriors given a site's value, mixed over that value's marginal, are the joint."""
    hypothesis.assume(certain(program))
    address = data.draw(st.sampled_from(certain(program)))
    whole = states(program).pushforward(lambda point: (point[0][address], point[2]))

    def given(value):
        fibre = ppl.enumerate(ppl.condition(program, {address: value}))
        return fibre.normalize().pushforward(lambda result: (jnp.asarray(value), result))

    same(whole.marginal(0).bind(given), whole)
    for value in whole.marginal(0).points:
        evidence = ppl.enumerate(ppl.condition(program, {address: value})).total_mass
        assert evidence == pytest.approx(whole.marginal(0).mass(value), rel=1e-10)


# --- Intervening --------------------------------------------------------------------------------


@ppl.model
def network(parents, tables):
    """Bits, each with a table of probabilities given its parents, in topological order."""
    bits = []
    for j, (above, table) in enumerate(zip(parents, tables, strict=True)):
        bits.append(ppl.sample(f"x{j}", dist.Bernoulli(table[tuple(bits[i] for i in above)])))
    return tuple(bits)


@st.composite
def networks(draw):
    n = draw(st.integers(3, 4))
    parents = tuple(tuple(i for i in range(j) if draw(st.booleans())) for j in range(n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tables = tuple(rng.uniform(0.1, 0.9, (2,) * len(above)) for above in parents)
    return parents, tables, *draw(st.permutations(range(n)))[:2]


def ancestors(parents, node):
    return {node}.union(*(ancestors(parents, i) for i in parents[node]))


def back_door(parents, x, y):
    """Whether a path that begins with an arrow into x is open.

    Nothing is given, so a path is open if no arrows meet on it: it goes up from x to a common
    ancestor, and down from there to y. Arrows out of x are cut: they begin no such path.
    """
    cut = tuple(tuple(i for i in above if i != x) for above in parents)
    return bool(ancestors(cut, x) & ancestors(cut, y))


def seen_and_done(parents, tables, x, y):
    program = network(parents, tables)
    measures = (act(program, {f"x{x}": jnp.array(1)}) for act in (ppl.condition, ppl.do))
    return (ppl.enumerate(p).normalize().marginal(y) for p in measures)


@hypothesis.settings(max_examples=100, database=None)
@hypothesis.given(networks())
def test_seeing_differs_from_doing_where_a_back_door_is_open(case):
    parents, _, x, y = case
    seen, done = seen_and_done(*case)
    if back_door(parents, x, y):
        assert seen.total_variation(done) > 1e-7
    else:
        same(seen, done)


def test_seeing_and_doing_with_and_without_a_common_cause():
    """P(y | x = 1) and P(y | do(x = 1)) by hand: u -> x, u -> y, x -> y, all fair or 0.8 / 0.2."""
    u, x = np.array(0.5), np.array([0.2, 0.8])
    y = np.array([[0.1, 0.5], [0.3, 0.9]])  # by u, then by x
    seen, done = seen_and_done(((), (0,), (0, 1)), (u, x, y), 1, 2)
    assert seen.mass(1) == pytest.approx(0.2 * 0.5 + 0.8 * 0.9, rel=1e-12)
    assert done.mass(1) == pytest.approx(0.5 * 0.5 + 0.5 * 0.9, rel=1e-12)
    seen, done = seen_and_done(((), (), (0, 1)), (u, u, y), 1, 2)
    same(seen, done)


# --- Handlers -----------------------------------------------------------------------------------


@law
@hypothesis.given(small)
def test_masking_every_score_leaves_the_prior(program):
    free = ppl.enumerate(ppl.mask(program, False))
    assert free.total_mass == pytest.approx(1.0, rel=1e-10)
    same(free, ppl.enumerate(ppl.weighted(program)).marginal("value"))
    scored = [site.address for site in program.sites if site.kind in ("observed", "factor")]
    same(free, ppl.scale(program, 0.0, scored))
    same(ppl.mask(program, True), program)


@law
@hypothesis.given(small, st.floats(0, 3), st.floats(0, 3))
def test_scales_multiply(program, a, b):
    same(ppl.scale(program, 1.0), program)
    scored = [site.address for site in program.sites if site.kind in ("observed", "factor")]
    both = ppl.enumerate(ppl.scale(ppl.scale(program, a, scored), b, scored))
    same(both, ppl.scale(program, a * b, scored))
    weighted = ppl.enumerate(ppl.weighted(program))
    runs = weighted.values
    powers = weighted.log_masses + a * b * runs.log_weight if a * b else weighted.log_masses
    same(both, ppl.FiniteMeasure(runs, powers).marginal("value"))


@law
@hypothesis.given(small, st.data())
def test_replaying_a_run_gives_its_value_and_its_weight(program, data):
    choices = a_run(data, program)

    def weights(trace):
        return trace.value, trace.log_weight, trace.log_density

    value, weight, density = computed(lambda p, c: weights(ppl.trace_of(p, c)), program, choices)
    same(ppl.replay(program, choices), ppl.FiniteMeasure.of([value], [np.exp(weight)]))
    same(ppl.condition(program, choices), ppl.FiniteMeasure.of([value], [np.exp(density)]))
    same(ppl.do(program, choices), ppl.FiniteMeasure.of([value], [np.exp(weight)]))
    drawn = ppl.replay(program, choices)
    assert drawn.latents == program.latents


@law
@hypothesis.given(programs(size=6, max_worlds=32, observations=True), st.data())
def test_observing_what_was_set_free_gives_the_program_back(program, data):
    names = [a for a in program.observed if not program.sites[a].conditional]
    hypothesis.assume(names)

    def values(p, choices):
        sites = joint(p, choices).sites
        return {a: sites[a].value.value for a in names}

    seen = computed(values, program, a_run(data, program))
    free = ppl.unobserve(program, names)
    assert set(names) <= set(free.latents)
    same(ppl.condition(free, seen), program)
