"""Forking: particles without offspring give their places to copies of others."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from ppl._types import PyTree

#: Where a particle holds an array of so many bytes, copying costs more than choosing what to copy.
HEAVY = 2**14


def fork(values: PyTree, ancestors: Any) -> tuple[PyTree, Any]:
    """Put particles in the places of others.

    Where particles hold much, each that has offspring keeps its place, and only those without get
    another's values: which particles there are is the same, and little is copied.

    Args:
        values: what each particle holds.
        ancestors: sorted indices, as many as there are particles.

    Returns:
        What each holds then, and for each place the particle that was put there.
    """
    leaves, tree = jax.tree.flatten(values)
    heavy = [_row_bytes(x) >= HEAVY for x in leaves]
    if any(heavy):
        ancestors = settled(ancestors)
    some = iter(_copy([x for x, h in zip(leaves, heavy, strict=True) if h], ancestors))
    moved = [next(some) if h else x[ancestors] for x, h in zip(leaves, heavy, strict=True)]
    return jax.tree.unflatten(tree, moved), ancestors


def _row_bytes(x: Any) -> int:
    return math.prod(jnp.shape(x)[1:]) * jnp.result_type(x).itemsize


def settled(ancestors: Any) -> Any:
    """Rearrange sorted ancestors so that every particle with offspring is its own first offspring.

    Args:
        ancestors: sorted indices, as many as there are particles.
    """
    count = ancestors.shape[0]
    again = jnp.concatenate([jnp.zeros(1, bool), ancestors[1:] == ancestors[:-1]])
    place = jnp.where(again, jnp.cumsum(again) - 1, count)
    copies = jnp.zeros_like(ancestors).at[place].set(ancestors, mode="drop")
    lives = jnp.zeros(count, bool).at[ancestors].set(True)
    free = jnp.maximum(jnp.cumsum(~lives) - 1, 0)
    return jnp.where(lives, jnp.arange(count, dtype=ancestors.dtype), copies[free])


def _gather(arrays: list[Any], ancestors: Any) -> list[Any]:
    return [x[ancestors] for x in arrays]


@jax.custom_jvp
def _copy(arrays: list[Any], ancestors: Any) -> list[Any]:
    return list(_in_place(arrays, ancestors)) if arrays else []


@_copy.defjvp
def _copy_jvp(primals: Any, tangents: Any) -> Any:
    arrays, ancestors = primals
    return _copy(arrays, ancestors), _gather(tangents[0], ancestors)


@custom_vmap
def _in_place(arrays: list[Any], ancestors: Any) -> list[Any]:
    """Copy one particle after the other into the places that change."""
    own = jnp.arange(ancestors.shape[0], dtype=ancestors.dtype)
    changes = ancestors != own
    places = jnp.argsort(~changes)

    def one(k: Any, arrays: list[Any]) -> list[Any]:
        to = places[k]
        take, put = jax.lax.dynamic_index_in_dim, jax.lax.dynamic_update_index_in_dim
        return [put(x, take(x, ancestors[to], 0), to, 0) for x in arrays]

    return jax.lax.fori_loop(0, jnp.sum(changes), one, arrays)


@_in_place.def_vmap
def _in_place_rule(size: int, batched: Any, arrays: Any, ancestors: Any) -> Any:
    """Gather, where several populations are side by side: they copy different places."""
    over_arrays, over_ancestors = batched
    axes = ([0 if b else None for b in over_arrays], 0 if over_ancestors else None)
    out = jax.vmap(_gather, in_axes=axes, axis_size=size)(arrays, ancestors)
    return out, [True] * len(out)
