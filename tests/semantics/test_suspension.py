"""`suspend`: the pieces of a program are the program, wherever it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests import zoo

MOVES = np.array([[0.7, 0.3], [0.2, 0.8]])
LIT = np.array([0.1, 0.8])
SEEN = np.array([1, 0, 1])


@ppl.model
def chain(seen, reverse=False):
    """Score before, inside and after a loop; return the history, and what depends on data only."""
    first = ppl.sample("first", dist.Bernoulli(0.3))
    ppl.factor("tilt", jnp.where(first == 1, -1.0, 0.0))
    offset = jnp.sum(seen)

    def step(state, lit):
        state = ppl.sample("state", dist.Bernoulli(jnp.asarray(MOVES)[state, 1]))
        ppl.sample("lit", dist.Bernoulli(jnp.asarray(LIT)[state]), obs=lit)
        return state, 2 * state

    last, history = jax.lax.scan(step, first, seen, reverse=reverse)
    after = ppl.sample("after", dist.Bernoulli(jnp.where(last == 1, 0.6, 0.2)))
    ppl.factor("end", -0.5 * after)
    return {"history": history, "after": after, "offset": offset}


@ppl.model
def no_scores():
    a = ppl.sample("a", dist.Bernoulli(0.25))
    return a, ppl.sample("b", dist.Bernoulli(0.5 + 0.25 * a))


@ppl.model
def score_in_a_branch():
    a = ppl.sample("a", dist.Bernoulli(0.25))

    def yes():
        b = ppl.sample("b", dist.Bernoulli(0.5))
        ppl.factor("f", -1.0 * b)
        return b

    jax.lax.cond(a == 1, yes, lambda: jnp.zeros((), int))
    ppl.factor("g", -2.0 * a)
    return a


CASES = {
    # The number of cuts, less the one that the first piece ends with.
    "two coins": (zoo.two_coins, (), 0),
    "chain": (chain, (SEEN,), 4),
    "reversed": (chain, (SEEN, True), 4),
    "no scores": (no_scores, (), 0),
    "branch": (score_in_a_branch, (), 1),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_advancing_changes_nothing(name):
    model, args, steps = CASES[name]
    program = model(*args)
    measure = ppl.enumerate(program)
    suspended = ppl.suspend(program)
    assert len(suspended.steps) == steps
    for left in range(steps, -1, -1):
        assert len(suspended.steps) == left
        found = ppl.enumerate(suspended.finish())
        assert found.total_variation(measure) < 1e-10 * measure.total_mass
        suspended = suspended.advance()
    assert suspended.advance() is suspended


@pytest.mark.usefixtures("x64")
def test_the_first_piece_holds_the_scores_so_far():
    # P(first = 1) = 0.3 weighs exp(-1): the mass is 0.7 + 0.3 / e.
    first = ppl.suspend(chain(SEEN)).first
    assert abs(ppl.enumerate(first).total_mass - (0.7 + 0.3 * np.exp(-1))) < 1e-12


@pytest.mark.usefixtures("x64")
def test_a_transformer_of_the_first_piece_may_be_hoisted():
    program = chain(SEEN)
    measure = ppl.enumerate(program)

    def resampled(p):
        return ppl.extract(ppl.importance(p, num_particles=2))

    for advances in range(5):
        suspended = ppl.suspend(program)
        for _ in range(advances):
            suspended = suspended.advance()
        found = ppl.enumerate(suspended.hoist_first(resampled).finish())
        assert found.total_variation(measure) < 1e-10 * measure.total_mass


@pytest.mark.usefixtures("x64")
def test_a_wrong_transformer_is_seen_after_finishing():
    program = chain(SEEN)
    measure = ppl.enumerate(program)
    broken = ppl.suspend(program).hoist_first(lambda p: ppl.mask(p, False))
    assert ppl.enumerate(broken.finish()).total_variation(measure) > 0.01 * measure.total_mass


def test_what_is_not_a_program_is_refused():
    with pytest.raises(ppl.PPLError, match=r"suspend got Model; needs a Program"):
        ppl.suspend(chain)
