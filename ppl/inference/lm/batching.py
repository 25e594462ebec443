"""How many texts are read at once: whatever the nesting of `vmap`, as lanes of one call."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ppl._types import PyTree
from ppl.inference.lm import decoded
from ppl.inference.lm.attention import Cache
from ppl.inference.lm.decoder import Config, Weights, forward


@functools.partial(jax.jit, static_argnames="config")
def advance(
    config: Config,
    weights: Weights,
    serial: Int[Array, ""],
    prompt: Cache,
    suffix: Cache,
    tokens: Int[Array, " token"],
    count: Int[Array, ""],
) -> tuple[Array, Array, Array]:
    """Read new tokens of one text.

    **Meaning.** Under `vmap` all texts are lanes of one computation, which reads the weights and
    the prompt once if these have no axis. Texts of several prompts are lanes in groups. If no text
    has a token that counts, nothing is computed.

    Args:
        config: the sizes.
        weights: the weights.
        serial: the number under which the tokens are counted.
        prompt: what was read first, with axes (layer, kv, token, size).
        suffix: what was read since.
        tokens: the new tokens.
        count: how many of them count; what comes back for the others is arbitrary.

    Returns:
        The outputs (token, width), and keys and values (layer, kv, token, size).
    """
    lane = jax.tree.map(lambda x: jnp.asarray(x)[None, None], (suffix, tokens, count))
    group = jax.tree.map(lambda x: jnp.asarray(x)[None], prompt)
    out = _lanes(config)((weights, jnp.asarray(serial)), group, *lane)
    return jax.tree.map(lambda x: x[0, 0], out)


@functools.cache
def _lanes(config: Config) -> Any:
    """Make the function of many lanes (group, lane, ...), which is its own batching rule."""

    @jax.custom_batching.custom_vmap
    def lanes(model: Any, prompt: Cache, suffix: Cache, tokens: Array, count: Array) -> PyTree:
        weights, serial = model

        def compute() -> PyTree:
            return forward(config, weights, tokens, prompt, suffix)

        def read() -> PyTree:
            decoded.record(serial, count)
            return compute()

        def skip() -> PyTree:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))

        # The caches are written in place only if all that reads them is surely over: that is, in a
        # conditional, which must stay one even where XLA could tell which branch it takes.
        some = jax.lax.optimization_barrier(jnp.any(count > 0))
        return jax.lax.cond(some, read, skip)

    @lanes.def_vmap
    def _(size: int, batched: Any, model: Any, prompt: Cache, *lane: Any) -> Any:
        over_model, over_prompt, *over_lane = batched
        everything = (model, prompt, *lane)
        if _any(over_model):  # several models: one after the other
            moving, fixed = _split(everything, tuple(batched))
            out = jax.lax.map(lambda m: lanes(*_join(m, fixed)), moving)
        elif _any(over_prompt):  # several prompts: more groups
            spread = _spread(size, (over_prompt, *over_lane), (prompt, *lane))
            merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), spread)
            out = lanes(model, *merged)
            out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
        else:  # one prompt: more lanes of each group
            spread = _spread(size, tuple(over_lane), lane)
            merged = jax.tree.map(
                lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]), spread
            )
            out = lanes(model, prompt, *merged)
            out = jax.tree.map(
                lambda x: x.reshape(x.shape[0], size, -1, *x.shape[2:]).swapaxes(0, 1), out
            )
        return out, jax.tree.map(lambda _: True, out)

    return lanes


def _any(batched: PyTree) -> bool:
    return any(jax.tree.leaves(batched))


def _spread(size: int, batched: PyTree, values: PyTree) -> PyTree:
    def give(there: bool, x: Array) -> Array:
        return x if there else jnp.broadcast_to(x, (size, *x.shape))

    return jax.tree.map(give, batched, values)


def _split(values: PyTree, batched: PyTree) -> tuple[PyTree, PyTree]:
    moving = jax.tree.map(lambda there, x: x if there else None, batched, values)
    fixed = jax.tree.map(lambda there, x: None if there else x, batched, values)
    return moving, fixed


def _join(moving: PyTree, fixed: PyTree) -> PyTree:
    return jax.tree.map(
        lambda m, f: f if m is None else m, moving, fixed, is_leaf=lambda x: x is None
    )
