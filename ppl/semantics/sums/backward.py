"""Drawing what was summed out: the elimination, gone through backwards.

A dimension was summed out of a table over itself and dimensions that were summed out later. Going
back, those are drawn already, so that a row of the table is the conditional distribution. Members
draw separately; a loop is a loop in the other direction, which computes the tables of a step again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.distributions import Distribution
from ppl.errors import UnsupportedError, at, message
from ppl.semantics.sums.elimination import Elimination, Factor, laid_out
from ppl.semantics.sums.lanes import Dim, member_axes
from ppl.semantics.sums.loops import Iterated, Swept, retake
from ppl.semantics.sums.region import Found
from ppl.statements import sample


class Draws:
    """The indices drawn so far, by dimension; and, of loops, the values by address."""

    def __init__(self, indices: dict[Dim, Any] | None = None, prefix: str = ""):
        self.indices: dict[Dim, Any] = dict(indices or {})
        self.rows: dict[int, dict[str, Any]] = {}
        self.prefix, self._used = prefix, dict[str, int]()

    def name(self, kind: str) -> str:
        """Give an address that no other draw has."""
        count = self._used.get(kind, 0)
        self._used[kind] = count + 1
        return f"{self.prefix}{kind}_{count}" if count else f"{self.prefix}{kind}"


def go_back(tape: Sequence[Any], draws: Draws) -> None:
    """Draw every dimension of a tape, the last one summed out first."""
    for entry in reversed(tape):
        if isinstance(entry, Elimination):
            _draw(entry, draws)
        else:
            _sweep_back(entry, draws)


def _draw(entry: Elimination, draws: Draws) -> None:
    dim, table = entry
    groups, axes = dim.groups, [*table.dims, *(g.root for g in table.groups)]
    array = jnp.moveaxis(table.array, axes.index(dim), -1)
    index = []
    for axis in axes:
        if isinstance(axis, Dim):
            if axis is not dim:
                drawn = Factor(draws.indices[axis], (), axis.groups)
                index.append(laid_out(drawn, (), groups))
        else:
            shape = [axis.size if g is axis else 1 for g in groups]
            index.append(np.arange(axis.size).reshape(shape))
    logits = array[tuple(index)] if index else array
    draws.indices[dim] = sample(draws.name(f"{dim.address}/draw"), _categorical(logits))


def _categorical(logits: Any) -> Distribution:
    from ppl import distributions as dist

    return dist.Categorical(logits=logits)  # pyright: ignore


def _sweep_back(swept: Swept, draws: Draws) -> None:
    before = sorted(set(swept.back.values()), key=lambda d: d.number)
    prefix = f"{draws.name('loop')}/"

    def body(after: list[Any], row: Any) -> Any:
        step, back = retake(swept, row)
        mine = Draws(draws.indices, prefix)
        drawn = dict(zip(before, after, strict=True))
        mine.indices.update({new: drawn[old] for new, old in back.items()})
        go_back(step.region.tape or [], mine)
        return [mine.indices[d] for d in before], values_of(step.region.found, mine)

    last = [draws.indices[swept.final.get(d, d)] for d in before]
    it = swept.loop
    first, rows = jax.lax.scan(
        body, last, (it.rest(swept.done), swept.saved), reverse=not it.reverse
    )
    draws.indices.update(zip(before, first, strict=True))
    draws.rows[id(swept)] = rows


def values_of(found: Sequence[Any], draws: Draws) -> dict[str, Any]:
    """Give the values drawn, by address, with the axes of loops where the program has them."""
    out: dict[str, Any] = {}
    for entry in found:
        more = _one(entry, draws) if isinstance(entry, Found) else _looped(entry, draws)
        for address in more.keys() & out.keys():
            raise UnsupportedError(
                message(
                    f"recover got {at(address)} in several branches",
                    needs="a summed site that stands in one branch",
                    why="each branch has a sum of its own",
                    fix="use different addresses in the branches",
                )
            )
        out.update(more)
    return out


def _one(found: Found, draws: Draws) -> dict[str, Any]:
    site, index = found.site, draws.indices[found.dim]
    values = jnp.asarray(found.values)[index]
    event = site.shape[len(site.shape) - site.event_dim :]
    return {site.address: jnp.reshape(values, (*member_axes(site), *event))}


def _looped(entry: Iterated, draws: Draws) -> dict[str, Any]:
    steps = [values_of(found, draws) for found in entry.steps]
    rows = [{a: x[None] for a, x in step.items()} for step in steps]
    if entry.swept is not None:
        rows.append(draws.rows[id(entry.swept)])
    if entry.loop.reverse:
        rows.reverse()
    if not rows:
        return {}
    axes = entry.loop.axes
    return {a: jnp.moveaxis(jnp.concatenate([row[a] for row in rows]), 0, axes[a]) for a in rows[0]}
