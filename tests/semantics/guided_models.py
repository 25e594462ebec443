"""Programs with proposals: loops, lanes, branches and arrays that match, and that do not."""

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

YS = np.array([1, 0, 1])


@ppl.model
def hmm(ys):
    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.3, 0.8])[x]))
        ppl.sample("y", dist.Bernoulli(jnp.array([0.1, 0.7])[x]), obs=y)
        return x, x

    return jax.lax.scan(step, ppl.sample("x0", dist.Bernoulli(0.4)), ys)[1]


@ppl.model
def looking(ys):
    """Propose a state by the datum and the state before it, with a carry of its own."""

    def step(carry, y):
        (x, t), p = carry, jnp.array([[0.2, 0.6], [0.5, 0.9]])
        x = ppl.sample("x", dist.Bernoulli(p[y, x] - 0.01 * t))
        ppl.deterministic("time", t)
        return (x, t + 1.0), x

    jax.lax.scan(step, (ppl.sample("x0", dist.Bernoulli(0.7)), 0.0), ys)


@ppl.model
def exact(ys):
    """The posterior: each state given the one before and all data from there on."""
    a, b = jnp.array([[0.7, 0.3], [0.2, 0.8]]), jnp.array([[0.9, 0.1], [0.3, 0.7]])

    def back(beta, y):
        joint = a * (b[:, y] * beta)[None, :]
        return joint.sum(1), joint / joint.sum(1, keepdims=True)

    beta, tables = jax.lax.scan(back, jnp.ones(2), ys, reverse=True)
    first = jnp.array([0.6, 0.4]) * beta

    def step(x, table):
        x = ppl.sample("x", dist.Bernoulli(table[x, 1]))
        return x, None

    jax.lax.scan(step, ppl.sample("x0", dist.Bernoulli(first[1] / first.sum())), tables)


@ppl.model
def plated():
    ppl.sample("x0", dist.Bernoulli(0.5))
    with ppl.plate("t", 3):
        ppl.sample("x", dist.Bernoulli(jnp.array([0.2, 0.5, 0.6])))


@ppl.model
def backwards(ys):
    """Propose the last state first."""

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.4, 0.6])[x]))
        return x, None

    x, _ = jax.lax.scan(step, 0, ys, reverse=True)
    ppl.sample("x0", dist.Bernoulli(jnp.array([0.4, 0.6])[x]))


@ppl.model
def nested(jitted=False):
    """A scan of scans, with a branch in it."""

    def inner(x, _):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.3, 0.6])[x]))
        ppl.factor("f", 0.5 * x)
        return x, x

    def outer(x, _):
        x, xs = jax.lax.scan(inner, x, None, length=2)
        z = jax.lax.cond(
            x == 1, lambda: ppl.sample("z", dist.Bernoulli(0.3)), lambda: jnp.zeros((), int)
        )
        return z, xs

    def run():
        return jax.lax.scan(outer, 0, None, length=2)

    return jax.jit(run)() if jitted else run()


@ppl.model
def nested_guide():
    """Draw z first, where the program draws it last; end with loops that draw nothing."""

    def inner(x, _):
        return ppl.sample("x", dist.Bernoulli(jnp.array([0.5, 0.8])[x])), None

    def outer(x, _):
        z = ppl.sample("z", dist.Bernoulli(0.1 + 0.8 * x))
        x, _ = jax.jit(lambda z: jax.lax.scan(inner, z, None, length=2))(z)
        return x, None

    x, _ = jax.lax.scan(outer, 1, None, length=2)
    jax.lax.scan(lambda c, _: (ppl.deterministic("c", c), None), x, None, length=2)


@ppl.model
def lanes(flat=False):
    """Lanes of a scan, some of which reach a branch; scales, masks, an array in one site."""

    def step(c, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.3, 0.6])[c]))
        there = lambda: ppl.sample("w", dist.Bernoulli(0.2))  # noqa: E731
        w = jax.lax.cond(x == 1, there, lambda: jnp.zeros((), int))
        ppl.sample("y", dist.Bernoulli(0.2 + 0.5 * w), obs=y)
        return x, w

    ys = jnp.array([[1, 0], [0, 0]])
    return jax.vmap(lambda y: jax.lax.scan(step, 0, y))(ys)


@ppl.model
def lanes_guide(whole=False):
    def step(c, _):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.6, 0.4])[c]))
        return x, ppl.sample("w", dist.Bernoulli(0.2 + 0.3 * x))

    if whole:  # in the program's axes: lane, iteration
        with ppl.plate("lane", 2, dim=-2), ppl.plate("time", 2, dim=-1):
            x = ppl.sample("x", dist.Bernoulli(0.6))
            ppl.sample("w", dist.Bernoulli(0.2 + 0.3 * x))
    else:
        jax.vmap(lambda _: jax.lax.scan(step, 0, None, length=2))(jnp.arange(2))


@ppl.model
def across():
    """Lanes inside the loop: the axes of the sites are the other way round."""

    def step(c, _):
        def one(c):
            x = ppl.sample("x", dist.Bernoulli(jnp.array([0.6, 0.4])[c]))
            return x, ppl.sample("w", dist.Bernoulli(0.2 + 0.3 * x))

        return jax.vmap(one)(c)

    jax.lax.scan(step, jnp.zeros(2, int), None, length=2)


@ppl.model
def boxed(kind):
    """A site inside each of JAX's operations that are entered, not merged."""

    def body(c):
        x = ppl.sample("x", dist.Bernoulli(0.2 + 0.5 * c))
        return x + ppl.sample("z", dist.Bernoulli(0.3 + 0.4 * x))

    jvp = jax.custom_jvp(body)
    jvp.defjvp(lambda p, t: (body(*p), t[0]))
    vjp = jax.custom_vjp(body)
    vjp.defvjp(lambda c: (body(c), ()), lambda res, ct: (ct,))
    kinds = {"jit": jax.jit(body), "checkpoint": jax.checkpoint(body), "jvp": jvp, "vjp": vjp}
    kinds["nested"] = jax.jit(lambda c: jax.checkpoint(jax.jit(body))(c))
    c = ppl.sample("c", dist.Bernoulli(0.4))
    out = kinds[kind](c.astype(float))
    ppl.factor("f", -0.7 * out)
    return out


@ppl.model
def plates():
    with ppl.plate("i", 2):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.2, 0.9])))
        ppl.sample("y", dist.Bernoulli(0.2 + 0.6 * x), obs=jnp.array([1, 0]))
    ppl.sample("v", dist.Bernoulli(jnp.array([0.5, 0.1])).to_event(1))
    return x


@ppl.model
def plates_guide():
    """One density where the program has two, and two where it has one."""
    ppl.sample("x", dist.Bernoulli(jnp.array([0.5, 0.5])).to_event(1))
    ppl.sample("v", dist.Bernoulli(jnp.array([0.4, 0.4])))


@ppl.model
def forked():
    """Lanes of a branch, so that it is the site that knows where it is."""
    x = ppl.sample("x", dist.Bernoulli(0.3))
    there = lambda: ppl.sample("w", dist.Bernoulli(0.2))  # noqa: E731
    one = lambda c: jax.lax.cond(c == x, there, lambda: 2 * x)  # noqa: E731
    return jax.vmap(one)(jnp.arange(2))


@ppl.model
def forked_guide():
    with ppl.plate("lane", 2):
        ppl.sample("w", dist.Bernoulli(jnp.array([0.7, 0.6])))


@ppl.model
def tie(address, length):
    """One joint density of all elements."""
    ppl.sample(address, dist.Bernoulli(jnp.full(length, 0.4)).to_event(1))


@ppl.model
def taken():
    """A program that has the addresses which would be used."""
    x = ppl.sample("x", dist.Bernoulli(0.2))
    ppl.factor("x/weight", 0.3 * x)
    return x + ppl.sample("x/weight'", dist.Bernoulli(0.5))


@ppl.model
def one(address="x", p=0.6):
    ppl.sample(address, dist.Bernoulli(p))


@ppl.model
def hidden_scan(ys):
    """The same chain in the loop of a checkpoint: proposed before the loop."""

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.array([0.3, 0.8])[x]))
        ppl.sample("y", dist.Bernoulli(jnp.array([0.1, 0.7])[x]), obs=y)
        return x, x

    return jax.checkpoint(lambda ys: jax.lax.scan(step, 0, ys)[1])(ys)


CASES = {
    "data-dependent": (lambda: hmm(YS), lambda: looking(YS)),
    "the posterior": (lambda: hmm(YS), lambda: exact(YS)),
    "a plate for a scan": (lambda: hmm(YS), plated),
    "backwards": (lambda: hmm(YS), lambda: backwards(YS)),
    "joint over a scan": (lambda: hmm(YS), lambda: tie("x", 3)),
    "part": (lambda: hmm(YS), lambda: one("x0")),
    "conditioned": (
        lambda: ppl.condition(hmm(YS), {"x0": np.array(1)}),
        lambda: ppl.do(looking(YS), {"x0": np.array(0)}),
    ),
    "scaled": (lambda: ppl.scale(hmm(YS), 0.5), lambda: looking(YS)),
    "masked": (lambda: ppl.mask(hmm(YS), YS == 1), lambda: looking(YS)),
    "in a checkpoint": (lambda: hidden_scan(YS), lambda: ppl.do(looking(YS), {"x0": np.array(0)})),
    "nested": (nested, nested_guide),
    "nested, in jit": (lambda: nested(jitted=True), nested_guide),
    "nested, scaled": (lambda: ppl.scale(nested(), 0.5), nested_guide),
    "lanes": (lanes, lanes_guide),
    "lanes, by plates": (lanes, lambda: lanes_guide(whole=True)),
    "lanes, across": (lanes, across),
    "vmapped branch": (forked, forked_guide),
    "plates": (plates, plates_guide),
    "addresses in use": (taken, one),
    "nothing": (lambda: hmm(YS), ppl.model(lambda: None)),
} | {
    f"in {kind}": (lambda kind=kind: boxed(kind), lambda: boxed_guide())
    for kind in ("jit", "checkpoint", "jvp", "vjp", "nested")
}


@ppl.model
def boxed_guide():
    """In another order than the program's."""
    z = jax.checkpoint(lambda: ppl.sample("z", dist.Bernoulli(0.6)))()
    ppl.sample("x", dist.Bernoulli(0.3 + 0.4 * z))
