"""Summed sites in a `scan`: the forward algorithm.

The state of a loop is its carry, and messages: factors over the dimensions that the carry depends
on. A step adds its own factors to the messages and sums out every dimension that the next carry no
longer depends on. The first steps are taken one by one, until carry and messages look the same
after a step as before it; the rest is one `scan`. Parts of the carry that are the same after every
step (a state's list of candidates, say) are constants of that scan, and what depends on constants
alone (a table of transitions) is computed before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.interpreter import placed_sites
from ppl.semantics.sums.elimination import Factor, eliminate, laid_out, merged
from ppl.semantics.sums.flat import Flat, Item
from ppl.semantics.sums.lanes import Dim, Meeting, Value, union
from ppl.semantics.sums.region import Region
from ppl.semantics.sums.steps import (
    Loop,
    State,
    Step,
    pairs,
    probe,
    remembers,
    signature,
    take_step,
)

#: How many steps are taken one by one before a loop counts as one that remembers too much.
_MOST_STEPS = 4


class Swept(NamedTuple):
    """The compiled part of a loop: what it takes to go through it again, backwards.

    `back` maps the dimensions after a step to those before it; `final` those before to those that
    stand for them after the loop. `saved` has the varying carry and the messages before each step.
    """

    loop: Loop
    done: int
    region: Region
    state: State
    varying: tuple[int, ...]
    back: dict[Dim, Dim]
    final: dict[Dim, Dim]
    saved: Any


class Iterated(NamedTuple):
    """Where a loop has its summed sites: in the steps taken one by one, and in the others."""

    loop: Loop
    steps: list[list[Any]]
    swept: Swept | None


def run_loop(outer: Region, index: int, item: Item) -> list[Value]:
    """Evaluate a `scan`."""
    it, init = _open(outer, index, item)
    summing = _sums(item.body) or any(v.dims for v in init)
    state = _enter(outer, init, it.alive) if summing else State(init, [])
    steps: list[Step] = []
    while len(steps) < it.length:
        if steps or not summing:
            after = probe(it, state, len(steps)).state
            if signature(state, it.alive) == signature(after, it.alive):
                break
        if len(steps) == _MOST_STEPS:
            raise remembers(it, state)
        steps.append(take_step(it, state, it.row(len(steps)), it.region({})))
        state = steps[-1].state
    swept, rows = None, []
    if len(steps) < it.length:
        state, rows, weights, swept = _sweep(it, state, len(steps))
        outer.weights += [] if weights is None else [jnp.sum(weights)]
    for step in steps:
        outer.weights += [] if step.weight is None else [step.weight]
        if outer.tape is not None:
            outer.tape.extend(step.region.tape or [])
    if outer.tape is not None and swept is not None:
        outer.tape.append(swept)
    if summing:
        outer.found.append(Iterated(it, [s.region.found for s in steps], swept))
    outer.factors = merged([*outer.factors, *state.messages])
    return [*state.carry, *_outputs(it, [s.ys for s in steps], rows)]


def _open(outer: Region, index: int, item: Item) -> tuple[Loop, list[Value]]:
    eqn = item.what
    num_consts, num_carry = _jax.scan_sizes(eqn)
    values = [outer.read(a) for a in item.ins]
    consts, xs = values[:num_consts], values[num_consts + num_carry :]
    for x in xs:
        if x.dims and x.axes[0] is not None:
            raise Meeting("the operation 'scan' over members", x.dims, [x.axes[0]])
    places = {p.site.address: p for p in placed_sites(eqn.params["jaxpr"])}
    # The scan's own axis of an address stands behind the `vmap` axes that enclose the scan.
    axes = {a: p.axis(len(p.scans) + 1) for a, p in places.items()}
    given = {a: jnp.moveaxis(v, axes[a], 0) for a, v in outer.given.items() if a in places}
    alive = outer.live(index).union(*(v.dims for v in (*consts, *xs)))
    links = tuple(item.ins[:num_consts])
    it = Loop(outer, eqn, item.body, links, consts, xs, given, axes, alive)
    return it, values[num_consts : num_consts + num_carry]


def _sums(flat: Flat) -> bool:
    return any(
        item.kind in ("summed", "score") or (item.kind == "loop" and _sums(item.body))
        for item in flat.items
    )


def _enter(outer: Region, init: list[Value], alive: frozenset[Dim]) -> State:
    """Take into the loop what has been said of the sites that only its carry remembers."""
    carried = {d for v in init for d in v.dims}
    moving = carried - alive
    factors = eliminate(outer.factors, (alive | carried).__contains__, outer.tape)
    outer.weights += [f.array for f in factors if not f.dims]
    outer.factors = [f for f in factors if f.dims and not moving & set(f.dims)]
    return State(init, merged([f for f in factors if moving & set(f.dims)]))


def _constants(it: Loop, state: State, steps: int) -> tuple[Region, dict[int, Value]]:
    """Find the parts of the carry that every step leaves the same.

    After n steps, what can be told by going round n times holds for the state at hand.
    """
    known: dict[int, Value] = {}
    region = it.region(known)
    for _ in range(steps):
        new = {}
        for i, atom in enumerate(it.body.outs[: len(state.carry)]):
            old = state.carry[i]
            if region.knows(atom) and not old.gone and region.read(atom).dims is not None:
                new[i] = old.holding(region.read(atom).array, region.read(atom).core)
        if new.keys() == known.keys():
            break
        known, region = new, it.region(new)
    return region, known


def _sweep(it: Loop, state: State, done: int) -> tuple[State, list[Any], Any, Swept]:
    """Take all steps but the first ones in one `scan`."""
    region, known = _constants(it, state, done)
    live = [i for i, v in enumerate(state.carry) if i not in known and not v.gone]
    carry = [known.get(i, v) for i, v in enumerate(state.carry)]
    start = [jnp.asarray(state.carry[i].array) for i in live], [f.array for f in state.messages]
    box: list[tuple[Step, dict[Dim, Dim]]] = []

    def body(loop_state: Any, row: Any) -> Any:
        arrays, tables = loop_state
        step = take_step(it, unpack(carry, state, live, arrays, tables), row, region)
        if signature(state, it.alive) != signature(step.state, it.alive):
            raise remembers(it, state)
        back = pairs(state, step.state, it.alive)
        box.append((step, back))
        new = [
            jnp.asarray(step.state.carry[i].array, a.dtype)
            for i, a in zip(live, arrays, strict=True)
        ]
        ys = [None if y.gone else y.array for y in step.ys]
        sums = _renamed(step.state.messages, back, state.messages)
        kept = (arrays, tables) if it.outer.tape is not None else None
        return (new, sums), (ys, step.weight, kept)

    (arrays, tables), (ys, weights, saved) = jax.lax.scan(
        body,
        start,
        it.rest(done),
        length=it.length - done,
        reverse=it.reverse,
        unroll=it.eqn.params["unroll"],
    )
    step, back = box[-1]
    stays = {d for d, old in back.items() if d is old}
    final = {d: d.copy() for d in sorted(set(back.values()) - stays, key=lambda d: d.number)}
    last = unpack(carry, state, live, arrays, tables)
    last = State(
        [v._replace(dims=tuple(final.get(d, d) for d in v.dims)) for v in last.carry],
        [f._replace(dims=tuple(final.get(d, d) for d in f.dims)) for f in last.messages],
    )
    rows = [y.holding(array) for y, array in zip(step.ys, ys, strict=True)]
    swept = Swept(it, done, region, State(carry, state.messages), tuple(live), back, final, saved)
    return last, rows, weights, swept


def unpack(
    carry: list[Value], state: State, live: Sequence[int], arrays: list[Any], tables: list[Any]
) -> State:
    """Put the arrays of a state in their places."""
    values = list(carry)
    for i, array in zip(live, arrays, strict=True):
        values[i] = carry[i].holding(array)
    pairs = zip(state.messages, tables, strict=True)
    return State(values, [f._replace(array=array) for f, array in pairs])


def retake(swept: Swept, row: Any) -> tuple[Step, dict[Dim, Dim]]:
    """Take one of the compiled steps again, given what it read; and its dimensions' names."""
    inputs, (arrays, tables) = row
    state = unpack(swept.state.carry, swept.state, swept.varying, arrays, tables)
    step = take_step(swept.loop, state, inputs, swept.region)
    return step, pairs(state, step.state, swept.loop.alive)


def _renamed(new: list[Factor], back: Mapping[Dim, Dim], old: list[Factor]) -> list[Any]:
    """Lay messages out as those of the step before."""
    renamed = [f._replace(dims=tuple(back.get(d, d) for d in f.dims)) for f in new]
    alike = {frozenset(f.dims): f for f in renamed}
    out = []
    for f in old:
        array = laid_out(alike[frozenset(f.dims)], f.dims, [g.root for g in f.groups])
        out.append(jnp.asarray(array, f.array.dtype))
    return out


def _outputs(it: Loop, first: list[list[Value]], rest: list[Value]) -> list[Value]:
    """Join the outputs of the steps taken one by one with those of the others."""
    variables = it.eqn.outvars[_jax.scan_sizes(it.eqn)[1] :]
    if it.length == 0:
        return [Value(jnp.zeros(v.aval.shape, v.aval.dtype)) for v in variables]
    outs = []
    for j in range(len(variables)):
        parts = [row[j].holding(_as_row(row[j])) for row in first]
        parts += [rest[j]] if rest else []
        outs.append(_joined(parts[::-1] if it.reverse else parts))
    return outs


def _as_row(v: Value) -> Any:
    return None if v.gone else jnp.asarray(v.array)[None]


def _joined(parts: list[Value]) -> Value:
    """Concatenate values whose arrays have the axis of steps in front of all others."""
    gone = next((v.gone for v in parts if v.gone), "")
    if gone:
        return Value(None, gone=gone)
    dims = union(parts)
    sizes = tuple(d.size for d in dims)
    rows = []
    for v in parts:
        array = jnp.moveaxis(v.array, 0, len(v.dims))
        array = jnp.expand_dims(array, [i for i, d in enumerate(dims) if d not in v.dims])
        rows.append(jnp.broadcast_to(array, (*sizes, *array.shape[len(dims) :])))
    array = jnp.concatenate(rows, len(dims))
    labels = next((v.labels for v in parts if v.dims), (None,) * (array.ndim - len(dims) - 1))
    return Value(array, dims, (None, *labels))
