"""Branches under several maps, shared addresses, plates, and rules of derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist
from tests.control_flow_cases.tape import V3, N, case


@case({"z": (2, 3), "k": (2, 3), "r": (2, 3)})
def switch_in_vmap_in_vmap():
    """The index is mapped by both vmaps; an address stands in two of the branches."""

    @ppl.model
    def model(index, a):
        def inner(i, a):
            def one(a):
                return ppl.sample("z", N(a, 1.0))

            def two(a):
                ppl.sample("y", N(a, 1.0), obs=1.0)
                return a * ppl.sample("k", N(0.0, 1.0))

            def three(a):
                return ppl.sample("z", N(-a, 2.0)) - ppl.sample("r", N(a, 1.0))

            return lax.switch(i, [one, two, three], a)

        return jax.vmap(jax.vmap(inner, in_axes=(0, None)), in_axes=(0, 0))(index, a)

    index, a = np.array([[0, 1, 2], [2, 2, 1]]), np.array([0.7, -0.3])

    def ref(t):
        out = np.zeros((2, 3))
        for i in range(2):
            for j in range(3):
                x = a[i]
                if index[i, j] == 0:
                    out[i, j] = t.normal("z", (i, j), x)
                elif index[i, j] == 1:
                    t.normal("y", (i, j), x, obs=1.0)
                    out[i, j] = x * t.normal("k", (i, j), 0.0)
                else:
                    out[i, j] = t.normal("z", (i, j), -x, 2.0) - t.normal("r", (i, j), x)
        return out

    return lambda: model(index, a), ref


@case({"z": (2, 3), "u": (2, 3), "x": (2, 3, 2)})
def nested_conds_under_vmaps():
    """Masks multiply: outer predicate by the outer vmap, inner by the inner; a scan in a branch."""

    @ppl.model
    def model(p, q, a):
        def outer(p, a):
            def inner(q):
                def deep(a):
                    def step(c, _):
                        x = ppl.sample("x", N(c, 1.0))
                        ppl.factor("g", 0.3 * x)
                        return x, None

                    return lax.scan(step, a, None, length=2)[0]

                def yes(a):
                    ppl.factor("f", a)
                    shallow = lambda a: a + ppl.sample("u", N(a, 1.0))  # noqa: E731
                    return lax.cond(q > 0, deep, shallow, a)

                return lax.cond(p, yes, lambda a: ppl.sample("z", N(a, 1.0)), a)

            return jax.vmap(inner)(q)

        return jax.vmap(outer)(p, a)

    p, a = np.array([True, False]), np.array([0.7, -0.3])

    def ref(t):
        out = np.zeros((2, 3))
        for i in range(2):
            for j in range(3):
                if not p[i]:
                    out[i, j] = t.normal("z", (i, j), a[i])
                    continue
                t.factor("f", (i, j), a[i])
                if V3[j] > 0:
                    c = a[i]
                    for k in range(2):
                        c = t.normal("x", (i, j, k), c)
                        t.factor("g", (i, j, k), 0.3 * c)
                    out[i, j] = c
                else:
                    out[i, j] = a[i] + t.normal("u", (i, j), a[i])
        return out

    return lambda: model(p, V3, a), ref


@case({"x": (3,)})
def shared_address_under_vmap():
    """One address, three lanes, a branch of a normal and one of another normal that observes."""

    @ppl.model
    def model(v):
        def lane(v):
            def yes(v):
                x = ppl.sample("x", N(v, 1.0))
                ppl.sample("y", N(x, 1.0), obs=1.0)
                return x

            def no(v):
                x = ppl.sample("x", N(-v, 3.0))
                ppl.sample("y", N(x, 4.0), obs=2.0)
                return -x

            return lax.cond(v > 0, yes, no, v)

        return jax.vmap(lane)(v)

    def ref(t):
        out = []
        for i, v in enumerate(V3):
            x = t.normal("x", (i,), abs(v), 1.0 if v > 0 else 3.0)
            t.normal("y", (i,), x, 1.0 if v > 0 else 4.0, obs=1.0 if v > 0 else 2.0)
            out.append(x if v > 0 else -x)
        return np.array(out)

    return lambda: model(V3), ref


@case({"x": (3, 2), "z": (2,)})
def plates_in_and_around():
    """A plate in a vmap, and a vmap and a scan of one plate each."""

    @ppl.model
    def model(v, y):
        def lane(v):
            with ppl.plate("p", 2):
                x = ppl.sample("x", N(v, 1.0))
                ppl.sample("y", N(x, 1.0), obs=y)
            return x.sum()

        def step(c, _):
            with ppl.plate("q", 2):
                ppl.factor("f", c)
            return 2 * c, None

        with ppl.plate("r", 2):
            z = ppl.sample("z", N(0.0, 1.0))
        return jax.vmap(lane)(v), lax.scan(step, z[0], None, length=3)[0]

    def ref(t):
        out = []
        for i in range(3):
            xs = [t.normal("x", (i, j), V3[i]) for j in range(2)]
            for j in range(2):
                t.normal("y", (i, j), xs[j], obs=V3[j])
            out.append(sum(xs))
        z = [t.normal("z", (j,), 0.0) for j in range(2)]
        c = z[0]
        for i in range(3):
            for j in range(2):
                t.factor("f", (i, j), c)
            c = 2 * c
        return np.array(out), c

    return lambda: model(V3, V3[:2]), ref


@case({"s/z": (3, 2), "h": (3, 2)})
def inlined_model_and_program_in_loops():
    """A model, and a program made beforehand, called inside vmap of scan."""

    @ppl.model
    def part(m):
        z = ppl.sample("z", N(m, 1.0))
        ppl.sample("y", N(z, 1.0), obs=0.4)
        return z

    @ppl.model
    def other(m):
        return ppl.sample("h", N(m, 2.0))

    @ppl.model
    def model(v):
        ready = other.program(jnp.array(0.25))

        def lane(m):
            def step(c, _):
                with ppl.scope("s"):
                    z = part(c)
                return z + ready(), z

            return lax.scan(step, m, None, length=2)

        return jax.vmap(lane)(v)

    def ref(t):
        last, zs = np.zeros(3), np.zeros((3, 2))
        for i in range(3):
            c = V3[i]
            for j in range(2):
                z = t.normal("s/z", (i, j), c)
                t.normal("s/y", (i, j), z, obs=0.4)
                c = z + t.normal("h", (i, j), 0.25, 2.0)
                zs[i, j] = z
            last[i] = c
        return last, zs

    return lambda: model(V3), ref


def _custom(kind):
    """A function with a site inside, and a rule that is the true derivative in its argument."""

    def plain(x, k):
        z = ppl.sample("z", N(x, 1.0))
        ppl.factor("f", 0.1 * z * x)
        return jnp.sin(x) * k + z * 0.0

    if kind == "jvp":
        f = jax.custom_jvp(plain)
        f.defjvp(lambda p, t: (f(*p), jnp.cos(p[0]) * p[1] * t[0] + jnp.sin(p[0]) * t[1]))
    else:
        f = jax.custom_vjp(plain)
        f.defvjp(
            lambda x, k: (f(x, k), (x, k)),
            lambda r, g: (jnp.cos(r[0]) * r[1] * g, jnp.sin(r[0]) * g),
        )
    return f


def _custom_case(kind):
    f = _custom(kind)

    @ppl.model
    def model(v):
        m = ppl.sample("m", N(0.0, 1.0))

        def lane(v):
            def step(c, _):
                d = f(c, v)
                ppl.sample("y", N(d, 1.0), obs=0.2)
                return d + m, d

            return lax.scan(step, v, None, length=2)[1]

        return jax.vmap(lane)(v)

    def ref(t):
        m, out = t.normal("m", (), 0.0), np.zeros((3, 2))
        for i in range(3):
            c = V3[i]
            for j in range(2):
                z = t.normal("z", (i, j), c)
                t.factor("f", (i, j), 0.1 * z * c)
                out[i, j] = math.sin(c) * V3[i]
                t.normal("y", (i, j), out[i, j], obs=0.2)
                c = out[i, j] + m
        return out

    return lambda: model(V3), ref


@case({"m": (), "z": (3, 2)})
def custom_jvp_in_vmap_of_scan():
    return _custom_case("jvp")


@case({"m": (), "z": (3, 2)})
def custom_vjp_in_vmap_of_scan():
    return _custom_case("vjp")


@case({"z": (3,)})
def custom_jvp_in_mapped_cond():
    f = _custom("jvp")

    @ppl.model
    def model(v):
        return jax.vmap(lambda v: lax.cond(v > 0, lambda v: f(v, 2.0), lambda v: v, v))(v)

    def ref(t):
        out = []
        for i, v in enumerate(V3):
            if v > 0:
                z = t.normal("z", (i,), v)
                t.factor("f", (i,), 0.1 * z * v)
                v = math.sin(v) * 2.0
            out.append(v)
        return np.array(out)

    return lambda: model(V3), ref


@case({"x": (4, 3), "b": (4,), "w": (4, 3)}, binary=["b"])
def vmap_of_checkpoint_in_cond_in_scan():
    """scan(cond(checkpoint(vmap))): the predicate is one for all lanes of the vmap inside."""

    @ppl.model
    def model(v):
        def step(c, _):
            b = ppl.sample("b", dist.Bernoulli(0.5))
            yes = jax.checkpoint(
                lambda c: jnp.tanh(jax.vmap(lambda m: ppl.sample("x", N(m * c, 1.0)))(v)).sum()
            )

            def no(c):
                def lane(m):
                    w = ppl.sample("w", N(c, 1.0))
                    ppl.sample("y", N(w, 1.0), obs=m)
                    return w

                return jax.vmap(lane)(v).sum()

            return lax.cond(b > 0, yes, no, c), None

        return lax.scan(step, 0.5, None, length=4)[0]

    def ref(t):
        c = 0.5
        for i in range(4):
            if t.bernoulli("b", (i,), 0.5):
                c = sum(math.tanh(t.normal("x", (i, j), V3[j] * c)) for j in range(3))
            else:
                ws = [t.normal("w", (i, j), c) for j in range(3)]
                for j in range(3):
                    t.normal("y", (i, j), ws[j], obs=V3[j])
                c = sum(ws)
        return c

    return lambda: model(V3), ref
