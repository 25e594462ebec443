"""The steps of a loop over summed sites: what goes in, what comes out, what stays the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.errors import UnsupportedError, at, message
from ppl.semantics.sums.elimination import Factor, eliminate, merged
from ppl.semantics.sums.flat import Atom, Flat
from ppl.semantics.sums.lanes import Dim, Value
from ppl.semantics.sums.region import Region


class State(NamedTuple):
    """What a step hands to the next one."""

    carry: list[Value]
    messages: list[Factor]


class Step(NamedTuple):
    """What a step gives: the state after it, its outputs, its weight if any, and its region."""

    state: State
    ys: list[Value]
    weight: Any
    region: Region


class Loop(NamedTuple):
    """The fixed parts of a loop. Steps are counted in the order in which they run."""

    outer: Region
    eqn: Any
    body: Flat
    links: tuple[Atom, ...]
    consts: list[Value]
    xs: list[Value]
    given: dict[str, Any]
    axes: dict[str, int]
    alive: frozenset[Dim]

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.eqn.params["length"]

    @property
    def reverse(self) -> bool:
        """Whether the last row runs first."""
        return self.eqn.params["reverse"]

    def inputs(self) -> Any:
        """Give the rows that the steps read, and the given values, with the axis of steps first."""
        rows = [None if x.gone else jnp.moveaxis(x.array, len(x.dims), 0) for x in self.xs]
        return rows, self.given

    def row(self, k: int) -> Any:
        """Give the inputs of step k."""
        i = self.length - 1 - k if self.reverse else k
        return jax.tree.map(lambda x: x[i], self.inputs())

    def rest(self, k: int) -> Any:
        """Give the inputs of all but the first k steps."""
        part = slice(0, self.length - k) if self.reverse else slice(k, None)
        return jax.tree.map(lambda x: x[part], self.inputs())

    def region(self, known: Mapping[int, Value]) -> Region:
        """Give a region for the body, evaluated as far as constants and `known` carry allow."""
        links = dict(zip(self.body.ins, self.links, strict=False))
        region = Region(self.outer.run, self.body, {}, self.alive, self.outer, links)
        region.env.update(zip(self.body.ins, self.consts, strict=False))
        region.env.update({self.body.ins[len(self.consts) + i]: v for i, v in known.items()})
        region.execute(known=True)
        return region


def take_step(it: Loop, state: State, row: Any, region: Region) -> Step:
    """Evaluate one iteration from the carry before it."""
    rows, given = row
    region = region.copy(given)
    first, count = len(it.consts), len(state.carry)
    for slot, value in zip(it.body.ins[first:], state.carry, strict=False):
        region.env.setdefault(slot, value)
    for slot, x, array in zip(it.body.ins[first + count :], it.xs, rows, strict=True):
        region.env[slot] = x.holding(array)._replace(labels=x.axes[1:]) if not x.gone else x
    region.factors += state.messages
    region.execute()
    outs = region.outs()
    carry, ys = outs[:count], outs[count:]
    kept = it.alive.union(*(v.dims for v in carry))
    factors = eliminate(region.factors, kept.__contains__, region.tape)
    weights = [*region.weights, *(f.array for f in factors if not f.dims)]
    messages = merged([f for f in factors if f.dims])
    weight = functools.reduce(jnp.add, weights) if weights else None
    return Step(State(carry, messages), [_outliving(it, y) for y in ys], weight, region)


def _outliving(it: Loop, y: Value) -> Value:
    lost = [d for d in y.dims if d not in it.alive]
    if not lost:
        return y
    names = ", ".join(dict.fromkeys(at(d.address, d.source) for d in lost))
    return Value(None, gone=f"the values of {names} in all iterations of a loop")


def probe(it: Loop, state: State, k: int) -> Step:
    """Take a step for its shapes only."""
    box: list[Step] = []

    def take() -> tuple[()]:
        box.append(take_step(it, state, it.row(k), it.region({})))
        return ()

    jax.eval_shape(take)
    return box[0]


def signature(state: State, alive: frozenset[Dim]) -> Any:
    """Describe a state up to the names of the dimensions that come and go."""
    names: dict[Dim, int] = {}

    def name(d: Dim) -> tuple[str, int]:
        return ("kept", d.number) if d in alive else ("moved", names.setdefault(d, len(names)))

    def describe(v: Value) -> Any:
        sizes = [(name(d), d.address, d.size, len(d.groups)) for d in v.dims]
        return bool(v.gone), sizes, [g is not None for g in v.axes] if v.dims else []

    carry = [describe(v) for v in state.carry]
    messages = sorted((sorted(map(name, f.dims)), len(f.groups)) for f in state.messages)
    return carry, messages


def pairs(state: State, after: State, alive: frozenset[Dim]) -> dict[Dim, Dim]:
    """Map the dimensions after a step to those before it; their members are the same."""
    back: dict[Dim, Dim] = {}
    for old, new in zip(state.carry, after.carry, strict=True):
        for one, other in zip(old.dims, new.dims, strict=True):
            back[other] = one
            for g, h in zip(one.groups, other.groups, strict=True):
                g.join(h)
        for g, h in zip(old.axes, new.axes, strict=True) if old.dims else ():
            if g is not None and h is not None:
                g.join(h)
    return back


def remembers(it: Loop, state: State) -> UnsupportedError:
    """Build the error for a carry that depends on more and more past sites."""
    dims = {d for v in state.carry for d in v.dims if d not in it.alive}
    names = ", ".join(
        dict.fromkeys(at(d.address, d.source) for d in sorted(dims, key=lambda d: d.number))
    )
    return UnsupportedError(
        message(
            f"marginalize got a scan whose carry depends on {names} of more and more past "
            "iterations",
            needs="a carry that depends on the summed sites of the last few iterations only",
            why="the sum would run over all histories",
            fix="carry the last state itself, or use ppl.enumerate, which merges equal histories",
        )
    )
