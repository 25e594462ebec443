"""Loops whose iterations need not wait for one another, run at once.

When every site's value is given, little of a loop's body waits for the iteration before: the state
of a Markov chain is a value that is known, so that all its transitions can be weighed together.
`scan` is `jax.lax.scan` by loop distribution (Allen and Kennedy 1987, "Automatic translation of
Fortran programs to vector form"): what lies on a cycle through the carry stays a loop, the rest is
mapped over the iterations. A carried value that lies on no cycle is a sequence shifted by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax

#: The bytes that one loop may hold of all iterations' intermediate values, if none are fused.
_AT_ONCE = 2**28
#: What would change its meaning or its memory if mapped: a branch not taken would be run, and its
#: derivative may not be finite; a loop would last as long as the longest; a checkpoint would be for
#: nothing; and functions of the host may not be mapped at all.
_ONE_BY_ONE = ("cond", "while", "remat2", "checkpoint", "pure_callback", "ffi_call")


def scan(
    body: Callable[[Any, Any], Any],
    init: Any,
    xs: Any,
    *,
    length: int,
    reverse: bool,
    unroll: Any,
) -> Any:
    """Do what `jax.lax.scan` does; None if nothing is gained, or too much memory would be needed.

    `body` maps the carry and one row of `xs` to the next carry and a row of results.
    """
    if length < 2:
        return None

    def like(x: Any, skip: int) -> Any:
        return jax.ShapeDtypeStruct(jnp.shape(x)[skip:], jnp.result_type(x))

    carry, row = (jax.tree.map(lambda x, s=s: like(x, s), t) for t, s in ((init, 0), (xs, 1)))
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(carry, row)
    if closed.effects:
        return None
    loop = _Loop(closed.jaxpr, len(jax.tree.leaves(carry)), length, reverse, unroll)
    if not loop.worthwhile():
        return None
    run = loop.run if _jax.is_staging() else jax.jit(loop.run)
    outs = run(closed.consts, jax.tree.leaves(init), jax.tree.leaves(xs))
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


class _Loop:
    """A loop's body, divided. Nodes are its equations, then its carried values."""

    def __init__(self, jaxpr: Any, num_carry: int, length: int, reverse: bool, unroll: Any):
        self.jaxpr, self.length, self.reverse, self.unroll = jaxpr, length, reverse, unroll
        self.carry = jaxpr.invars[:num_carry]
        self.nexts = jaxpr.outvars[:num_carry]
        self.made_by = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
        first = len(jaxpr.eqns)
        self.made_by.update({v: first + i for i, v in enumerate(self.carry)})
        #: What each carried value grows by per iteration, where that is known: no need to wait.
        self.grows = {i: g for i in range(num_carry) if (g := self._growth(i)) is not None}
        self.reads = {n: self._reads(n) for n in range(first + num_carry)}
        self.needed = self._needed()
        self.mapped = self._mapped()
        self.waits = self._waits()
        self.stages = self._stages()

    def _growth(self, i: int) -> Any:
        """Give what a carried value grows by: None if it is not handed on, or a counter."""
        carry, new = self.carry[i], self.nexts[i]
        if new is carry:
            return 0
        if isinstance(new, _jax.Literal) or new not in self.made_by or carry.aval.shape != ():
            return None
        if self.made_by[new] >= len(self.jaxpr.eqns):
            return None
        eqn = self.jaxpr.eqns[self.made_by[new]]
        if eqn.primitive.name != "add" or not jnp.issubdtype(carry.aval.dtype, jnp.integer):
            return None
        one, other = eqn.invars
        step = other if one is carry else one
        known = any(v is carry for v in (one, other)) and isinstance(step, _jax.Literal)
        return int(step.val) if known else None

    def _reads(self, node: int) -> Iterable[int]:
        """Give the nodes whose results a node uses; a carried value uses the one before."""
        first = len(self.jaxpr.eqns)
        if node >= first:
            atoms = [] if node - first in self.grows else [self.nexts[node - first]]
        else:
            atoms = self.jaxpr.eqns[node].invars
        return {self.made_by[v] for v in _jax.variables(atoms) if v in self.made_by}

    def _needed(self) -> list[int]:
        """List, in order, the nodes on which some result depends."""
        todo = [self.made_by[v] for v in _jax.variables(self.jaxpr.outvars) if v in self.made_by]
        found: set[int] = set()
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo.extend(self.reads[node])
        return sorted(found)

    def _mapped(self) -> set[Any]:
        """Find the variables that differ from iteration to iteration."""
        same = {self.carry[i] for i, step in self.grows.items() if not step}
        mapped = set(self.jaxpr.invars) - same
        for eqn in self.jaxpr.eqns:
            if any(v in mapped for v in _jax.variables(eqn.invars)):
                mapped.update(eqn.outvars)
        return mapped

    def _waits(self) -> set[int]:
        """Find the nodes that must be run in a loop."""
        reach = dict.fromkeys(self.needed, 0)
        while True:
            old = dict(reach)
            for node in self.needed:
                for other in self.reads[node]:
                    reach[node] |= reach[other] | 1 << other
            if reach == old:
                break
        cyclic = {n for n in self.needed if reach[n] >> n & 1}
        eqns = self.jaxpr.eqns
        return cyclic | {
            n
            for n in self.needed
            if n < len(eqns) and eqns[n].outvars[0] in self.mapped and _one_by_one(eqns[n])
        }

    def _stages(self) -> list[list[int]]:
        """Order the nodes: mapped equations at even levels, loops and shifts at odd ones."""
        first = len(self.jaxpr.eqns)
        level = dict.fromkeys(self.needed, -2)
        while True:
            old = dict(level)
            for node in self.needed:
                waits = node in self.waits
                barrier = waits or node >= first
                for other in self.reads[node]:  # what waits together stands together
                    apart = barrier and not (waits and other in self.waits)
                    level[node] = max(level[node], level[other] + apart)
                level[node] += (level[node] % 2 == 0) if barrier else level[node] % 2
            if level == old:
                break
        depths = sorted(set(level.values()))
        return [[n for n in self.needed if level[n] == depth] for depth in depths]

    def worthwhile(self) -> bool:
        """Tell whether something is gained, within the bytes that may be held."""
        eqns = self.jaxpr.eqns
        free = [
            eqns[n]
            for n in self.needed
            if n < len(eqns) and n not in self.waits and eqns[n].outvars[0] in self.mapped
        ]
        held = sum(_bytes(v.aval) for eqn in free for v in eqn.outvars)
        return bool(free) and held * self.length <= _AT_ONCE

    def run(self, consts: Sequence[Any], init: Sequence[Any], xs: Sequence[Any]) -> list[Any]:
        """Give the last carry, and the results of all iterations."""
        jaxpr = self.jaxpr
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars[len(init) :], xs, strict=True))
        last: dict[int, Any] = {}
        for i, step in self.grows.items():
            env[self.carry[i]] = last[i] = init[i]
            if step:
                count = jnp.arange(self.length + 1, dtype=self.carry[i].aval.dtype) * step + init[i]
                last[i], rows = count[-1], count[:-1]
                env[self.carry[i]] = rows[::-1] if self.reverse else rows
        for stage in self.stages:
            if waiting := [n for n in stage if n in self.waits]:
                last.update(self._loop(env, waiting, init))
            free = [n for n in stage if n not in self.waits]
            for i in [n - len(jaxpr.eqns) for n in free if n >= len(jaxpr.eqns)]:
                if i not in self.grows:
                    env[self.carry[i]] = self._shifted(init[i], self._rows(env, self.nexts[i]))
            self._map(env, [jaxpr.eqns[n] for n in free if n < len(jaxpr.eqns)])
        for i, v in enumerate(self.nexts):
            if i not in last:
                last[i] = self._rows(env, v)[0 if self.reverse else -1]
        return [last[i] for i in range(len(init))] + [
            self._rows(env, v) for v in jaxpr.outvars[len(init) :]
        ]

    def _map(self, env: dict[Any, Any], eqns: Sequence[Any]) -> None:
        """Run equations for all iterations; those that are the same in all of them once."""
        once = [e for e in eqns if e.outvars[0] not in self.mapped]
        every = [e for e in eqns if e.outvars[0] in self.mapped]
        _run(once, env)
        if not every:
            return
        outs = [v for e in every for v in e.outvars]
        ins = self._taken(every, outs)

        def one(values: list[Any]) -> list[Any]:
            inner = {**env, **dict(zip(ins, values, strict=True))}
            _run(every, inner)
            return [inner[v] for v in outs]

        env.update(zip(outs, jax.vmap(one)([env[v] for v in ins]), strict=True))

    def _loop(
        self, env: dict[Any, Any], nodes: Sequence[int], init: Sequence[Any]
    ) -> dict[int, Any]:
        """Run what must wait, one iteration after the other; give the last carried values."""
        first = len(self.jaxpr.eqns)
        eqns = [self.jaxpr.eqns[n] for n in nodes if n < first]
        carried = [n - first for n in nodes if n >= first]
        made = [v for e in eqns for v in e.outvars] + [self.carry[i] for i in carried]
        ins = self._taken(eqns, made, [self.nexts[i] for i in carried])
        others = [self.jaxpr.eqns[n] for n in self.needed if n < first and n not in set(nodes)]
        wanted = set(_jax.variables([v for e in others for v in e.invars] + self.jaxpr.outvars))
        outs = [v for v in made if v in wanted]

        def step(state: list[Any], row: list[Any]) -> Any:
            inner = {**env, **dict(zip(ins, row, strict=True))}
            inner.update({self.carry[i]: x for i, x in zip(carried, state, strict=True)})
            _run(eqns, inner)
            new = [_read(inner, self.nexts[i]) for i in carried]
            return new, [inner[v] for v in outs]

        end, rows = jax.lax.scan(
            step,
            [jnp.asarray(init[i], self.carry[i].aval.dtype) for i in carried],
            [env[v] for v in ins],
            length=self.length,
            reverse=self.reverse,
            unroll=self.unroll,
        )
        env.update(zip(outs, rows, strict=True))
        return dict(zip(carried, end, strict=True))

    def _taken(self, eqns: Sequence[Any], made: Iterable[Any], more: Sequence[Any] = ()) -> Any:
        """List what equations (and `more`) take from elsewhere that differs by iteration."""
        read, made = _jax.variables([v for e in eqns for v in e.invars] + list(more)), set(made)
        return list(dict.fromkeys(v for v in read if v in self.mapped and v not in made))

    def _rows(self, env: dict[Any, Any], atom: Any) -> Any:
        """Give a variable's values in all iterations."""
        value = _read(env, atom)
        if isinstance(atom, _jax.Literal) or atom not in self.mapped:
            return jnp.broadcast_to(value, (self.length, *jnp.shape(value)))
        return value

    def _shifted(self, init: Any, rows: Any) -> Any:
        """Give what each iteration gets, from what each hands on."""
        start = jnp.asarray(init, rows.dtype)[None]
        parts = [rows[1:], start] if self.reverse else [start, rows[:-1]]
        return jnp.concatenate(parts)


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, _jax.Literal) else env[atom]


def _run(eqns: Sequence[Any], env: dict[Any, Any]) -> None:
    for eqn in eqns:
        outs = _jax.bind_equation(eqn, [_read(env, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))


def _one_by_one(eqn: Any) -> bool:
    return eqn.primitive.name in _ONE_BY_ONE or any(
        _one_by_one(inner) for sub in _jax.subjaxprs(eqn) for inner in sub.eqns
    )


def _bytes(aval: Any) -> int:
    size = math.prod(getattr(aval, "shape", ()))
    return size * getattr(getattr(aval, "dtype", np.dtype(np.float32)), "itemsize", 8)
