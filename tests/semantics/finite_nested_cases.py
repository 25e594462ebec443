"""Finite models under control flow two deep and more, each beside plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist
from tests.semantics.finite_cases import B, case, factor, sample


@jax.custom_jvp
def _jvp_drawn(p):
    z = sample("j", B(p))
    factor("jw", -z * p)
    return z * p


_jvp_drawn.defjvp(lambda primals, tangents: (_jvp_drawn(*primals), tangents[0]))


@jax.custom_vjp
def _vjp_drawn(p):
    return sample("v", B(p)) + p


_vjp_drawn.defvjp(lambda p: (_vjp_drawn(p), None), lambda _, g: (g,))


@case
def checkpoint_and_custom_derivatives():
    def model():
        p = 0.2 + 0.6 * sample("p", B(0.5))
        deep = jax.checkpoint(lambda p: jax.jit(lambda q: sample("z", B(q)))(p))
        return deep(p) + _jvp_drawn(p) + _vjp_drawn(p)

    def ref(w):
        p = 0.2 + 0.6 * w.draw("p", 0.5)
        z, j = w.draw("z", p), w.draw("j", p)
        w.score(-j * p)
        return z + j * p + w.draw("v", p) + p

    return model, ref


@case
def vmap_of_scan_of_cond():
    def model():
        def lane(p):
            def step(c, _):
                b = sample("b", B(p))

                def yes():
                    z = sample("z", B(0.5))
                    sample("y", B(0.2 + 0.3 * z), obs=1)
                    return c + z

                return lax.cond((b == 1) & (c < 2), yes, lambda: c), b

            return lax.scan(step, 0, None, length=2)

        return jax.vmap(lane, out_axes=(0, 1))(jnp.array([0.3, 0.6]))

    def ref(w):
        last, bs = [], np.zeros((2, 2))
        for i, p in enumerate((0.3, 0.6)):
            c = 0
            for t in range(2):
                b = bs[t, i] = w.draw("b", p)
                if b and c < 2:
                    z = w.draw("z", 0.5)
                    w.score(math.log(0.2 + 0.3 * z))
                    c += z
            last.append(c)
        return np.array(last), bs

    return model, ref


@case
def vmap_of_while():
    def model():
        def lane(p):
            n = sample("n", dist.DiscreteUniform(0, 2))
            test = lambda c: c[0] < n  # noqa: E731

            def body(c):
                z = sample("z", B(p))
                factor("g", -0.5 * z)
                return c[0] + 1, c[1] + z

            return lax.while_loop(test, body, (0, 0))[1]

        return jax.vmap(lane)(jnp.array([0.3, 0.9]))

    def ref(w):
        out = []
        for p in (0.3, 0.9):
            total = 0
            for _ in range(w.draw("n", dict.fromkeys(range(3), 1 / 3))):
                z = w.draw("z", p)
                w.score(-0.5 * z)
                total += z
            out.append(total)
        return np.array(out)

    return model, ref


@case
def scan_of_while_of_cond_and_scan_in_cond():
    def model():
        def step(c, p):
            def body(d):
                up = lax.cond(d % 2 == 0, lambda: sample("u", B(p)), lambda: jnp.ones((), int))
                return d + 1 + up

            c = lax.while_loop(lambda d: d < 2, body, c)

            def inner():
                return lax.scan(lambda e, _: (e + sample("i", B(0.5)), None), 0, None, length=2)[0]

            return lax.cond(c > 2, inner, lambda: sample("o", B(p))), c

        return lax.scan(step, 0, jnp.array([0.3, 0.6]))

    def ref(w):
        c, out = 0, []
        for p in (0.3, 0.6):
            while c < 2:
                c += 1 + (w.draw("u", p) if c % 2 == 0 else 1)
            out.append(c)
            c = w.draw("i", 0.5) + w.draw("i", 0.5) if c > 2 else w.draw("o", p)
        return c, np.array(out)

    return model, ref


@case
def plates_around_and_inside():
    def model():
        with ppl.plate("outer", 2):
            a = sample("a", B(jnp.array([0.3, 0.6])))
            with ppl.plate("inner", 2):
                b = sample("b", B(0.2 + 0.5 * a))
                sample("y", B(0.1 + 0.8 * b), obs=jnp.ones((2, 2), int))
        return a.sum(), b.sum(-1)

    def ref(w):
        a = [w.draw("a", p) for p in (0.3, 0.6)]
        out = np.zeros((2, 2))
        for i in range(2):
            for j in range(2):
                out[i, j] = w.draw("b", 0.2 + 0.5 * a[j])
                w.score(math.log(0.1 + 0.8 * out[i, j]))
        return sum(a), out.sum(-1)

    return model, ref


@case
def submodels_and_programs_in_programs():
    def model():
        part = ppl.model(lambda p: sample("z", B(p)))
        with ppl.scope("one"):
            a = part(0.3)
        with ppl.scope("two"):
            b = part(0.2 + 0.6 * a)
        with ppl.scope("three"):
            c = lax.scan(lambda c, _: (part(0.1 + 0.2 * c), None), a + b, None, length=2)[0]
        return a, b, c

    def ref(w):
        a = w.draw("z", 0.3)
        b = w.draw("z", 0.2 + 0.6 * a)
        c = a + b
        for _ in range(2):
            c = w.draw("z", 0.1 + 0.2 * c)
        return a, b, c

    return model, ref
