"""One stream of random bits for many lanes.

Under `jax.vmap` a sampler needs a key for every lane: a key derived, and a few bits made of it, at
twice to four times the cost of one long row of bits. `stacked` keeps one key for all lanes as long
as only further keys are made of it, and draws the bits of all lanes at once. The rest of a sampler
is a function of its bits, whatever the distribution, and is vectorised as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._types import Array, Key


class _Lanes(NamedTuple):
    """A value with one axis in front for each level that maps it."""

    value: Any
    mapped: tuple[bool, ...]


class _Fresh(NamedTuple):
    """A key, or an array of keys, made of the sampler's own key alone: the same in all lanes."""

    key: Any


def stacked(
    sampler: Callable[..., Any],
    sizes: Sequence[int],
    key: Key,
    leaves: Sequence[Any],
    mapped: Sequence[Sequence[bool]],
) -> Array:
    """Draw from `sampler(key, leaves)` in every lane, independently given the leaves.

    **Meaning.** Every lane's value has the sampler's law at that lane's leaves, and lanes are
    independent, as with `jax.vmap` over `jax.random.split(key, sizes)`. Which values are drawn
    under a key differs from that.

    Args:
        sampler: gives one lane's array; its leaves are arrays without the lanes' axes.
        sizes: of the lanes' axes.
        key: one PRNG key.
        leaves: arrays, each with those axes in front that map it.
        mapped: for each axis, which leaves it maps.
    """
    flags = [*zip(*mapped, strict=True)]
    shapes = [_one_lane(x, sum(f)) for x, f in zip(leaves, flags, strict=True)]
    jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(sampler)(key, shapes))
    plain = (False,) * len(sizes)
    values = [_Lanes(x, f) for x, f in zip(leaves, flags, strict=True)]
    known = [_Lanes(c, plain) for c in consts]
    (out,) = _evaluate(jaxpr, [*known, _Fresh(key), *values], tuple(sizes))
    shape = [s if m else 1 for s, m in zip(sizes, out.mapped, strict=True)]
    own = jnp.shape(out.value)[sum(out.mapped) :]
    return jnp.broadcast_to(jnp.reshape(out.value, (*shape, *own)), (*sizes, *own))


def _one_lane(x: Any, levels: int) -> Any:
    kind = jax.typeof(x)
    return jax.ShapeDtypeStruct(kind.shape[levels:], kind.dtype, weak_type=kind.weak_type)


def _evaluate(jaxpr: _jax.Jaxpr, args: Sequence[Any], sizes: tuple[int, ...]) -> list[Any]:
    """Evaluate a sampler's jaxpr, constants first, over all lanes."""
    plain = (False,) * len(sizes)
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))

    def read(v: Any) -> Any:
        return _Lanes(v.val, plain) if isinstance(v, _jax.Literal) else env[v]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        if not any(isinstance(x, _Fresh) for x in values):
            outs = _bind(eqn, values, len(sizes))
        elif eqn.primitive.name in ("jit", "pjit"):
            inner, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
            outs = _evaluate(inner, [*(_Lanes(c, plain) for c in consts), *values], sizes)
        elif _makes_keys(eqn, values):
            outs = [_Fresh(x) for x in _jax.bind_equation(eqn, [x[0] for x in values])]
        elif eqn.primitive.name == "random_bits":
            outs = [_spread(_bits(eqn, sizes), values[0].key, sizes)]
        else:  # whatever else it does with a key, each lane does with its own
            split = lambda key: jax.random.split(key, sizes)  # noqa: E731
            own = [_spread(split, x.key, sizes) if isinstance(x, _Fresh) else x for x in values]
            outs = _bind(eqn, own, len(sizes))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _bits(eqn: _jax.JaxprEqn, sizes: tuple[int, ...]) -> Callable[[Any], Any]:
    shape, dtype = (*sizes, *eqn.params["shape"]), np.dtype(f"uint{eqn.params['bit_width']}")
    return lambda key: jax.random.bits(key, shape, dtype)


def _spread(draw: Callable[[Any], Any], key: Any, sizes: tuple[int, ...]) -> _Lanes:
    """Apply `draw`, whose result has the lanes' axes in front, to every key of an array."""
    for _ in jnp.shape(key):
        draw = jax.vmap(draw, out_axes=len(sizes))
    return _Lanes(draw(key), (True,) * len(sizes))


def _bind(eqn: _jax.JaxprEqn, values: Sequence[_Lanes], depth: int) -> list[_Lanes]:
    """Execute one equation in every lane, on the levels that map any of its operands."""

    def call(*args: Any) -> list[Any]:
        return _jax.bind_equation(eqn, args)

    levels = [tuple(x.mapped[i] for x in values) for i in range(depth)]
    for level in reversed(levels):
        if any(level):
            call = jax.vmap(call, in_axes=tuple(0 if m else None for m in level))
    mapped = tuple(map(any, levels))
    return [_Lanes(x, mapped) for x in call(*(x.value for x in values))]


def _makes_keys(eqn: _jax.JaxprEqn, values: Sequence[Any]) -> bool:
    """Tell whether an equation only makes keys of fresh ones, and the same in all lanes."""

    def is_key(v: Any) -> bool:
        return jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key)

    return all(map(is_key, eqn.outvars)) and all(
        isinstance(x, _Fresh) if is_key(v) else not any(x.mapped)
        for v, x in zip(eqn.invars, values, strict=True)
    )
