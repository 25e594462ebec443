"""JAX's random bits for large arrays, twice as fast on CPU.

JAX's CPU lowering of the Threefry hash loops over its rounds, and so writes the whole array to
memory once a round. Here the rounds are written out, and XLA fuses them with what uses the bits.
The bits are JAX's own, whichever way they are computed.

Source: Salmon, Moraes, Dror and Shaw (2011), Threefry-2x32 with 20 rounds.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax

#: Fewer bits than these are not worth the longer compilation.
LEAST = 512

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def faster(key: Any) -> Any:
    """Give a key that draws the same bits faster, if it is a key of JAX's default generator."""
    if not (_jax.is_threefry(key) and jax.config.jax_threefry_partitionable):  # pyright: ignore[reportAttributeAccessIssue]
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_unrolled())


@functools.cache
def _unrolled() -> Any:
    return _jax.threefry_with(_bits, name="threefry2x32 unrolled", tag="ppl")


def _bits(key: Any, width: int, shape: tuple[int, ...]) -> Any:
    size = math.prod(shape)
    if width not in (32, 64) or not LEAST <= size < 2**32:
        return _jax.threefry_bits(key, width, shape)
    return _counted(key, np.uint32(0), width, shape)


def _counted(key: Any, high: Any, width: int, shape: tuple[int, ...]) -> Any:
    """Hash as many 64-bit counters as there are elements, of one upper half."""
    low = jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    one, two = _hash(key[0], key[1], jnp.zeros_like(low) + high, low)
    if width == 32:
        return one ^ two
    return (one.astype(np.uint64) << np.uint64(32)) | two.astype(np.uint64)


def rows(key: Any, numbers: Any) -> Any:
    """Make of a key many that are cheap: three words for each number, which `row_key` makes a key.

    What one draws depends on its number, and neither on the others nor on their count.

    Args:
        key: of JAX's default generator.
        numbers: from 0, fewer than 2 ** 32.
    """
    number = jnp.asarray(numbers).astype(np.uint32)[..., None]
    words = jnp.broadcast_to(jax.random.key_data(key), (*number.shape[:-1], 2))
    return jnp.concatenate([words, number], -1)


def row_key(words: Any) -> Any:
    """Make three words of `rows` a key: it draws, and no keys are made of it."""
    return jax.random.wrap_key_data(words, impl=_rowed())


@functools.cache
def _rowed() -> Any:
    def bits(key: Any, width: int, shape: tuple[int, ...]) -> Any:
        if width not in (32, 64):
            raise TypeError(f"a row's key draws numbers of 32 or 64 bits, not of {width}")
        return _counted(key, key[2], width, shape)

    return _jax.threefry_with(bits, name="threefry2x32 by rows", tag="pplrow", words=3)


def _hash(key0: Any, key1: Any, x: Any, y: Any) -> tuple[Any, Any]:
    keys = (key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for by in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(by)) | (y >> np.uint32(32 - by)))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return x, y
