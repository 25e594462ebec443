"""Attention of new tokens to a shared prompt, to each text's own cache, and to one another."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 16  # tokens of a text's cache at a time
BLOCK = 512  # tokens of a long prompt at a time

Partial = tuple[Array, Array, Array]  # maximum, sum of weights, weighted values


def _partial(scores: Array, values: Array, spec: str, dtype: jnp.dtype) -> Partial:
    largest = scores.max(-1, keepdims=True)
    # Where nothing is visible the maximum is minus infinity; any finite one will do there.
    largest = jnp.maximum(largest, jnp.finfo(dtype).min)
    weights = jnp.exp(scores - largest)
    out = jnp.einsum(spec, weights.astype(values.dtype), values, preferred_element_type=dtype)
    return largest, weights.sum(-1, keepdims=True), out


def _merge(a: Partial, b: Partial) -> Partial:
    largest = jnp.maximum(a[0], b[0])
    left, right = jnp.exp(a[0] - largest), jnp.exp(b[0] - largest)
    return largest, a[1] * left + b[1] * right, a[2] * left + b[2] * right


def _scores(spec: str, queries: Array, keys: Array, visible: Array, dtype: jnp.dtype) -> Array:
    scores = jnp.einsum(spec, queries, keys, preferred_element_type=dtype)
    return jnp.where(visible, scores, -jnp.inf)


class Cache(NamedTuple):
    """Keys and values of texts, all layers in one array, and how many of their tokens count.

    A prompt's axes are (group, layer, kv, token, size) and its length's are (group); a text's own
    are (group, lane, layer, kv, token, size) and (group, lane).
    """

    keys: Array
    values: Array
    length: Array


def attend(
    queries: Float[Array, "group lane token kv repeat size"],
    keys: Float[Array, "group lane token kv size"],
    values: Float[Array, "group lane token kv size"],
    layer: int = 0,
    prompt: Cache | None = None,
    suffix: Cache | None = None,
) -> Float[Array, "group lane token kv repeat size"]:
    """Mix the values of all that each new token sees.

    **Meaning.** One softmax over the prompt, the text so far and the new tokens up to this one, in
    parts that are merged. The part of the texts so far costs in proportion to the longest of them,
    not to the room for them.

    Args:
        queries: those of the new tokens, scaled.
        keys: those of the new tokens, among which attention is causal.
        values: likewise.
        layer: which layer of the caches.
        prompt: what the lanes of a group share.
        suffix: what each lane has for itself.

    Returns:
        The mixed values.

    Source: Milakov and Gimelshein 2018 (the softmax in parts).
    """
    dtype = jnp.promote_types(queries.dtype, jnp.float32)
    group, lane, token, kv, repeat, size = queries.shape
    # Rows are (token, repeat): the queries that read the same keys.
    rows = queries.transpose(0, 1, 3, 2, 4, 5).reshape(group, lane, kv, token * repeat, size)
    state = _read_own(rows, keys, values, dtype)
    if prompt is not None:
        k, v = prompt.keys[:, layer], prompt.values[:, layer]
        visible = jnp.arange(k.shape[2]) < prompt.length[:, None, None, None, None]
        scores = _scores("glkmd,gkpd->glkmp", rows, k, visible, dtype)
        state = _merge(state, _partial(scores, v, "glkmp,gkpd->glkmd", dtype))
    if suffix is not None:
        state = _read_suffix(rows, layer, suffix, state)
    mixed = (state[2] / state[1]).astype(queries.dtype)
    mixed = mixed.reshape(group, lane, kv, token, repeat, size)
    return mixed.transpose(0, 1, 3, 2, 4, 5)


def _read_own(rows: Array, keys: Array, values: Array, dtype: jnp.dtype) -> Partial:
    token = keys.shape[2]
    repeat = rows.shape[3] // token

    def read(first: Array | int, rows: Array) -> Partial:
        index = first + jnp.arange(rows.shape[3]) // repeat
        visible = index[:, None] >= jnp.arange(token)
        scores = _scores("glkmd,gltkd->glkmt", rows, keys, visible, dtype)
        return _partial(scores, values, "glkmt,gltkd->glkmd", dtype)

    if token <= BLOCK or token % BLOCK:
        return read(0, rows)
    # A part of the queries at a time: all scores of a long prompt at once would fill the memory.
    parts = rows.reshape(*rows.shape[:3], token // BLOCK, BLOCK * repeat, -1)
    firsts = jnp.arange(0, token, BLOCK)
    read_parts = jax.lax.map(lambda x: read(*x), (firsts, jnp.moveaxis(parts, 3, 0)))
    joined = (jnp.moveaxis(x, 0, 3).reshape(*rows.shape[:4], -1) for x in read_parts)
    largest, total, out = joined
    return largest, total, out


def _read_suffix(rows: Array, layer: int, suffix: Cache, state: Partial) -> Partial:
    dtype = state[0].dtype

    def part(cache: Array, first: Array) -> Array:
        # Out of the whole array: a layer taken out before the loop would be copied whole.
        sizes = (*cache.shape[:2], 1, cache.shape[3], CHUNK, cache.shape[5])
        starts = [jnp.asarray(i, first.dtype) for i in (0, 0, layer, 0, first, 0)]
        return jax.lax.dynamic_slice(cache, starts, sizes)[:, :, 0]

    def read(index: Array, state: Partial) -> Partial:
        first = index * CHUNK
        visible = first + jnp.arange(CHUNK) < suffix.length[:, :, None, None, None]
        scores = _scores("glkmd,glktd->glkmt", rows, part(suffix.keys, first), visible, dtype)
        v = part(suffix.values, first)
        return _merge(state, _partial(scores, v, "glkmt,glktd->glkmd", dtype))

    trips = (suffix.length.max() + CHUNK - 1) // CHUNK
    return jax.lax.fori_loop(0, trips, read, state)
