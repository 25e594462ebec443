"""Programs with finite sites to sum out; brute force over all values of them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

Y4 = np.array([0.1, -1.0, 2.0, 0.4])
Y23 = np.array([[0.3, -0.2, 1.0], [0.9, 0.1, -0.7]])


def combinations(program, summed):
    """Stack all values of the sites; `summed` gives an element's values."""
    choices = []
    for address, values in summed.items():
        site = program.sites[address]
        lead = site.shape[: len(site.shape) - np.ndim(values[0])]
        every = itertools.product(range(len(values)), repeat=int(np.prod(lead)))
        table = np.asarray(values)
        choices.append([table[list(c)].reshape(site.shape).astype(site.dtype) for c in every])
    combos = list(itertools.product(*choices))
    return {a: jnp.stack([c[i] for c in combos]) for i, a in enumerate(summed)}


def log_densities(program, summed, rest):
    """The log density at all values of the summed sites."""
    return jax.vmap(lambda z: ppl.log_density(program, {**rest, **z}))(
        combinations(program, summed)
    )


def arrays(**rest):
    return {a: jnp.asarray(x, float) for a, x in rest.items()}


SIMPLEX = [[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]
MU = [0.1, -0.4, 1.0]
TWO = {"mu": MU[:2]}


# --- Plates -------------------------------------------------------------------------------------


def means(k=2):
    return ppl.sample("mu", dist.Normal(0.0, 1.0).expand([k]))


@ppl.model
def mixture(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([3]))
    w = ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
    with ppl.plate("n", y.shape[0]):
        z = ppl.sample("z", dist.Categorical(w))
        ppl.sample("y", dist.Normal(mu[z], 0.5), obs=y)
    return mu, z


@ppl.model
def nested(y):
    """Sites at both levels: a kind for each row, an outlier flag for each element."""
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([3]))
    p = ppl.sample("p", dist.Beta(2.0, 3.0))
    with ppl.plate("row", 2, dim=-2):
        kind = ppl.sample("kind", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        ppl.sample("a", dist.Normal(mu[kind], 1.0), obs=y[:, :1])
        with ppl.plate("column", 3):
            out = ppl.sample("out", dist.Bernoulli(p))
            ppl.sample("y", dist.Normal(mu[kind] * (1 - out), 0.5 + 2 * out), obs=y)


@ppl.model
def chained(y):
    w = ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
    with ppl.plate("n", 3):
        a = ppl.sample("a", dist.Categorical(w))
        b = ppl.sample("b", dist.Bernoulli(logits=a - 1.0))
        c = ppl.sample("c", dist.Bernoulli(0.2 + 0.3 * b + 0.1 * a))
        ppl.sample("y", dist.Normal(c + a * b, 1.0), obs=y)


@ppl.model
def shared(y):
    """A site outside of the plate, one inside, and a scalar one that depends on both levels."""
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]))
    s = ppl.sample("s", dist.Bernoulli(0.3))
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.2 + 0.5 * s))
        ppl.sample("y", dist.Normal(mu[z], 1.0 + s), obs=y)
    ppl.factor("f", 0.3 * s * mu[0])


@ppl.model
def vmapped(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([3]))

    def one(y, p):
        z = ppl.sample("z", dist.Categorical(p))
        ppl.sample("y", dist.Normal(mu[z], 0.5), obs=y)
        return z

    return jax.vmap(one, in_axes=(0, 1))(y, jnp.asarray([*SIMPLEX, [0.3, 0.3, 0.4]]).T)


@ppl.model
def counts(y):
    p = ppl.sample("p", dist.Beta(2.0, 3.0))
    with ppl.plate("n", 2):
        k = ppl.sample("k", dist.Binomial(4, p))
        u = ppl.sample("u", dist.DiscreteUniform(1, 3))
        ppl.sample("y", dist.Normal(k / u, 1.0), obs=y)


@ppl.model
def vectors(y):
    """Regressions: the members lie on a batch axis of a matrix product, in MVN and Independent."""
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
    x = jnp.arange(6.0).reshape(2, 3) / 4
    with ppl.plate("n", 2):
        z = ppl.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        mean = jnp.einsum("nd,nd->n", beta[z], x)
        ppl.sample("a", dist.Normal(mean, 1.0), obs=y[:, 0])
        cov = jnp.eye(3) * (1.0 + z[:, None, None])
        ppl.sample("b", dist.MultivariateNormal(beta[z], cov), obs=y)
        ppl.sample("c", dist.Normal(beta[z], 0.5).to_event(1), obs=y + 1)


@ppl.model
def continuous(y):
    """A latent site that depends on a summed one."""
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        x = ppl.sample("x", dist.Normal(2.0 * z, 1.0 + z))
        t = ppl.sample("t", dist.Gamma(2.0, 1.0 + z))
        ppl.sample("y", dist.Normal(x, t), obs=y)
    return x


@ppl.model
def cells(y):
    p = ppl.sample("p", dist.Dirichlet(jnp.ones(3)))
    with ppl.plate("n", 2):
        c = ppl.sample("c", dist.Multinomial(2, p))
        ppl.sample("y", dist.Normal(c, 1.0).to_event(1), obs=y)


PLATES = {
    "mixture": (mixture, Y4, {"z": range(3)}, {"mu": MU, "w": SIMPLEX[0]}),
    "nested": (nested, Y23, {"kind": range(3), "out": range(2)}, {"mu": MU, "p": 0.3}),
    "chained": (
        chained,
        Y4[:3],
        {"a": range(3), "b": range(2), "c": range(2)},
        {"w": SIMPLEX[1]},
    ),
    "shared": (shared, Y4, {"s": range(2), "z": range(2)}, {"mu": MU[:2]}),
    "vmapped": (vmapped, Y4, {"z": range(3)}, {"mu": MU}),
    "counts": (counts, Y4[:2], {"k": range(5), "u": range(1, 4)}, {"p": 0.3}),
    "vectors": (vectors, Y23, {"z": range(2)}, {"beta": [[0.1, 1, -1], [0.5, -0.2, 0.3]]}),
    "continuous": (
        continuous,
        Y4,
        {"z": range(2)},
        {"x": Y4 + 0.3, "t": [0.5, 1.0, 2.0, 0.1]},
    ),
    "cells": (
        cells,
        Y23,
        {"c": [(2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)]},
        {"p": SIMPLEX[0]},
    ),
}


# --- Members that meet --------------------------------------------------------------------------


@ppl.model
def total(y):
    mu = means()
    with ppl.plate("n", 3):
        z = ppl.sample("z", dist.Bernoulli(0.3))
    ppl.sample("y", dist.Normal(jnp.sum(mu[z]), 1.0), obs=y[0])


@ppl.model
def indexed(y):
    """Groups by index instead of by nesting."""
    mu = means(3)
    with ppl.plate("group", 2):
        g = ppl.sample("g", dist.Categorical(jnp.array(SIMPLEX[0])))
    with ppl.plate("n", 4):
        ppl.sample("y", dist.Normal(mu[g][jnp.array([0, 1, 1, 0])], 1.0), obs=y)


@ppl.model
def neighbours(y):
    mu = means()
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.3))
    ppl.factor("f", 0.5 * jnp.sum(z[1:] == z[:-1]))
    with ppl.plate("m", 4):
        ppl.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@ppl.model
def crossed(y):
    mu = means()
    rows, columns = ppl.plate("r", 2, dim=-2), ppl.plate("c", 2)
    with rows:
        a = ppl.sample("a", dist.Bernoulli(0.3))
    with columns:
        b = ppl.sample("b", dist.Bernoulli(0.6))
    with ppl.plate("r", 2, dim=-2), ppl.plate("c", 2):
        ppl.sample("y", dist.Normal(mu[a] * (1 + b), 1.0), obs=y.reshape(2, 2))


@ppl.model
def pairs(y):
    mu = means()
    with ppl.plate("n", 2):
        z = ppl.sample("z", dist.Bernoulli(0.3))
    product = mu[z][:, None] * mu[z][None, :]
    with ppl.plate("i", 2, dim=-2), ppl.plate("j", 2):
        ppl.sample("y", dist.Normal(product, 1.0), obs=y.reshape(2, 2))


@ppl.model
def scanned(y):
    """A loop over the members."""
    mu = means()
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.3))

    def step(c, row):
        z, y = row
        ppl.sample("y", dist.Normal(mu[z] + c, 1.0), obs=y)
        return c + 1, None

    jax.lax.scan(step, 0.0, (z, y))


@ppl.model
def swapped(y):
    """Each member is scored beside another one."""
    mu = means()
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        w = ppl.sample("w", dist.Bernoulli(0.2 + 0.5 * z[::-1]))
        ppl.sample("y", dist.Normal(mu[w] + z, 1.0), obs=y)


MEETING = {
    "total": (total, Y4, {"z": range(2)}, TWO),
    "indexed": (indexed, Y4, {"g": range(3)}, {"mu": MU}),
    "neighbours": (neighbours, Y4, {"z": range(2)}, TWO),
    "crossed": (crossed, Y4, {"a": range(2), "b": range(2)}, TWO),
    "pairs": (pairs, Y4, {"z": range(2)}, TWO),
    "scanned": (scanned, Y4, {"z": range(2)}, TWO),
    "swapped": (swapped, Y4, {"z": range(2), "w": range(2)}, TWO),
}
