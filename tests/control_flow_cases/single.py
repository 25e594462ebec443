"""One construct."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist
from tests.control_flow_cases.tape import M23, V3, V4, N, case


@case({"m": (), "a/z": (), "b/z": ()})
def jit_helper_in_two_scopes():
    @jax.jit
    def helper(x):
        z = ppl.sample("z", N(x, 2.0))
        ppl.factor("w", z * x)
        return z + x

    @ppl.model
    def model(v):
        m = ppl.sample("m", N(v, 1.0))
        with ppl.scope("a"):
            a = helper(m)
        with ppl.scope("b"):
            b = helper(a)
        return a, b

    def ref(t):
        m = t.normal("m", (), 0.4)
        outs, x = [], m
        for s in "ab":
            z = t.normal(f"{s}/z", (), x, 2.0)
            t.factor(f"{s}/w", (), z * x)
            x = z + x
            outs.append(x)
        return tuple(outs)

    return lambda: model(np.array(0.4)), ref


@case({"x": (3,)})
def vmap_axis0():
    @ppl.model
    def model(mu, y):
        def lane(m, y):
            x = ppl.sample("x", N(m, 1.5))
            ppl.sample("y", N(x, 0.5), obs=y)
            return x * m

        return jax.vmap(lane)(mu, y)

    def ref(t):
        out = []
        for i in range(3):
            x = t.normal("x", (i,), V3[i], 1.5)
            t.normal("y", (i,), x, 0.5, obs=V3[2 - i])
            out.append(x * V3[i])
        return np.array(out)

    return lambda: model(V3, V3[::-1].copy()), ref


@case({"x": (3, 2)})
def vmap_axes_mixed_and_out_axes():
    """in_axes 1, -1, None and 0 at once; outputs along 1 and -1."""

    @ppl.model
    def model(a, b, c, d):
        def lane(a, b, c, d):  # a: (2,), b: (2,), c: (2,), d: ()
            x = ppl.sample("x", N(a + c, jnp.exp(b)))
            ppl.sample("y", N(x, 1.0), obs=c)  # the observation is shared by all lanes
            ppl.factor("f", d * x)
            return x, jnp.outer(x, c)

        return jax.vmap(lane, in_axes=(1, -1, None, 0), out_axes=(1, -1))(a, b, c, d)

    c = np.array([0.2, -0.6])

    def ref(t):
        xs = np.zeros((3, 2))
        for i in range(3):
            for j in range(2):
                x = t.normal("x", (i, j), M23[j, i] + c[j], math.exp(0.1 * M23[j, i]))
                t.normal("y", (i, j), x, obs=c[j])
                t.factor("f", (i, j), V3[i] * x)
                xs[i, j] = x
        return xs.T, np.einsum("ij,k->jki", xs, c)

    return lambda: model(M23, 0.1 * M23, c, V3), ref


@case({"x": (3, 3)})
def vmap_size_equals_event_size():
    """Three lanes, sites of size three, an observation and a record no lane maps."""

    @ppl.model
    def model(mu, y):
        def lane(m):
            x = ppl.sample("x", N(y, 2.0))
            o = ppl.sample("y", N(m, jnp.ones(3)), obs=y)
            d = ppl.deterministic("d", 2.0 * y)
            return x + o * m + d

        return jax.vmap(lane)(mu)

    y = np.array([1.0, 2.0, 4.0])

    def ref(t):
        out = np.zeros((3, 3))
        for i in range(3):
            for j in range(3):
                x = t.normal("x", (i, j), y[j], 2.0)
                t.normal("y", (i, j), V3[i], obs=y[j])
                out[i, j] = x + y[j] * V3[i] + 2.0 * y[j]
        return out

    return lambda: model(V3, y), ref


@case({"x": (4,), "v": (4, 2)})
def vmap_nothing_mapped():
    @ppl.model
    def model():
        def lane(_):
            x = ppl.sample("x", N(0.5, 2.0))
            v = ppl.sample("v", N(jnp.arange(2.0), 1.0).to_event(1))
            ppl.sample("y", N(0.0, 1.0), obs=1.5)
            ppl.factor("f", 0.25)
            return x + v.sum()

        return jax.vmap(lane, in_axes=(None,), axis_size=4)(jnp.zeros(2))

    def ref(t):
        out = []
        for i in range(4):
            x = t.normal("x", (i,), 0.5, 2.0)
            v = [t.normal("v", (i, j), j) for j in range(2)]
            t.normal("y", (i,), 0.0, obs=1.5)
            t.factor("f", (i,), 0.25)
            out.append(x + sum(v))
        return np.array(out)

    return lambda: model(), ref


@case({"x": (2, 3), "u": (2, 3), "w": (2,)})
def vmap_vmap_partly_mapped():
    """The inner vmap maps what the outer does not, and the other way round."""

    @ppl.model
    def model(a, y):
        def outer(a):
            w = ppl.sample("w", N(a, 1.0))

            def inner(y):
                x = ppl.sample("x", N(y, 1.0))  # mapped inside only
                u = ppl.sample("u", N(w, 1.0))  # mapped outside only
                ppl.sample("o", N(w + x, 2.0), obs=y)
                ppl.sample("q", N(y, 2.0), obs=a)
                return x * u

            return jax.vmap(inner)(y)

        return jax.vmap(outer)(a)

    a = np.array([0.5, -1.5])

    def ref(t):
        out = np.zeros((2, 3))
        for i in range(2):
            w = t.normal("w", (i,), a[i])
            for j in range(3):
                x = t.normal("x", (i, j), V3[j])
                u = t.normal("u", (i, j), w)
                t.normal("o", (i, j), w + x, 2.0, obs=V3[j])
                t.normal("q", (i, j), V3[j], 2.0, obs=a[i])
                out[i, j] = x * u
        return out

    return lambda: model(a, V3), ref


@case({"x": (4,), "e": (4, 2)}, positive=["e"])
def scan_with_tree_of_xs():
    @ppl.model
    def model(xs):
        def step(c, x):
            e = ppl.sample("e", dist.Exponential(jnp.array([1.0, 3.0])))
            z = ppl.sample("x", N(c * 0.9 + x["a"], e[0]))
            ppl.sample("y", N(z, 1.0), obs=x["b"][1])
            ppl.factor("f", -jnp.square(z) * e[1])
            return z, {"z": z, "s": z + x["b"][0]}

        return lax.scan(step, jnp.array(1.0), xs)

    b = np.stack([V4, -2 * V4], axis=1)

    def ref(t):
        c, zs, ss = 1.0, [], []
        for i in range(4):
            e = [t.exponential("e", (i, j), r) for j, r in enumerate((1.0, 3.0))]
            z = t.normal("x", (i,), c * 0.9 + V4[i], e[0])
            t.normal("y", (i,), z, obs=b[i, 1])
            t.factor("f", (i,), -(z**2) * e[1])
            c = z
            zs.append(z)
            ss.append(z + b[i, 0])
        return c, {"z": np.array(zs), "s": np.array(ss)}

    return lambda: model({"a": V4, "b": b}), ref


@case({"x": (4,)})
def scan_reverse_unrolled():
    @ppl.model
    def model(xs):
        def step(c, x):
            z = ppl.sample("x", N(c + x, 1.0))
            ppl.sample("y", N(z, 1.0), obs=x)
            return z, c

        return lax.scan(step, 0.5, xs, reverse=True, unroll=2)

    def ref(t):
        c, ys = 0.5, np.zeros(4)
        for i in reversed(range(4)):
            ys[i] = c
            c = t.normal("x", (i,), c + V4[i])
            t.normal("y", (i,), c, obs=V4[i])
        return c, ys

    return lambda: model(V4), ref


@case({"x": (5,), "none": (0,)})
def scan_length_only_and_empty():
    @ppl.model
    def model():
        def step(c, _):
            return ppl.sample("x", N(0.5 * c, 1.0)), None

        def never(c, _):
            return c + ppl.sample("none", N(0.0, 1.0)), None

        c, _ = lax.scan(step, 1.0, None, length=5)
        return lax.scan(never, c, None, length=0)[0]

    def ref(t):
        c = 1.0
        for i in range(5):
            c = t.normal("x", (i,), 0.5 * c)
        return c

    return lambda: model(), ref


@case({"x": (4,), "z": (2, 2)})
def map_and_map_in_batches():
    @ppl.model
    def model(v):
        a = lax.map(lambda x: ppl.sample("x", N(x, 1.0)) * 2.0, v)
        b = lax.map(lambda x: ppl.sample("z", N(x, 2.0)), v, batch_size=2)
        return a, b

    def ref(t):
        a = [2.0 * t.normal("x", (i,), V4[i]) for i in range(4)]
        b = [t.normal("z", (i // 2, i % 2), V4[i], 2.0) for i in range(4)]
        return np.array(a), np.array(b)

    return lambda: model(V4), ref


@case({"b": (), "z": (), "u": (2,)}, binary=["b"])
def cond_on_a_draw():
    """Each branch with an address of its own, and one that they share."""

    @ppl.model
    def model(v):
        b = ppl.sample("b", dist.Bernoulli(0.3))

        def yes(v):
            z = ppl.sample("z", N(v, 1.0))
            ppl.sample("y", N(z, 1.0), obs=0.3)
            return z

        def no(v):
            u = ppl.sample("u", N(v, jnp.array([1.0, 2.0])))
            ppl.factor("f", u[0] * 0.1)
            return u.sum() + ppl.sample("z", N(-v, 3.0))

        return lax.cond(b == 1, yes, no, v)

    def ref(t):
        if t.bernoulli("b", (), 0.3):
            z = t.normal("z", (), 0.8)
            t.normal("y", (), z, obs=0.3)
            return z
        u = [t.normal("u", (j,), 0.8, s) for j, s in enumerate((1.0, 2.0))]
        t.factor("f", (), u[0] * 0.1)
        return sum(u) + t.normal("z", (), -0.8, 3.0)

    return lambda: model(np.array(0.8)), ref


@case({"z": (), "k": ()})
def switch_with_clamped_index():
    @ppl.model
    def model(index, v):
        def one(v):
            return ppl.sample("z", N(v, 1.0))

        def two(v):
            ppl.factor("f", 3.0 * v)
            return v

        def three(v):
            return ppl.sample("z", N(v, 2.0)) + ppl.sample("k", N(0.0, v))

        return lax.switch(index, [one, two, three], v)

    def ref(t):  # index 7 clamps to the last branch
        return t.normal("z", (), 0.6, 2.0) + t.normal("k", (), 0.0, 0.6)

    return lambda: model(np.array(7), np.array(0.6)), ref


@case({"s": ()}, unbounded=True)
def while_loop_that_scores():
    """Scores in the body and in the test; no latent inside."""

    @ppl.model
    def model(n):
        s = ppl.sample("s", N(0.0, 1.0))

        def test(c):
            ppl.factor("t", 0.01 * s)
            return c[0] < n

        def body(c):
            i, x = c
            ppl.sample("y", N(x, 1.0), obs=0.5)
            return i + 1, x * 0.5 + s

        return lax.while_loop(test, body, (0, s))

    def ref(t):
        s = t.normal("s", (), 0.0)
        i, x = 0, s
        while True:
            t.factor("t", (i,), 0.01 * s)
            if not i < 3:
                return i, x
            t.normal("y", (i,), x, obs=0.5)
            i, x = i + 1, x * 0.5 + s

    return lambda: model(np.array(3)), ref


@case({"x": (3,)}, unbounded=True)
def fori_loops():
    """Static bounds may draw; dynamic ones may score."""

    @ppl.model
    def model(n):
        def step(i, c):
            return ppl.sample("x", N(c, 1.0 + i))

        def weigh(i, c):
            ppl.sample("y", N(c, 1.0 + i), obs=0.1)
            return c * 0.9

        return lax.fori_loop(0, n, weigh, lax.fori_loop(0, 3, step, 0.3))

    def ref(t):
        c = 0.3
        for i in range(3):
            c = t.normal("x", (i,), c, 1.0 + i)
        for i in range(4):
            t.normal("y", (i,), c, 1.0 + i, obs=0.1)
            c *= 0.9
        return c

    return lambda: model(np.array(4)), ref
