"""Factors over enumerated sites, and their elimination by `logsumexp`.

A factor is a table of log weights: an axis for each dimension it depends on, then one for each
group of members. Members choose separately, so summing a site out of a factor happens member by
member, and what is left is added up over the members that no remaining dimension tells apart. This
is variable elimination with plates (Obermeyer et al. 2019, *Tensor variable elimination for
plated factor graphs*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.semantics.sums.lanes import Dim, Group, Meeting, Value


class Factor(NamedTuple):
    """Log weights of shape (*dims, *groups)."""

    array: Any
    dims: tuple[Dim, ...]
    groups: tuple[Group, ...]


class Elimination(NamedTuple):
    """One step of the elimination: the table that a dimension was summed out of."""

    dim: Dim
    table: Factor


def factor_of(value: Value) -> Factor:
    """Make a factor of elementwise log weights: add up all axes that are not members'."""
    axes, rank = value.axes, len(value.dims)
    groups = tuple(g for g in axes if g is not None)
    for d in value.dims:
        missing = [g for g in d.groups if g not in groups]
        if missing or len(set(d.groups)) < len(d.groups):
            raise Meeting("a score", [d], missing or d.groups)
    wanted = {g for d in value.dims for g in d.groups}
    rest = tuple(rank + i for i, g in enumerate(axes) if g not in wanted)
    array = jnp.sum(value.array, axis=rest) if rest else value.array
    return Factor(array, value.dims, tuple(g for g in groups if g in wanted))


def laid_out(factor: Factor, dims: Sequence[Dim], groups: Sequence[Group]) -> Any:
    """Bring a factor's axes in the given order, with axes of size one where it has none."""
    own = [*factor.dims, *(g.root for g in factor.groups)]
    wanted = [*dims, *groups]
    array = jnp.transpose(factor.array, [own.index(x) for x in wanted if x in own])
    return jnp.expand_dims(array, [i for i, x in enumerate(wanted) if x not in own])


def combine(factors: Sequence[Factor]) -> Factor:
    """Add factors over the union of their dimensions; all have the same groups."""
    dims = tuple(sorted({d for f in factors for d in f.dims}, key=lambda d: d.number))
    groups = tuple(sorted(_groups(factors), key=lambda g: g.number))
    total = laid_out(factors[0], dims, groups)
    for f in factors[1:]:
        total = total + laid_out(f, dims, groups)
    return Factor(total, dims, groups)


def _groups(factors: Iterable[Factor]) -> set[Group]:
    return {g.root for f in factors for g in f.groups}


def eliminate(
    factors: Sequence[Factor],
    keep: Callable[[Dim], bool],
    tape: list[Any] | None = None,
) -> list[Factor]:
    """Sum every dimension out that is not kept, the cheapest first; inner members before outer."""
    factors = list(factors)
    while True:
        dims = {d for f in factors for d in f.dims if not keep(d)}
        if not dims:
            return factors
        ready = []
        for d in sorted(dims, key=lambda d: d.number):
            touching = [f for f in factors if d in f.dims]
            if _groups(touching) <= set(d.groups):
                ready.append((_cost(touching), d.number, d, touching))
        if not ready:
            raise Meeting("scores that couple members of different plates", list(dims))
        *_, dim, touching = min(ready, key=lambda r: r[:2])
        table = combine(touching)
        if tape is not None:
            tape.append(Elimination(dim, table))
        rest = [f for f in factors if dim not in f.dims]
        factors = [*rest, _summed(table, dim)]


def _cost(factors: Sequence[Factor]) -> int:
    return math.prod(d.size for d in {d for f in factors for d in f.dims})


def _summed(table: Factor, dim: Dim) -> Factor:
    array = logsumexp(table.array, table.dims.index(dim))
    dims = tuple(d for d in table.dims if d is not dim)
    wanted = {g for d in dims for g in d.groups}
    gone = tuple(len(dims) + i for i, g in enumerate(table.groups) if g not in wanted)
    array = jnp.sum(array, axis=gone) if gone else array
    return Factor(array, dims, tuple(g for g in table.groups if g in wanted))


def logsumexp(x: Any, axis: int) -> Any:
    """Sum in the log domain; where every term is impossible, -inf with derivative zero."""
    peak = jnp.max(jax.lax.stop_gradient(x), axis, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    total = jnp.sum(jnp.exp(x - peak), axis)
    some = total != 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + jnp.squeeze(peak, axis), -jnp.inf)


def merged(factors: Sequence[Factor]) -> list[Factor]:
    """Add up factors of the same dimensions and groups, in a fixed order."""
    alike: dict[Any, list[Factor]] = {}
    for f in factors:
        alike.setdefault((frozenset(f.dims), frozenset(g.root for g in f.groups)), []).append(f)
    sums = [combine(fs) for fs in alike.values()]
    return sorted(sums, key=lambda f: [d.number for d in f.dims])
