"""The Llama decoder: new tokens of many texts, against what they have read before."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppl.inference.lm.attention import Cache, attend


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a Llama, and two constants.

    Args:
        layers: how many.
        width: of the residual stream.
        inner: width of the feed-forward layers.
        heads: of the queries.
        kv_heads: of keys and values; each serves `heads // kv_heads` queries.
        size: of a head.
        theta: the base of the rotation's wavelengths.
        epsilon: what the norm adds to the mean square.
        context: how many tokens it was trained to read.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    size: int
    theta: float = 10_000.0
    epsilon: float = 1e-5
    context: int = 8192


class Layer(eqx.Module):
    """The weights of a layer, as matrices (out, in).

    Queries, keys and values are one matrix, and so are gate and up. Of the pairs that are rotated,
    a head holds first all firsts, then all seconds.
    """

    attention_norm: Float[Array, " width"]
    qkv: Float[Array, "heads width"]
    mix: Float[Array, "width heads"]
    forward_norm: Float[Array, " width"]
    gate_up: Float[Array, "inner width"]
    down: Float[Array, "width inner"]


class Weights(eqx.Module):
    """All weights of a decoder."""

    embedding: Float[Array, "token width"]
    layers: tuple[Layer, ...]
    norm: Float[Array, " width"]
    frequencies: Float[Array, " pair"]
    head: Float[Array, "token width"] | None


def _norm(x: Array, scale: Array, epsilon: float) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + epsilon)
    return (wide * scale).astype(x.dtype)


def _rotate(x: Array, cosine: Array, sine: Array) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, -1).astype(x.dtype)


@functools.partial(jax.jit, static_argnames="config")
def forward(
    config: Config,
    weights: Weights,
    tokens: Int[Array, "group lane token"],
    prompt: Cache | None = None,
    suffix: Cache | None = None,
) -> tuple[Array, Array, Array]:
    """Read new tokens.

    Args:
        config: the sizes.
        weights: the weights.
        tokens: the new tokens of every text.
        prompt: what the texts of a group have read together.
        suffix: what each text has read since.

    Returns:
        The last layer's output for each token, normed, with axes (group, lane, token, width), and
        the tokens' keys and values, with axes (group, lane, layer, kv, token, size).

    Source: Touvron et al. 2023, section 2.2; Ainslie et al. 2023 (shared keys and values); Su et
    al. 2021 (rotation).
    """
    c = config
    group, lane, token = tokens.shape
    before = 0 if prompt is None else prompt.length[:, None]
    before = before if suffix is None else before + suffix.length
    where = jnp.zeros((group, lane, 1), jnp.int32) + jnp.asarray(before)[..., None]
    angles = (where + jnp.arange(token))[..., None, None] * weights.frequencies
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    repeat, cut = c.heads // c.kv_heads, (c.heads + c.kv_heads) * c.size
    x = weights.embedding[tokens]
    caches = []
    for number, layer in enumerate(weights.layers):
        mixed = _norm(x, layer.attention_norm, c.epsilon) @ layer.qkv.T
        turning, values = mixed[..., :cut], mixed[..., cut:]
        turning = _rotate(turning.reshape(*tokens.shape, -1, c.size), cosine, sine)
        queries, keys = turning[..., : c.heads, :], turning[..., c.heads :, :]
        values = values.reshape(*tokens.shape, c.kv_heads, c.size)
        queries = queries.reshape(*tokens.shape, c.kv_heads, repeat, c.size) * c.size**-0.5
        out = attend(queries, keys, values, number, prompt, suffix)
        x = x + out.reshape(*tokens.shape, -1) @ layer.mix.T
        gate, up = jnp.split(_norm(x, layer.forward_norm, c.epsilon) @ layer.gate_up.T, 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ layer.down.T
        caches.append((keys, values))
    keys, values = (jnp.stack([c[i].swapaxes(2, 3) for c in caches], axis=2) for i in (0, 1))
    return _norm(x, weights.norm, c.epsilon), keys, values
