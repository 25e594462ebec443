"""The distribution of the next token."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, constraints

from ppl.resampling.base import LessThanInfinity

#: Tokens are drawn in two stages: a block of this many, then one of its tokens.
BLOCK = 256


class NextToken(Distribution):
    """Draw a token.

    **Meaning.** Token v has probability exp(logits[v]) over the sum of these; a logit of -inf is
    probability zero.

    A draw needs one or two uniform numbers, where NumPyro's categorical distribution needs one for
    every token. The two stages keep the relative precision of small probabilities in float32.

    Args:
        logits: not normalised, at least one of them finite; the last axis is tokens.
        validate_args: NumPyro's switch for checks of parameters and values.
    """

    arg_constraints = {"logits": LessThanInfinity()}  # noqa: RUF012

    def __init__(self, logits: Any, *, validate_args: bool | None = None):
        self.logits = jnp.asarray(logits)
        super().__init__(self.logits.shape[:-1], (), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The constraint that draws satisfy."""
        return constraints.integer_interval(0, self.logits.shape[-1] - 1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw tokens.

        Args:
            key: PRNG key.
            sample_shape: leading axes.
        """
        size = self.logits.shape[-1]
        mass = jax.nn.softmax(self.logits, axis=-1)
        uniforms = jax.random.uniform(key, (2, *sample_shape, *self.batch_shape), mass.dtype)
        if size <= BLOCK:
            return _invert(mass, uniforms[0])
        blocks = math.ceil(size / BLOCK)
        rest = [(0, 0)] * (mass.ndim - 1) + [(0, blocks * BLOCK - size)]
        mass = jnp.pad(mass, rest).reshape(*mass.shape[:-1], blocks, BLOCK)
        block = _invert(jnp.sum(mass, -1), uniforms[0])
        batch = self.batch_shape
        rows = [jax.lax.broadcasted_iota(int, batch, axis) for axis in range(len(batch))]
        inside = mass[(*rows, block)]
        return block * BLOCK + _invert(inside, uniforms[1])

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Evaluate the log mass.

        Args:
            value: tokens.
            intermediates: unused; part of NumPyro's interface.
        """
        logits = jax.nn.log_softmax(self.logits, axis=-1)
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        logits = jnp.broadcast_to(logits, (*shape, logits.shape[-1]))
        index = jnp.broadcast_to(value, shape)[..., None]
        return jnp.take_along_axis(logits, index, axis=-1)[..., 0]


def _invert(mass: Any, uniform: Any) -> Any:
    """Find where the cumulated mass passes a share of all of it, never at a mass of zero."""
    total = jnp.cumsum(mass, axis=-1)
    found = jnp.sum(total <= (uniform * total[..., -1])[..., None], axis=-1)
    last = mass.shape[-1] - 1 - jnp.argmax(jnp.flip(mass > 0, axis=-1), axis=-1)
    return jnp.minimum(found, last)
