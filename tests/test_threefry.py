"""Faster bits are JAX's bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl._threefry import LEAST, faster

DRAWS = {
    "normal": jax.random.normal,
    "uniform": jax.random.uniform,
    "categorical": lambda key, shape: jax.random.categorical(key, jnp.zeros(3), shape=shape),
    "bits": jax.random.bits,
}


@pytest.mark.parametrize("shape", [(3,), (LEAST,), (3, LEAST + 1)], ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_equal(name, shape):
    key = jax.random.key(3)
    draw = jax.jit(DRAWS[name], static_argnums=1)
    np.testing.assert_array_equal(draw(faster(key), shape), draw(key, shape))


@pytest.mark.usefixtures("x64")
def test_draws_in_double_precision_are_equal():
    key = jax.random.key(3)
    one, two = (jax.random.normal(k, (2 * LEAST,)) for k in (faster(key), key))
    assert one.dtype == np.float64
    np.testing.assert_array_equal(one, two)


def test_many_keys_draw_as_before():
    keys = jax.random.split(jax.random.key(1), 3)
    draw = lambda k: jax.random.normal(k, (LEAST,))  # noqa: E731
    one, two = jax.vmap(lambda k: draw(faster(k)))(keys), jax.vmap(draw)(keys)
    np.testing.assert_array_equal(one, two)


def test_keys_of_another_generator_stay():
    key = jax.random.key(0, impl="rbg")
    assert faster(key) is key
