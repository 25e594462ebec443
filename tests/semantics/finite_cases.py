"""Finite models under each control-flow construct, each beside plain Python that walks its runs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist
from tests.semantics import walks

B, C, sample, factor = dist.Bernoulli, dist.Categorical, ppl.sample, ppl.factor
LOG2 = math.log(2.0)
P3 = [0.2, 0.5, 0.3]


@dataclasses.dataclass(frozen=True)
class Case:
    """A model without arguments, and the plain Python that says what it means."""

    model: Callable[[], Any]
    ref: Callable[[walks.Walk], Any]


CASES: dict[str, Case] = {}


def case(make: Callable[[], Any]) -> Callable[[], Any]:
    CASES[make.__name__] = Case(*make())
    return make


# --- One construct ------------------------------------------------------------------------------


@case
def jit_in_two_scopes():
    @jax.jit
    def helper(x):
        z = sample("z", B(0.2 + 0.3 * x))
        factor("w", -z * x * LOG2)
        return z + x

    def model():
        m = sample("m", B(0.4))
        with ppl.scope("a"):
            a = helper(m)
        with ppl.scope("b"):
            return helper(a), m

    def ref(w):
        x = m = w.draw("m", 0.4)
        for _ in "ab":
            z = w.draw("z", 0.2 + 0.3 * x)
            w.score(-z * x * LOG2)
            x = z + x
        return x, m

    return model, ref


@case
def vmap_with_axes_and_events():
    """in_axes 1, None and 0; outputs along 1; lanes, event and categories of one size."""
    table = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.4, 0.0]])

    def model():
        def lane(probs, shared, weight):
            z = sample("z", C(probs=probs))
            s = sample("s", B(shared))
            factor("f", weight * z)
            return jnp.stack([z, s, z + s])

        weights = jnp.array([0.1, -0.2, 0.3])
        return jax.vmap(lane, in_axes=(1, None, 0), out_axes=1)(table.T, 0.3, weights)

    def ref(w):
        out = np.zeros((3, 3))
        z = [w.draw("z", table[i]) for i in range(3)]
        s = [w.draw("s", 0.3) for _ in range(3)]
        for i, weight in enumerate((0.1, -0.2, 0.3)):
            w.score(weight * z[i])
            out[:, i] = z[i], s[i], z[i] + s[i]
        return out

    return model, ref


@case
def vmap_that_maps_nothing():
    def model():
        return jax.vmap(lambda _: sample("x", B(0.3)), in_axes=None, axis_size=3)(0.0)

    return model, lambda w: np.array([w.draw("x", 0.3) for _ in range(3)])


@case
def nested_vmap_partly_mapped():
    def model():
        def outer(a):
            w = sample("w", B(a))

            def inner(b):
                x = sample("x", B(b))
                u = sample("u", B(0.2 + 0.5 * w))
                factor("f", jnp.where(x == u, 0.0, -b))
                return x + 2 * u

            return jax.vmap(inner)(jnp.array([0.3, 0.8])).sum() + 10 * w

        return jax.vmap(outer)(jnp.array([0.4, 0.6]))

    def ref(t):
        out = []
        for a in (0.4, 0.6):
            w = t.draw("w", a)
            total = 10 * w
            for b in (0.3, 0.8):
                x, u = t.draw("x", b), t.draw("u", 0.2 + 0.5 * w)
                t.score(0.0 if x == u else -b)
                total += x + 2 * u
            out.append(total)
        return np.array(out)

    return model, ref


def _ref_chain(w, steps, reverse=False):
    c, ys = 0, [0.0] * steps
    for i in reversed(range(steps)) if reverse else range(steps):
        z = w.draw("z", 0.3 + 0.1 * i if c == 0 else 0.8)
        w.score(-0.2 * i * z)
        c, ys[i] = z, c + 2 * z
    return c, ys


def _chain(steps, reverse=False):
    def step(c, i):
        z = sample("z", B(jnp.where(c == 0, 0.3 + 0.1 * i, 0.8)))
        factor("f", -0.2 * i * z)
        return z, c + 2 * z

    start = jnp.zeros((), int)
    return lax.scan(step, start, jnp.arange(steps), reverse=reverse, unroll=2)


@case
def scan_with_outputs():
    return lambda: [_chain(4)[0], _chain_outputs(4)], lambda w: _both_chains(w, 4)


def _chain_outputs(steps):
    with ppl.scope("second"):
        return _chain(steps)[1]


def _both_chains(w, steps):
    return [_ref_chain(w, steps)[0], np.array(_ref_chain(w, steps)[1])]


@case
def scan_without_outputs():
    return lambda: _chain(5)[0], lambda w: _ref_chain(w, 5)[0]


@case
def scan_reversed():
    def ref(w):
        c, ys = _ref_chain(w, 4, reverse=True)
        return c, np.array(ys)

    return lambda: _chain(4, reverse=True), ref


@case
def scan_empty_with_outputs():
    def model():
        a = sample("a", B(0.3))
        return lax.scan(lambda c, _: (c, sample("x", B(0.5))), a, None, length=0)

    return model, lambda w: (w.draw("a", 0.3), np.zeros(0))


@case
def scan_over_drawn_inputs_with_drawn_constants():
    """Inputs and constants differ between worlds; an output nobody reads; a carry nobody reads."""

    def model():
        probs = 0.2 + 0.3 * jax.vmap(lambda _: sample("p", B(0.5)))(jnp.zeros(3))
        k = sample("k", C(probs=jnp.array(P3)))

        def step(c, p):
            z = sample("z", B(p))
            return (c[0] + z * k, c[1] * 2 + z), (z, c[0])

        (total, _), (zs, _) = lax.scan(step, (k, jnp.zeros((), int)), probs)
        return total, zs[1]

    def ref(w):
        probs = [0.2 + 0.3 * w.draw("p", 0.5) for _ in range(3)]
        total = k = w.draw("k", P3)
        zs = [w.draw("z", p) for p in probs]
        return total + k * sum(zs), zs[1]

    return model, ref


@case
def scan_of_scan():
    def model():
        def outer(c, row):
            def inner(d, p):
                z = sample("z", B(p * jnp.where(d > 1, 0.5, 1.0)))
                return d + z, z

            d, zs = lax.scan(inner, c, row)
            factor("f", -0.3 * d)
            return d, zs

        return lax.scan(outer, sample("s", B(0.5)), jnp.array([[0.3, 0.6], [0.9, 0.2]]))

    def ref(w):
        c, out = w.draw("s", 0.5), []
        for row in ([0.3, 0.6], [0.9, 0.2]):
            zs = []
            for p in row:
                zs.append(w.draw("z", p * (0.5 if c > 1 else 1.0)))
                c += zs[-1]
            w.score(-0.3 * c)
            out.append(zs)
        return c, np.array(out)

    return model, ref


@case
def map_in_batches():
    def model():
        v = jnp.array([0.2, 0.7, 0.5, 0.9])
        a = lax.map(lambda p: sample("a", B(p)), v).sum()
        return a, lax.map(lambda p: sample("b", B(p)) * p, v, batch_size=2)

    def ref(w):
        v = [0.2, 0.7, 0.5, 0.9]
        return sum(w.draw("a", p) for p in v), np.array([w.draw("b", p) * p for p in v])

    return model, ref


@case
def cond_with_own_and_shared_addresses():
    def model():
        b = sample("b", B(0.3))

        def yes():
            z = sample("z", B(0.1))
            factor("f", -LOG2 * z)
            return z + 10

        def no():
            u = sample("u", C(probs=jnp.array(P3)))
            return u + sample("z", B(0.6))

        return lax.cond(b == 1, yes, no)

    def ref(w):
        if w.draw("b", 0.3):
            z = w.draw("z", 0.1)
            w.score(-LOG2 * z)
            return z + 10
        return w.draw("u", P3) + w.draw("z", 0.6)

    return model, ref


@case
def switch_on_a_draw_that_is_clamped():
    def model():
        k = sample("k", dist.DiscreteUniform(-1, 4))
        branches = [
            lambda: sample("z", B(0.1)),
            lambda: jnp.full((), 5),
            lambda: 7 + sample("z", B(0.4)),
        ]
        return lax.switch(k, branches)

    def ref(w):
        k = w.draw("k", {i: 1 / 6 for i in range(-1, 5)})
        k = min(max(k, 0), 2)
        return 5 if k == 1 else w.draw("z", 0.4 if k else 0.1) + (7 if k else 0)

    return model, ref


@case
def branches_that_are_impossible():
    """One dies at once, one in a loop, one in a branch of its own."""

    def model():
        k = sample("k", C(probs=jnp.array([0.1, 0.2, 0.3, 0.4])))

        def never():
            factor("n", -jnp.inf)
            return jnp.zeros((), int)

        def loop():
            def step(c, _):
                z = sample("z", B(0.5))
                factor("l", jnp.where(c > 0, -jnp.inf, 0.0))
                return c + 1, z

            return lax.scan(step, 0, None, length=3)[1].sum()

        def nested():
            a = sample("a", B(0.5))
            die = lambda: (factor("m", -jnp.inf), jnp.zeros((), int))[1]  # noqa: E731
            return lax.cond(a == 1, die, lambda: 20 + sample("c", B(0.3)))

        def plain():
            def step(c, _):
                return c, sample("y", B(0.25))

            return lax.scan(step, 0, None, length=2)[1].sum()

        return lax.switch(k, [never, loop, nested, plain])

    def ref(w):
        k = w.draw("k", [0.1, 0.2, 0.3, 0.4])
        if k < 2:
            w.score(-math.inf)
        if k == 2:
            if w.draw("a", 0.5):
                w.score(-math.inf)
            return 20 + w.draw("c", 0.3)
        return w.draw("y", 0.25) + w.draw("y", 0.25)

    return model, ref


def _vmapped_cond(v):
    def lane(v):
        b = sample("b", B(v))

        def yes():  # NaN where it is not taken and v is negative
            z = sample("z", dist.DiscreteUniform(1, 2))
            factor("f", -z * v)
            return z

        def no():
            deep = lambda: sample("q", B(jnp.sqrt(v)))  # noqa: E731
            u = sample("u", C(probs=jnp.array(P3)))
            return 10 * lax.cond(u == 1, deep, lambda: u)

        return lax.cond(b == 1, yes, no)

    return jax.vmap(lane)(v)


@case
def vmap_of_nested_cond_mapped_predicates():
    v = [0.3, 0.8]

    def ref(w):
        out = []
        for p in v:
            if w.draw("b", p):
                z = w.draw("z", {1: 0.5, 2: 0.5})
                w.score(-z * p)
                out.append(z)
            else:
                u = w.draw("u", P3)
                out.append(10 * (w.draw("q", math.sqrt(p)) if u == 1 else u))
        return np.array(out)

    return lambda: _vmapped_cond(jnp.array(v)), ref


@case
def absent_sites_may_have_bad_parameters():
    """Where the branch is not taken, probabilities are NaN or do not sum to one."""
    v = [0.5, -0.5]

    def model():
        def lane(v):
            yes = lambda: sample("z", B(jnp.sqrt(v)))  # noqa: E731
            no = lambda: sample("k", C(probs=jnp.stack([1 + v, -v])))  # noqa: E731
            return lax.cond(v > 0, yes, no)

        return jax.vmap(lane)(jnp.array(v))

    return model, lambda w: np.array([w.draw("z", math.sqrt(0.5)), w.draw("k", 0.5)])


@case
def while_that_draws_in_test_and_body():
    def model():
        n = sample("n", C(probs=jnp.array(P3)))

        def test(c):
            go = sample("go", B(0.5))
            factor("t", -0.1 * go)
            return (c[0] < n) & (go == 1)

        def body(c):
            z = sample("z", B(0.3))
            return c[0] + 1, c[1] + z

        return lax.while_loop(test, body, (0, 0)), n

    def ref(w):
        n, i, x = w.draw("n", P3), 0, 0
        while True:
            go = w.draw("go", 0.5)
            w.score(-0.1 * go)
            if not (i < n and go):
                return i, x, n
            i, x = i + 1, x + w.draw("z", 0.3)

    return model, ref


@case
def while_whose_test_kills_those_that_go_on():
    def model():
        a = sample("a", B(0.5))

        def test(c):
            factor("t", jnp.where(c == 1, -jnp.inf, 0.0))
            return (a == 1) & (c < 3)

        return 0 * lax.while_loop(test, lambda c: c + sample("one", B(1.0)), 0) + 5

    def ref(w):
        if w.draw("a", 0.5):
            w.score(-math.inf)
        return 5

    return model, ref


@case
def while_whose_body_kills_those_that_go_on():
    def model():
        def body(c):
            factor("f", -jnp.inf)
            return c - 1

        return lax.while_loop(lambda c: c > 0, body, sample("a", B(0.25)))

    def ref(w):
        if w.draw("a", 0.25):
            w.score(-math.inf)
        return 0

    return model, ref


@case
def fori_loops_with_drawn_bounds():
    def model():
        n = sample("n", dist.DiscreteUniform(0, 3))
        c = lax.fori_loop(0, n, lambda i, c: c + sample("x", B(0.2 + 0.1 * i)), 0)
        return n, lax.fori_loop(0, 2, lambda i, c: c + sample("y", B(0.5)), c)

    def ref(w):
        n = w.draw("n", dict.fromkeys(range(4), 0.25))
        c = sum(w.draw("x", 0.2 + 0.1 * i) for i in range(n))
        return n, c + sum(w.draw("y", 0.5) for _ in range(2))

    return model, ref
