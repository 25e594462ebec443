"""What the tests of the laws share: comparison of measures, programs that go on from a value."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
from ppl.staging import stage

law = hypothesis.settings(max_examples=50, database=None)
small = ppl.check.programs(size=6, max_worlds=32)
tiny = ppl.check.programs(size=5, max_worlds=8)


def same(one, two, tolerance=1e-10):
    """Two programs or measures agree, relative to the larger mass."""
    one, two = (ppl.enumerate(x) if isinstance(x, ppl.Program) else x for x in (one, two))
    scale = max(one.total_mass, two.total_mass)
    assert one.total_variation(two) <= tolerance * scale, f"{one}\n{two}"


def computed(fun, *args):
    """What a function without draws gives. Enumerating compiles less than JAX does."""
    (point,) = ppl.enumerate(stage(fun, args, name="computed")).points
    return point


# --- What follows -------------------------------------------------------------------------------

# What goes on with a value reads it through its digest, one of three numbers.


def digest(value):
    parts = [jnp.sum(jnp.asarray(x)).astype(int) for x in jax.tree.leaves(value)]
    return functools.reduce(jnp.add, parts, jnp.zeros((), int)) % 3


def draws(t):
    return t, ppl.sample(
        "c", dist.Categorical(jnp.array([[0.5, 0.3, 0.2], [1, 0, 0], [0, 0.5, 0.5]])[t])
    )


def scores(t):
    ppl.factor("f", jnp.array([0.0, -1.0, -jnp.inf])[t])
    return t


def observes(t):
    c = ppl.sample("c", dist.Bernoulli(jnp.array([0.1, 0.5, 0.9])[t]))
    ppl.sample("y", dist.Bernoulli(jnp.array([0.2, 0.7])[c]), obs=1)
    return c + t


def branches(t):
    def draw(t):
        return ppl.sample("c", dist.Bernoulli(0.3)) + t

    return jax.lax.cond(t == 0, draw, lambda t: t, t)


def loops(t):
    def step(t, _):
        t = (t + ppl.sample("c", dist.Bernoulli(0.4))) % 3
        ppl.factor("f", -0.5 * t)
        return t, t

    return jax.lax.scan(step, t, None, length=2)[1]


def returns(t):
    return t


continuations = st.sampled_from([draws, scores, observes, branches, loops, returns])


@ppl.model
def unit(x):
    return x


@ppl.model
def applied(f, x):
    return f(digest(x))


@ppl.model
def bound(p, f):
    with ppl.scope("first"):
        x = p()
    with ppl.scope("then"):
        return f(digest(x))


@functools.cache
def _applied(f, t):
    return ppl.enumerate(applied(f, jnp.array(t)))


def apply_to(f):
    """The continuation as a kernel from values to finite measures."""
    return lambda x: _applied(f, int(digest(x)))
