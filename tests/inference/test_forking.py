"""Forking: the same particles, in an order that copies little."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.inference.particles.forking import HEAVY, fork, settled

COUNT, WIDTH = 4, HEAVY // 4
VECTORS = list(itertools.combinations_with_replacement(range(COUNT), COUNT))


@pytest.fixture(scope="module")
def both():
    light = jnp.arange(COUNT)
    heavy = jax.random.normal(jax.random.key(0), (COUNT, WIDTH), jnp.float32)
    return {"light": light, "heavy": heavy}


def test_survivors_keep_their_places_and_nothing_else_changes():
    for vector in VECTORS:
        order = np.asarray(settled(jnp.asarray(vector)))
        assert sorted(order.tolist()) == list(vector)
        for i in vector:
            assert order[i] == i


def test_forking_is_taking_the_rows(both):
    forked = jax.jit(fork)
    for vector in VECTORS:
        moved, order = forked(both, jnp.asarray(vector))
        assert sorted(np.asarray(order).tolist()) == list(vector)
        for name, x in both.items():
            np.testing.assert_array_equal(moved[name], x[order])
    light = {"light": both["light"]}
    assert np.asarray(forked(light, jnp.asarray(VECTORS[3]))[1]).tolist() == list(VECTORS[3])


def test_forking_side_by_side(both):
    vectors = jnp.asarray(VECTORS)
    moved, orders = jax.vmap(fork, in_axes=(None, 0))(both, vectors)
    np.testing.assert_array_equal(moved["heavy"], both["heavy"][orders])
    moved, orders = jax.vmap(fork)(
        jax.tree.map(lambda x: jnp.stack([x, x + 1]), both), vectors[3:5]
    )
    np.testing.assert_array_equal(moved["light"], orders + jnp.arange(2)[:, None])


def test_derivatives_pass(both):
    vector = jnp.asarray((0, 2, 2, 3))

    def loss(x):
        moved, _ = fork({"heavy": x}, vector)
        return jnp.sum(jnp.sin(moved["heavy"]) * jnp.arange(1.0, COUNT + 1)[:, None])

    order = settled(vector)
    wanted = jnp.zeros(COUNT).at[order].add(jnp.arange(1.0, COUNT + 1))
    found = jax.jit(jax.grad(loss))(both["heavy"])
    np.testing.assert_allclose(found, wanted[:, None] * jnp.cos(both["heavy"]), rtol=1e-5)
    direction = jnp.ones_like(both["heavy"])
    slope = jax.jvp(loss, (both["heavy"],), (direction,))[1]
    np.testing.assert_allclose(slope, jnp.sum(found), rtol=1e-3)


@ppl.model
def with_memory(y):
    """A chain of bits whose particles remember all of it in a large array."""

    def step(carry, y):
        memory, time = carry
        bit = ppl.sample("bit", dist.Bernoulli(0.3 + 0.4 * memory[time]))
        ppl.sample("y", dist.Bernoulli(0.2 + 0.6 * bit), obs=y)
        return (memory.at[time + 1].set(bit), time + 1), None

    start = jnp.zeros(WIDTH, jnp.float32), jnp.zeros((), int)
    (memory, _), _ = jax.lax.scan(step, start, y)
    return memory[1:4]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("settings", [{}, {"lookahead": lambda c, t: 0.5 * c["bit"]}])
def test_populations_of_particles_that_hold_much_keep_the_measure(settings):
    program = with_memory(jnp.array([1, 0, 1]))
    report = ppl.check.preserves(lambda p: ppl.smc(p, 3, ess_threshold=1.0, **settings), program)
    assert report.passed, report
