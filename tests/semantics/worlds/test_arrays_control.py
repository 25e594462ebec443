"""Loops and branches without sites, run for all worlds at once, against JAX world by world."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist

pytestmark = pytest.mark.usefixtures("x64")

TABLE = np.array([0.3, 0.7])


def switch(x, y):
    cases = [lambda v: (v * 2.0, jnp.zeros(2)), lambda v: (v + 1.0, v * jnp.ones(2))]
    return jax.lax.switch(x, [*cases, lambda v: (v - 1.0, jnp.arange(2.0))], jnp.array(TABLE)[y])


def branch_of_one_world(x, y):
    return jax.lax.cond(jnp.sum(TABLE) > 0.5, lambda a: a + 1, lambda a: a - 1, x)


def nested(x, y):
    def step(c, u):
        c = jax.lax.cond(u == y, lambda c: c + x, lambda c: 2 * c, c)
        return c, (c, u)

    return jax.lax.scan(step, x, jnp.arange(4))


def backwards(x, y):
    def step(c, u):
        return c * 0.5 + u * jnp.array(TABLE)[y], c

    return jax.lax.scan(step, 1.0 * x, jnp.arange(3.0) + y, reverse=True)


def shared(x, y):
    return jax.lax.scan(lambda c, u: (c + u, 2 * u), 0.0, jnp.array(TABLE)), x


def long(x, y):
    return jax.lax.scan(lambda c, _: (c + y, None), x, None, length=100)


def without_outputs(x, y):
    jax.lax.cond(x == y, lambda: None, lambda: None)
    jax.lax.scan(lambda c, _: (c, None), None, None, length=3)
    return x


@pytest.mark.parametrize(
    "fun", [switch, branch_of_one_world, nested, backwards, shared, long, without_outputs]
)
def test_agrees_with_jax_in_every_world(fun):
    @ppl.model
    def model():
        x = ppl.sample("x", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        y = ppl.sample("y", dist.Bernoulli(0.4))
        return x, y, fun(x, y)

    measure = ppl.enumerate(model())
    assert len(measure) == 6
    for (x, y, found), mass in measure:
        assert mass == pytest.approx([0.2, 0.3, 0.5][int(x)] * [0.6, 0.4][int(y)], rel=1e-12)
        expected = fun(jnp.asarray(x), jnp.asarray(y))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), found, expected)
