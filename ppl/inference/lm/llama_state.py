"""What a Llama remembers of a text, and how it reads a prompt."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ppl.inference.lm.attention import BLOCK, CHUNK, Cache
from ppl.inference.lm.decoder import Config, Weights, forward

SMALLEST = 32  # tokens that a prompt is padded to, at least


class LlamaState(eqx.Module):
    """What a Llama remembers of one text.

    The caches' axes are (layer, kv, token, size), padded, with how many tokens count. Texts may
    share the prompt's: under `vmap` it stays without an axis. `hidden` is the last output, normed.
    """

    prompt: Cache
    suffix: Cache
    hidden: Float[Array, " width"]

    @property
    def position(self) -> Int[Array, ""]:
        """How many tokens came after the prompt."""
        return self.suffix.length


def prefill(config: Config, weights: Weights, tokens: Sequence[int], room: int) -> LlamaState:
    """Read a prompt.

    **Meaning.** It is padded to a power of two, or a multiple of a block if it is long, and the
    room to a multiple of a chunk, so that similar prompts share compiled code. What pads is never
    seen.

    Args:
        config: the sizes.
        weights: the weights.
        tokens: the prompt, on the host; at least one token.
        room: how many tokens the text may grow by.

    Returns:
        The state after the prompt.
    """
    length = len(tokens)
    power = max(SMALLEST, 1 << (length - 1).bit_length())
    padded = np.zeros(power if power <= BLOCK else _up(length, BLOCK), np.int32)
    padded[:length] = tokens
    return _prefill(config, weights, padded, np.int32(length), _up(room, CHUNK))


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@functools.partial(jax.jit, static_argnames=("config", "room"))
def _prefill(
    config: Config, weights: Weights, tokens: Array, length: Array, room: int
) -> LlamaState:
    hidden, keys, values = forward(config, weights, tokens[None, None])
    shape = (config.layers, config.kv_heads, room, config.size)
    empty = Cache(jnp.zeros(shape, keys.dtype), jnp.zeros(shape, keys.dtype), jnp.int32(0))
    return LlamaState(Cache(keys[0, 0], values[0, 0], length), empty, hidden[0, 0, length - 1])
