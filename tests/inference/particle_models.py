"""Small finite programs on which particles may go wrong, each in another way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

import ppl
import ppl.distributions as dist

B, sample = dist.Bernoulli, ppl.sample


def p(*table):
    return jnp.array(table)


def observe(y, probability):
    sample("y", B(probability), obs=y)


@ppl.model
def hidden_markov(y):
    """A state-space model: the next state is all that a past must go with."""

    def step(x, y):
        x = sample("x", dist.Categorical(p([0.8, 0.2], [0.3, 0.7])[x]))
        observe(y, p(0.2, 0.7)[x])
        return x, x

    return lax.scan(step, 0, y)[1]


@ppl.model
def parameter(y):
    """What is drawn before the loop is never forgotten."""
    t = sample("t", B(0.3))

    def step(x, y):
        x = sample("x", B(p([0.2, 0.9], [0.6, 0.3])[t, x]))
        observe(y, p(0.2, 0.7)[x])
        return x, x

    return t, lax.scan(step, 0, y)[1]


@ppl.model
def counting(y):
    """The state sums up all draws, and is read after the loop."""

    def step(s, y):
        s = (s + sample("x", B(p(0.2, 0.5, 0.9)[s]))) % 3
        observe(y, p(0.2, 0.7, 0.4)[s])
        return s, s

    s, states = lax.scan(step, 0, y)
    z = sample("z", B(p(0.1, 0.6, 0.3)[s]))
    ppl.factor("f", -0.7 * z * s)
    return states, z


@ppl.model
def second_order(y):
    """Two steps are remembered."""

    def step(state, y):
        a, b = state
        x = sample("x", B(p([0.2, 0.5], [0.9, 0.4])[a, b]))
        observe(y, p(0.2, 0.7)[x])
        return (b, x), x

    return lax.scan(step, (0, 0), y)[1]


@ppl.model
def backwards(y):
    """From the last iteration to the first, with scores before and between the draws."""

    def step(x, y):
        ppl.factor("before", -0.5 * x)
        x = sample("x", B(p(0.2, 0.6)[x]))
        observe(y, p(0.2, 0.7)[x])
        z = sample("z", B(p(0.5, 0.1)[x]))
        ppl.factor("after", -0.3 * z)
        return x, (x, z)

    return lax.scan(step, 0, y, reverse=True)[1]


@ppl.model
def nested(y):
    """A loop in a loop; the outer one goes on from where the inner one ends."""

    def outer(s, y):
        u = sample("u", B(p(0.3, 0.8)[s]))

        def inner(x, y):
            x = sample("x", B(p(0.2, 0.6)[x]))
            observe(y, p([0.2, 0.7], [0.6, 0.1])[u, x])
            return x, x

        x, xs = lax.scan(inner, s, y)
        ppl.factor("f", -0.4 * x * u)
        return x, (u, xs)

    return lax.scan(outer, 0, y)[1]


@ppl.model
def branching(y):
    """A site that comes and goes with a draw of its own iteration."""

    def step(x, y):
        x = sample("x", B(p(0.4, 0.6)[x]))
        k = lax.cond(x == 1, lambda: sample("k", B(0.3)) + 1, lambda: 0)
        observe(y, p(0.2, 0.7, 0.4)[k])
        return (x + (k > 1)) % 2, k

    return lax.scan(step, 0, y)[1]


@ppl.model
def remembered(y):
    """The past decides which sites the future has: most pasts do not go with it."""

    def step(s, y):
        m = lax.cond(s == 1, lambda: sample("m", B(0.3)), lambda: 1)
        ppl.factor("f", -0.3 * m)
        x = sample("x", B(0.4))
        observe(y, p([0.2, 0.7], [0.4, 0.5])[x, m])
        return (s + x) % 2, x

    return lax.scan(step, 0, y)[1]


@ppl.model
def straight():
    """No loop; some runs are impossible, some weigh nothing."""
    a = sample("a", B(0.3))
    ppl.factor("f", -0.7 * a)
    b = sample("b", dist.Categorical(p([0.2, 0.5, 0.3], [0.1, 0.1, 0.8])[a]))
    ppl.factor("g", jnp.where((a == 1) & (b == 1), -jnp.inf, 0.2 * b))
    c = sample("c", B(p([0.2, 0.5, 0.3], [0.1, 0.0, 0.8])[a, b]))
    observe(1, p(0.2, 0.9)[c])
    return a, b, c, sample("d", B(p(0.2, 0.9)[c]))


@ppl.model
def plates(y):
    with ppl.plate("two", 2):
        t = sample("t", B(0.4))
        ppl.factor("f", -0.3 * t)

    def step(x, y):
        with ppl.plate("two", 2):
            x = sample("x", B(p([0.2, 0.6], [0.5, 0.5])[t, x]))
            observe(y, p(0.2, 0.7)[x])
        return x, x

    return lax.scan(step, jnp.zeros(2, int), y)[1]


@ppl.model
def lanes(y):
    """A loop under `vmap`."""

    def chain(y):
        def step(x, y):
            x = sample("x", B(p(0.2, 0.6)[x]))
            observe(y, p(0.2, 0.7)[x])
            return x, x

        return lax.scan(step, 0, y)[1]

    return jax.vmap(chain)(y)


@ppl.model
def rows(y):
    """The loop runs over draws that were made before it, and weighed."""
    with ppl.plate("n", 2):
        e = sample("e", B(0.3))
    ppl.factor("f", 0.4 * e[0])

    def step(x, now):
        y, e = now
        x = sample("x", B(p([0.2, 0.6], [0.4, 0.9])[e, x]))
        observe(y, p(0.2, 0.7)[x])
        return x, x

    return lax.scan(step, 0, (y, e))[1]


THREE, TWO, SQUARE = p(0, 1, 1), p(1, 0), p([0, 1], [1, 1])

#: How each is made, by name.
CASES = {
    "hidden Markov": lambda: hidden_markov(THREE),
    "parameter": lambda: parameter(THREE),
    "counting": lambda: counting(THREE),
    "second order": lambda: second_order(THREE),
    "backwards": lambda: backwards(TWO),
    "nested": lambda: nested(p([1], [0])),
    "branching": lambda: branching(THREE),
    "remembered": lambda: remembered(THREE),
    "straight": straight,
    "scaled": lambda: ppl.scale(parameter(TWO), 0.5),
    "plates": lambda: plates(SQUARE),
    "lanes": lambda: lanes(SQUARE),
    "rows": lambda: rows(TWO),
}
