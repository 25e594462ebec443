"""Programs with finite sites in loops to sum out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from tests.semantics.marginal_models import MU, SIMPLEX, TWO, Y4, Y23, means

# --- Loops --------------------------------------------------------------------------------------


def parameters(k=3):
    A = ppl.sample("A", dist.Dirichlet(jnp.ones((k, k))).to_event(1))
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([k]))
    return A, mu


@ppl.model
def hmm(y):
    A, mu = parameters()

    def step(z, y):
        z = ppl.sample("z", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(mu[z], 0.7), obs=y)
        return z, z

    return mu, jax.lax.scan(step, 0, y)[1]


@ppl.model
def hmm_initial(y):
    """The first state is drawn outside; the last one is used after the loop; time is carried."""
    A, mu = parameters()
    z0 = ppl.sample("z0", dist.Categorical(jnp.array(SIMPLEX[0])))
    ppl.sample("y0", dist.Normal(mu[z0], 0.7), obs=y[0])

    def step(state, y):
        z, t = state
        z = ppl.sample("z", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(mu[z] + 0.1 * t, 0.7), obs=y)
        return (z, t + 1), None

    (last, _), _ = jax.lax.scan(step, (z0, 0), y[1:])
    ppl.sample("end", dist.Bernoulli(0.1 + 0.2 * last), obs=1)


@ppl.model
def hmm_outer(y):
    """A site outside of the loop that every step reads."""
    A, mu = parameters()
    s = ppl.sample("s", dist.Bernoulli(0.4))

    def step(z, y):
        z = ppl.sample("z", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(mu[z], 0.7 + s), obs=y)
        return z, None

    jax.lax.scan(step, 1, y)
    ppl.factor("f", 0.2 * s)


@ppl.model
def hmm_reverse(y):
    A, mu = parameters()

    def step(z, row):
        y, shift = row
        z = ppl.sample("z", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(mu[z] + shift, 0.7), obs=y)
        return z, z * 0 + shift

    _, shifts = jax.lax.scan(step, 0, (y, jnp.arange(4.0)), reverse=True)
    return shifts


@ppl.model
def hmm_vectors(y):
    A, mu = parameters(2)

    def step(z, y):
        z = ppl.sample("z", dist.Categorical(A[z]))
        with ppl.plate("sensor", 3):
            ppl.sample("y", dist.Normal(mu[z], 0.7), obs=y)
        return z, None

    jax.lax.scan(step, 0, jnp.concatenate([y, y + 1]))


@ppl.model
def factorial(y):
    A, mu = parameters(2)

    def step(state, y):
        a, b = state
        a = ppl.sample("a", dist.Categorical(A[a]))
        b = ppl.sample("b", dist.Categorical(A[1 - b]))
        ppl.sample("y", dist.Normal(mu[a] - mu[b], 0.7), obs=y)
        return (a, b), None

    jax.lax.scan(step, (0, 1), y)


@ppl.model
def second_order(y):
    A, mu = parameters(2)

    def step(state, y):
        old, older = state
        z = ppl.sample("z", dist.Bernoulli(0.1 + 0.3 * A[old, older]))
        ppl.sample("y", dist.Normal(mu[z], 0.7), obs=y)
        return (z, old), None

    jax.lax.scan(step, (0, 1), jnp.concatenate([y, y - 1]))


@ppl.model
def sequences(y):
    """Sequences under vmap, each with a kind of its own."""
    A, mu = parameters()

    def sequence(row):
        kind = ppl.sample("kind", dist.Bernoulli(0.3))

        def step(z, y):
            z = ppl.sample("z", dist.Categorical(A[z]))
            ppl.sample("y", dist.Normal(mu[z], 0.7 + kind), obs=y)
            return z, None

        return jax.lax.scan(step, 0, row)[0]

    return jax.vmap(sequence)(y)


@ppl.model
def plate_in_scan(y):
    """A chain for each member of a plate inside the loop, and a flag for each element."""
    A, mu = parameters(2)

    def step(z, y):
        with ppl.plate("n", 2):
            z = ppl.sample("z", dist.Categorical(A[z]))
            out = ppl.sample("out", dist.Bernoulli(0.1))
            ppl.sample("y", dist.Normal(mu[z] * (1 - out), 0.7 + out), obs=y)
        return z, None

    jax.lax.scan(step, jnp.zeros(2, int), y.T)


@ppl.model
def switching(y):
    """A continuous state moves with the regime; both are carried."""
    A, mu = parameters(2)

    def step(state, y):
        z, x = state
        z = ppl.sample("z", dist.Categorical(A[z]))
        x = ppl.sample("x", dist.Normal(0.9 * x + mu[z], 0.5 + z))
        ppl.sample("y", dist.Normal(x, 0.7), obs=y)
        return (z, x), None

    jax.lax.scan(step, (0, 0.0), y)


@ppl.model
def moving(y):
    """What is carried is not the state but something computed from it and from the data."""
    A, mu = parameters(2)

    def step(state, y):
        mean, z = state
        ppl.sample("y", dist.Normal(mean, 0.7), obs=y)
        z = ppl.sample("z", dist.Categorical(A[z]))
        return (mu[z] * y, z), None

    mean, _ = jax.lax.scan(step, (0.5, 0), y)[0]
    ppl.sample("end", dist.Normal(mean, 1.0), obs=0.3)


@ppl.model
def loop_in_loop(y):
    """An outer chain whose steps hold an inner chain that starts from the outer state."""
    A, mu = parameters(2)

    def outer(z, row):
        z = ppl.sample("z", dist.Categorical(A[z]))

        def inner(x, y):
            x = ppl.sample("x", dist.Categorical(A[x]))
            ppl.sample("y", dist.Normal(mu[x] + 0.1 * z, 0.7), obs=y)
            return x, None

        last, _ = jax.lax.scan(inner, z, row)
        ppl.sample("e", dist.Bernoulli(0.3 + 0.4 * last), obs=1)
        return z, None

    jax.lax.scan(outer, 0, y)


@ppl.model
def short(y):
    """Fewer steps than it takes to become regular; each one remembers all before."""
    _, mu = parameters(2)

    def step(total, y):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        ppl.sample("y", dist.Normal(mu[z] + total, 0.7), obs=y)
        return total + z, None

    jax.lax.scan(step, 0, y[:3])


A2 = [[0.3, 0.7], [0.6, 0.4]]
CHAIN, PAIR = {"A": SIMPLEX, "mu": MU}, {"A": A2, "mu": MU[:2]}
LOOPS = {
    "hmm": (hmm, Y4, {"z": range(3)}, CHAIN),
    "hmm_initial": (hmm_initial, Y4, {"z0": range(3), "z": range(3)}, CHAIN),
    "hmm_outer": (hmm_outer, Y4, {"s": range(2), "z": range(3)}, CHAIN),
    "hmm_reverse": (hmm_reverse, Y4, {"z": range(3)}, CHAIN),
    "hmm_vectors": (hmm_vectors, Y23, {"z": range(2)}, PAIR),
    "factorial": (factorial, Y4, {"a": range(2), "b": range(2)}, PAIR),
    "second_order": (second_order, Y4, {"z": range(2)}, PAIR),
    "sequences": (sequences, Y23[:, :2], {"kind": range(2), "z": range(3)}, CHAIN),
    "plate_in_scan": (plate_in_scan, Y23[:, :2], {"z": range(2), "out": range(2)}, PAIR),
    "switching": (switching, Y4, {"z": range(2)}, {**PAIR, "x": [0.2, -0.5, 1.5, 0.0]}),
    "moving": (moving, Y4, {"z": range(2)}, PAIR),
    "loop_in_loop": (loop_in_loop, Y23[:, :2], {"z": range(2), "x": range(2)}, PAIR),
    "short": (short, Y4, {"z": range(2)}, PAIR),
}


# --- Nesting and other constructs ---------------------------------------------------------------


@ppl.model
def wrapped(y):
    mu = means(3)

    @jax.checkpoint
    @jax.jit
    def part(m):
        with ppl.plate("n", 4):
            z = ppl.sample("z", dist.Categorical(jnp.array(SIMPLEX[0])))
            ppl.sample("y", dist.Normal(jax.nn.softplus(m[z]), 1.0), obs=y)
        return z

    part(mu)


@ppl.model
def delayed(y):
    """Parts of the carry that lag behind one that is constant after the first step."""
    mu = means()

    def step(state, y):
        z, a, b, c = state
        z = ppl.sample("z", dist.Bernoulli(0.2 + 0.3 * z))
        ppl.sample("y", dist.Normal(mu[z] + a + b + c, 1.0), obs=y)
        return (z, 5.0, a, b), None

    jax.lax.scan(step, (0, 0.0, 7.0, 9.0), jnp.concatenate([y, y]))


@ppl.model
def rows_of_outer(y):
    """The loop reads rows that depend on an outer site, and gives such rows back."""
    mu = means()
    s = ppl.sample("s", dist.Bernoulli(0.4))

    def step(z, row):
        y, x = row
        z = ppl.sample("z", dist.Bernoulli(0.2 + 0.3 * z))
        ppl.sample("y", dist.Normal(mu[z] + x, 1.0), obs=y)
        return z, x * 2

    _, xs = jax.lax.scan(step, s, (y, s * jnp.arange(4.0)))
    ppl.sample("e", dist.Normal(jnp.sum(xs), 1.0), obs=0.1)


@ppl.model
def carried_only(y):
    """A loop in which nothing is summed, with a summed site in the carry."""
    mu = means()
    with ppl.plate("k", 2):
        z = ppl.sample("z", dist.Bernoulli(0.3))

    def step(c, y):
        with ppl.plate("k", 2):
            ppl.sample("y", dist.Normal(c, 1.0), obs=jnp.ones(2) * y)
        return c * 0.5 + mu[0], None

    c, _ = jax.lax.scan(step, mu[z], y)
    ppl.factor("f", 0.1 * c)


@ppl.model
def densities(y):
    """Many distributions whose parameters depend on the site, member by member."""
    mu = means()
    with ppl.plate("n", 2):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        m = mu[z]
        parts = dist.Normal(m[:, None] + jnp.arange(2.0), 1.0)
        half = dist.Categorical(jnp.ones(2) / 2)
        ppl.sample("mixture", dist.MixtureSameFamily(half, parts), obs=y[:2])
        ppl.sample("poisson", dist.Poisson(jnp.exp(m)), obs=np.array([2, 3]))
        ppl.sample("negative", dist.NegativeBinomial2(jnp.exp(m), 2.0), obs=np.array([2, 3]))
        ppl.sample("ordered", dist.OrderedLogistic(m, jnp.array([0.0, 1.0])), obs=np.array([1, 2]))
        ppl.sample("truncated", dist.TruncatedNormal(m, 1.0, low=-3.0, high=3.0), obs=y[:2])
        ppl.sample("t", dist.StudentT(3.0, m, 1.0), obs=y[:2])
        concentration = jnp.exp(m)[:, None] * jnp.ones(2)
        rows = np.array([[0.2, 0.8], [0.3, 0.7]])
        ppl.sample("dirichlet", dist.Dirichlet(concentration), obs=rows)


NESTING = {
    "wrapped": (wrapped, Y4, {"z": range(3)}, {"mu": MU}),
    "delayed": (delayed, Y4, {"z": range(2)}, TWO),
    "rows_of_outer": (rows_of_outer, Y4, {"s": range(2), "z": range(2)}, TWO),
    "carried_only": (carried_only, Y4, {"z": range(2)}, TWO),
    "densities": (densities, Y4, {"z": range(2)}, TWO),
}
