"""The laws of programs and of their representations: exact, on random programs.

Programs form a monad: `unit` returns a value, `bound` runs a program and goes on with its value.
Enumeration maps it to finite measures, and every representation does so through its own meaning.
Every law here is an equation between measures, or between programs as measures.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.check import programs
from ppl.semantics.suspension import suspend
from ppl.staging import stage
from tests.laws import applied, apply_to, bound, continuations, digest, law, same, small, tiny, unit

pytestmark = pytest.mark.usefixtures("x64")


# --- The monad of programs ----------------------------------------------------------------------


@ppl.model
def bound_twice(p, f, g):
    with ppl.scope("first"):
        x = p()
    with ppl.scope("then"):
        with ppl.scope("first"):
            y = f(digest(x))
        with ppl.scope("then"):
            return g(digest(y))


@law
@hypothesis.given(small, continuations, st.data())
def test_unit_before_a_continuation_is_the_continuation(program, f, data):
    points = ppl.enumerate(program).points
    x = jax.tree.map(jnp.asarray, data.draw(st.sampled_from(points)))
    same(bound(unit(x), f), applied(f, x))
    same(ppl.FiniteMeasure.of([x], [1.0]).bind(apply_to(f)), apply_to(f)(x))


@law
@hypothesis.given(small)
def test_unit_after_a_program_is_the_program(program):
    @ppl.model
    def returned(p):
        with ppl.scope("first"):
            x = p()
        return unit(x)

    measure = ppl.enumerate(program)
    same(returned(program), measure)
    same(measure.bind(lambda x: ppl.FiniteMeasure.of([x], [1.0])), measure)
    same(measure.bind(lambda x: unit(jax.tree.map(jnp.asarray, x))), measure)


@law
@hypothesis.given(small, continuations, continuations)
def test_bind_is_associative(program, f, g):
    left = bound(bound(program, f), g)
    same(left, bound_twice(program, f, g))
    m, g_after = ppl.enumerate(program), apply_to(g)
    one = m.bind(apply_to(f)).bind(g_after)
    same(one, m.bind(lambda x: apply_to(f)(x).bind(g_after)))
    same(one, left)


@law
@hypothesis.given(small)
def test_a_program_inside_another_means_what_it_means(program):
    once = stage(lambda p: p(), (program,), name="inlined")
    same(once, program)
    same(stage(lambda p: p(), (once,), name="inlined"), program)


@law
@hypothesis.given(tiny, tiny)
def test_independent_programs_commute(p, q):
    @ppl.model
    def forth(p, q):
        with ppl.scope("p"):
            x = p()
        with ppl.scope("q"):
            return x, q()

    @ppl.model
    def back(p, q):
        with ppl.scope("q"):
            y = q()
        with ppl.scope("p"):
            return p(), y

    both = ppl.enumerate(forth(p, q))
    same(both, back(p, q))
    same(both, ppl.enumerate(p).product(ppl.enumerate(q)))


@law
@hypothesis.given(small, st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_scores_multiply_and_commute(program, weights):
    table = jnp.array(weights).reshape(2, 3)

    def weighed(*factors):
        @ppl.model
        def run(p, table):
            with ppl.scope("p"):
                x = p()
            t = digest(x)
            for i, rows in enumerate(factors):
                ppl.factor(f"f{i}", sum(table[r][t] for r in rows))
            return x

        return run(program, table)

    measure = ppl.enumerate(weighed((0,), (1,)))
    same(measure, weighed((1,), (0,)))
    same(measure, weighed((0, 1)))
    plain = ppl.enumerate(program)
    log_weight = np.asarray(table).sum(0)[[int(digest(x)) for x in plain.points]]
    same(measure, ppl.FiniteMeasure(plain.values, plain.log_masses + log_weight))


# --- Representations ----------------------------------------------------------------------------


@ppl.model
def _resampled(program):
    pop = program()
    n = pop.num_particles
    nothing = jnp.all(pop.log_weights == -jnp.inf)
    logits = jnp.where(nothing, 0.0, pop.log_weights)
    with ppl.scope("resample"), ppl.plate("particle", n):
        ancestors = ppl.sample("ancestor", dist.Categorical(logits=logits))
    values = jax.tree.map(lambda x: x[ancestors], pop.values)
    return ppl.Population(values, jnp.zeros(n), pop.log_evidence, {})


def resampled(program):
    return ppl.extract(_resampled(ppl.importance(program, num_particles=2)))


def populated(program):
    return ppl.extract(ppl.importance(program, num_particles=2))


def suspended(program):
    return suspend(program).finish()


REPRESENTATIONS = {
    "weighted": lambda p: ppl.extract(ppl.weighted(p)),
    "traced": lambda p: ppl.extract(ppl.traced(p)),
    "population": populated,
    "resampled population": resampled,
    "suspended": suspended,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_meaning_is_a_monad_morphism(name):
    """m(return x) is the point mass at x; m(bind a f) is m(a) followed by m(f x)."""
    through = REPRESENTATIONS[name]

    @functools.cache
    def after(f, t):
        return ppl.enumerate(through(applied(f, jnp.array(t))))

    @law
    @hypothesis.given(tiny, continuations, st.data())
    def check(program, f, data):
        measure = ppl.enumerate(through(program))
        same(measure, program)
        x = data.draw(st.sampled_from(measure.points))
        same(through(unit(jax.tree.map(jnp.asarray, x))), ppl.FiniteMeasure.of([x], [1.0]))
        same(through(bound(program, f)), measure.bind(lambda x: after(f, int(digest(x)))))

    check()


@pytest.mark.slow
@law
@hypothesis.given(tiny, continuations)
def test_populations_are_bound_particle_by_particle(program, f):
    """The population's own bind: each particle goes on for itself, and weights multiply."""

    @ppl.model
    def going_on(program, f):
        pop = program()
        more = jax.vmap(lambda x: ppl.weighted(stage(_go_on, (f, x)))())(pop.values)
        weights = pop.log_weights + more.log_weight
        evidence = jax.nn.logsumexp(weights) - jax.nn.logsumexp(pop.log_weights)
        nothing = jnp.all(weights == -jnp.inf)
        evidence = jnp.where(nothing, -jnp.inf, pop.log_evidence + evidence)
        return ppl.Population(more.value, weights, evidence, {})

    population = ppl.importance(program, num_particles=2)
    same(ppl.extract(going_on(population, f)), bound(program, f))


def _go_on(f, x):
    with ppl.scope("then"):
        return f(digest(x))


# --- Suspension and hoisting --------------------------------------------------------------------

scoring = programs(size=6, max_worlds=16, observations=True)


@law
@hypothesis.given(scoring)
def test_advancing_does_not_change_what_finishes(program):
    measure, s = ppl.enumerate(program), suspend(program)
    same(s.finish(), measure)
    for _ in s.steps:
        s = s.advance()
        same(s.finish(), measure)
    assert s.advance() is s


TRANSFORMERS = [
    populated,
    resampled,
    REPRESENTATIONS["weighted"],
    REPRESENTATIONS["traced"],
    suspended,
]


@pytest.mark.slow
@law
@hypothesis.given(
    programs(size=5, max_worlds=8, observations=True), st.sampled_from(TRANSFORMERS), st.data()
)
def test_a_valid_transformer_stays_valid_when_hoisted(program, transformer, data):
    """After any number of advances, and before one."""
    s = suspend(program)
    before = data.draw(st.integers(0, len(s.steps)))
    for _ in range(before):
        s = s.advance()
    s = s.hoist_first(transformer)
    same(s.finish(), program)
    same(s.advance().finish(), program)


@law
@hypothesis.given(scoring)
def test_an_invalid_transformer_is_found_out_when_hoisted(program):
    @ppl.model
    def doubled(p):
        ppl.factor("twice", jnp.log(2.0))
        return p()

    measure = ppl.enumerate(program)
    twice = ppl.enumerate(suspend(program).advance().hoist_first(doubled).finish())
    assert twice.total_variation(measure) == pytest.approx(measure.total_mass / 2, rel=1e-10)
