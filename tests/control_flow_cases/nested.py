"""Two constructs in one another, or three."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist
from tests.control_flow_cases.tape import V3, V4, N, case


@case({"x": (3, 4)})
def vmap_of_scan():
    @ppl.model
    def model(mu, ys):
        def lane(m, y):
            def step(c, y):
                x = ppl.sample("x", N(c, 1.0))
                ppl.sample("y", N(x + m, 2.0), obs=y)
                ppl.factor("k", 0.125)
                return x, x * m

            return lax.scan(step, m, y)

        return jax.vmap(lane, in_axes=(0, 1))(mu, ys)

    ys = np.add.outer(V4, V3)

    def ref(t):
        last, out = np.zeros(3), np.zeros((3, 4))
        for i in range(3):
            c = V3[i]
            for j in range(4):
                c = t.normal("x", (i, j), c)
                t.normal("y", (i, j), c + V3[i], 2.0, obs=ys[j, i])
                t.factor("k", (i, j), 0.125)
                out[i, j] = c * V3[i]
            last[i] = c
        return last, out

    return lambda: model(V3, ys), ref


@case({"x": (4, 3), "g": (4,)})
def scan_of_vmap():
    @ppl.model
    def model(mu, ys):
        def step(c, y):
            g = ppl.sample("g", N(y, 1.0))

            def lane(m, c):
                x = ppl.sample("x", N(m + 0.5 * c, 1.0))
                ppl.sample("y", N(x, 1.0), obs=g * 0 + y)
                return x

            c = jax.vmap(lane)(mu, c)
            return c, c.sum() * g

        return lax.scan(step, jnp.zeros(3), ys)

    def ref(t):
        c, out = np.zeros(3), []
        for j in range(4):
            g = t.normal("g", (j,), V4[j])
            for i in range(3):
                c[i] = t.normal("x", (j, i), V3[i] + 0.5 * c[i])
                t.normal("y", (j, i), c[i], obs=V4[j])
            out.append(c.sum() * g)
        return c, np.array(out)

    return lambda: model(V3, V4), ref


@case({"x": (2, 4, 3, 5, 2), "h": (2, 4, 3)})
def vmap_scan_vmap_scan_with_event():
    """Every axis another size but the event, which equals the outermost."""

    @ppl.model
    def model(a, b):
        def outer(a):
            def step(c, _):
                def lane(b):
                    h = ppl.sample("h", N(a + b, 1.0))

                    def inner(d, k):
                        x = ppl.sample("x", N(jnp.array([1.0, 2.0]) * d, 1.0).to_event(1))
                        return d * 0.5 + x[0] * 0.1, x[1] * k

                    return lax.scan(inner, h, jnp.arange(5.0))[1].sum() + h

                return c + jax.vmap(lane)(b).sum(), c

            return lax.scan(step, a, None, length=4)[0]

        return jax.vmap(outer)(a)

    a = np.array([0.5, -1.5])

    def ref(t):
        out = []
        for i in range(2):
            c = a[i]
            for j in range(4):
                for k in range(3):
                    h = d = t.normal("h", (i, j, k), a[i] + V3[k])
                    for m in range(5):
                        x = [t.normal("x", (i, j, k, m, e), (e + 1.0) * d) for e in range(2)]
                        d = d * 0.5 + x[0] * 0.1
                        c += x[1] * m
                    c += h
            out.append(c)
        return np.array(out)

    return lambda: model(a, V3), ref


@case({"b": (4,), "z": (4,), "u": (4,)}, binary=["b"], positive=["u"])
def cond_in_scan():
    @ppl.model
    def model(xs):
        def step(c, x):
            b = ppl.sample("b", dist.Bernoulli(0.6))

            def yes(c):
                z = ppl.sample("z", N(c, 1.0))
                ppl.factor("f", 0.2 * z)
                return z

            def no(c):
                u = ppl.sample("u", dist.Exponential(2.0))
                ppl.sample("y", N(u, 1.0), obs=x)
                return c + u

            c = lax.cond(b, yes, no, c)
            return c, c

        return lax.scan(step, 0.1, xs)

    def ref(t):
        c, out = 0.1, []
        for i in range(4):
            if t.bernoulli("b", (i,), 0.6):
                c = t.normal("z", (i,), c)
                t.factor("f", (i,), 0.2 * c)
            else:
                u = t.exponential("u", (i,), 2.0)
                t.normal("y", (i,), u, obs=V4[i])
                c = c + u
            out.append(c)
        return c, np.array(out)

    return lambda: model(V4), ref


@case({"x": (3,), "v": (2,)})
def scan_and_vmap_in_cond():
    @ppl.model
    def model(p, y):
        def yes():
            def step(c, y):
                x = ppl.sample("x", N(c, 1.0))
                ppl.sample("y", N(x, 1.0), obs=y)
                return x, None

            return lax.scan(step, 0.0, y)[0]

        def no():
            return jax.vmap(lambda m: ppl.sample("v", N(m, 1.0)))(y[:2]).sum()

        return lax.cond(p, yes, no) + lax.cond(~p, lambda: 1.0, lambda: 2.0)

    def ref(t):
        c = 0.0
        for i in range(3):
            c = t.normal("x", (i,), c)
            t.normal("y", (i,), c, obs=V3[i])
        return c + 2.0

    return lambda: model(np.array(True), V3), ref


def _vmapped_cond(v):
    def lane(v):
        def yes(v):
            z = ppl.sample("z", N(0.0, jnp.sqrt(v)))  # NaN where it is not taken
            ppl.sample("y", N(z, 1.0), obs=0.5)
            ppl.factor("f", jnp.log(v))
            return z * jnp.log(v)

        def no(v):
            return v + ppl.sample("e", dist.Exponential(1.0 - v))

        return lax.cond(v > 0, yes, no, v)

    return jax.vmap(lane)(v)


@case({"z": (4,), "e": (4,)}, positive=["e"])
def vmap_of_cond_mapped_predicate():
    model = ppl.model(_vmapped_cond)

    def ref(t):
        out = []
        for i, v in enumerate(V4):
            if v > 0:
                z = t.normal("z", (i,), 0.0, math.sqrt(v))
                t.normal("y", (i,), z, obs=0.5)
                t.factor("f", (i,), math.log(v))
                out.append(z * math.log(v))
            else:
                out.append(v + t.exponential("e", (i,), 1.0 - v))
        return np.array(out)

    return lambda: model(V4), ref


@case({"z": (3,), "w": (3,)})
def vmap_of_cond_unmapped_predicate():
    @ppl.model
    def model(p, v):
        def lane(v):
            return lax.cond(
                p, lambda: ppl.sample("w", N(v, 1.0)), lambda: v * ppl.sample("z", N(v, 2.0))
            )

        return jax.vmap(lane)(v)

    def ref(t):
        return np.array([V3[i] * t.normal("z", (i,), V3[i], 2.0) for i in range(3)])

    return lambda: model(np.array(False), V3), ref


@case({"s": (3,)}, unbounded=True)
def vmap_of_while_mapped_predicate():
    @ppl.model
    def model(n, v):
        def lane(n, v):
            s = ppl.sample("s", N(v, 1.0))

            def test(c):
                ppl.factor("t", 0.1 * v)
                return c[0] < n

            def body(c):
                i, x = c
                ppl.sample("y", N(x, 1.0), obs=v)
                ppl.factor("g", 0.2 * s)
                return i + 1, x + 0.3

            return lax.while_loop(test, body, (0, s))[1]

        return jax.vmap(lane)(n, v)

    def ref(t):
        out = []
        for k, n in enumerate((2, 0, 4)):
            x = s = t.normal("s", (k,), V3[k])
            for i in range(n + 1):
                t.factor("t", (k, i), 0.1 * V3[k])
                if i < n:
                    t.normal("y", (k, i), x, obs=V3[k])
                    t.factor("g", (k, i), 0.2 * s)
                    x += 0.3
            out.append(x)
        return np.array(out)

    return lambda: model(np.array([2, 0, 4]), V3), ref


@case({"x": (4, 2)})
def jit_in_checkpoint_in_scan():
    @ppl.model
    def model(xs):
        @jax.checkpoint
        def part(c, x):
            @jax.jit
            def inner(c):
                z = ppl.sample("x", N(jnp.sin(c) * jnp.ones(2), 1.0))
                ppl.sample("y", N(z[0], 1.0), obs=x)
                return jnp.cos(z).sum()

            return inner(c)

        def step(c, x):
            return (d := part(c, x)), d * c

        return lax.scan(step, 0.2, xs)

    def ref(t):
        c, out = 0.2, []
        for i in range(4):
            z = [t.normal("x", (i, j), math.sin(c)) for j in range(2)]
            t.normal("y", (i,), z[0], obs=V4[i])
            d = math.cos(z[0]) + math.cos(z[1])
            out.append(d * c)
            c = d
        return c, np.array(out)

    return lambda: model(V4), ref


@case({"b": (3, 4), "z": (3, 4), "u": (3, 4)}, binary=["b"])
def vmap_of_scan_of_cond():
    """The predicate is drawn: mapped over lanes, another at every step."""

    @ppl.model
    def model(mu):
        def lane(m):
            def step(c, _):
                b = ppl.sample("b", dist.Bernoulli(0.4))

                def yes(c):
                    ppl.sample("y", N(c, 1.0), obs=0.0)
                    return ppl.sample("z", N(c, 1.0))

                def no(c):
                    u = ppl.sample("u", N(m, 2.0))
                    ppl.factor("f", 0.5 * u * c)
                    return u

                c = lax.cond(b == 1, yes, no, c)
                return c, c

            return lax.scan(step, m, None, length=4)[1]

        return jax.vmap(lane)(mu)

    def ref(t):
        out = np.zeros((3, 4))
        for i in range(3):
            c = V3[i]
            for j in range(4):
                if t.bernoulli("b", (i, j), 0.4):
                    t.normal("y", (i, j), c, obs=0.0)
                    c = t.normal("z", (i, j), c)
                else:
                    u = t.normal("u", (i, j), V3[i], 2.0)
                    t.factor("f", (i, j), 0.5 * u * c)
                    c = u
                out[i, j] = c
        return out

    return lambda: model(V3), ref
