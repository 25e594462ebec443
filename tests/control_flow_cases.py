"""Models under control flow, each beside the plain Python loops that say what it means.

A case is a pair: `model(...)` with JAX's control flow, and `ref(t)`, which walks the same program
with `for` and `if` over numbers. The tape `t` knows the choices, and what every handler does to a
site: it never calls `ppl`. One reference so serves every interpreter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
import ppl.distributions as dist

LOG_2PI = math.log(2 * math.pi)


def normal_lp(x: float, loc: float, scale: float) -> float:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * LOG_2PI


@dataclasses.dataclass
class Term:
    """One site at one place of its address's array."""

    kind: str
    log_weight: float
    log_scale: float | None = None  # of a normal latent: what non-centring it gains
    log_jacobian: float = 0.0  # of the map from the reals to the support


class Tape:
    """Choices in, terms out: `terms[address][index]`."""

    def __init__(self, choices: Mapping[str, Any]):
        self.choices = {a: np.asarray(v) for a, v in choices.items()}
        self.terms: dict[str, dict[tuple[int, ...], Term]] = {}

    def _put(self, address: str, index: Any, term: Term) -> None:
        at = self.terms.setdefault(address, {})
        index = tuple(index)
        assert index not in at, f"the reference visits {address}{index} twice"
        at[index] = term

    def normal(self, address: str, index: Any, loc: Any, scale: Any = 1.0, obs: Any = None) -> Any:
        x = float(self.choices[address][tuple(index)]) if obs is None else float(obs)
        kind = "latent" if obs is None else "observed"
        loc, scale = float(loc), float(scale)
        self._put(address, index, Term(kind, normal_lp(x, loc, scale), math.log(scale)))
        return x

    def exponential(self, address: str, index: Any, rate: float) -> float:
        x = float(self.choices[address][tuple(index)])
        lp = math.log(rate) - rate * x
        self._put(address, index, Term("latent", lp, None, math.log(x)))
        return x

    def bernoulli(self, address: str, index: Any, p: float) -> int:
        x = int(self.choices[address][tuple(index)])
        self._put(address, index, Term("latent", math.log(p if x else 1 - p)))
        return x

    def factor(self, address: str, index: Any, w: Any) -> None:
        self._put(address, index, Term("factor", float(w)))

    def total(self, *kinds: str) -> float:
        return sum(
            t.log_weight
            for at in self.terms.values()
            for t in at.values()
            if not kinds or t.kind in kinds
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """`build()` gives the program; `shapes` the arrays of choices that the nesting implies."""

    name: str
    build: Callable[[], ppl.Program]
    ref: Callable[[Tape], Any]
    shapes: dict[str, tuple[int, ...]]
    #: Addresses whose support is (0, inf), and those that are 0 or 1.
    positive: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    #: Whether a while_loop is inside: JAX has no reverse mode for it, handlers no array of sites.
    unbounded: bool = False

    @property
    def normal(self) -> tuple[str, ...]:
        """The addresses of the normal latents."""
        return tuple(a for a in self.shapes if a not in (*self.positive, *self.binary))

    def choices(self, seed: int) -> dict[str, np.ndarray]:
        """Arbitrary values in the supports, not drawn by `ppl`."""
        rng = np.random.default_rng(seed)
        out: dict[str, np.ndarray] = {}
        for address, shape in self.shapes.items():
            if address in self.binary:
                out[address] = rng.integers(0, 2, shape)
            elif address in self.positive:
                out[address] = rng.exponential(size=shape) + 0.1
            else:
                out[address] = rng.normal(size=shape)
        return out


CASES: dict[str, Case] = {}


def case(
    shapes: dict[str, tuple[int, ...]],
    positive: Any = (),
    binary: Any = (),
    unbounded: bool = False,
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function that returns (program builder, reference)."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        build, ref = make()
        name = make.__name__
        CASES[name] = Case(name, build, ref, shapes, tuple(positive), tuple(binary), unbounded)
        return make

    return register


N = dist.Normal
V3 = np.array([0.3, -1.1, 2.0])
V4 = np.array([0.7, -0.2, 1.5, -0.9])
M23 = np.array([[0.1, 0.5, -0.4], [1.2, -0.7, 0.9]])


# --- One construct ------------------------------------------------------------------------------


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


# --- Nested -------------------------------------------------------------------------------------


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
