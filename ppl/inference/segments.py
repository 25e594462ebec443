"""A program cut into its outermost loops that score, and what stands between them.

As `suspend` does, but an iteration's index may be traced, and what a loop stacks is carried along:
the state holds all that is needed to go on.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl import _jax
from ppl.interpreter import Interpreter, evaluate
from ppl.program import Program, Structure
from ppl.semantics.cuts import scores_in
from ppl.semantics.suspension import _Pieces


class Inside(NamedTuple):
    """Where a run stands in a loop: what is live there, what is carried, the rows so far."""

    live: list[Any]
    carry: list[Any]
    rows: list[Any]


class _Segments:
    """What can be told of a program's loops from its structure."""

    def __init__(self, structure: Structure):
        jaxpr = _pruned(structure.jaxpr)
        self.pieces, self.eqns, self.outs = _Pieces(jaxpr), jaxpr.eqns, jaxpr.outvars
        self.places = [
            i for i, e in enumerate(self.eqns) if e.primitive.name == "scan" and scores_in(e)
        ]
        self.wanted = [self._wanted(place) for place in self.places]

    def _wanted(self, place: int) -> list[int]:
        """Tell which of the rows that a loop stacks are needed after it."""
        needed = {v for e in self.eqns[place + 1 :] for v in _jax.variables(e.invars)}
        needed.update(_jax.variables(self.outs))
        _, m = _jax.scan_sizes(self.eqns[place])
        rows = self.eqns[place].outvars[m:]
        return [i for i, v in enumerate(rows) if v in needed]


def _pruned(jaxpr: Any) -> Any:
    """Drop the equations that nothing depends on."""
    needed, kept = set(_jax.variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if _jax.contains_effect(eqn) or needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(_jax.variables(eqn.invars))
    return jaxpr.replace(eqns=kept[::-1])


_segments = functools.lru_cache(maxsize=256)(_Segments)


def lengths(program: Program) -> list[int]:
    """List the lengths of the loops."""
    s = _segments(program.structure)
    return [s.eqns[place].params["length"] for place in s.places]


def between(program: Program, state: Inside | None, k: int) -> Any:
    """Run from behind the k-th loop (the start, if k is 0) to the next, or to the value."""
    s = _segments(program.structure)
    env, start = s.pieces.given(program), 0
    if state is not None:
        place, wanted = s.places[k - 1], s.wanted[k - 1]
        outs, m = s.eqns[place].outvars, len(state.carry)
        env.update(zip(s.pieces.live(place), state.live, strict=True))
        env.update(zip(outs, state.carry, strict=False))
        env.update((outs[m + i], row) for i, row in zip(wanted, state.rows, strict=True))
        start = place + 1
    if k == len(s.places):
        s.pieces.run(env, start, len(s.eqns))
        return program.structure.rebuild([_read(env, v) for v in s.outs])
    place = s.places[k]
    s.pieces.run(env, start, place)
    eqn = s.eqns[place]
    n, m = _jax.scan_sizes(eqn)
    kinds = [eqn.outvars[m + i].aval for i in s.wanted[k]]
    return Inside(
        [env[v] for v in s.pieces.live(place)],
        [jnp.asarray(_read(env, v), v.aval.dtype) for v in eqn.invars[n : n + m]],
        [jnp.zeros(kind.shape, kind.dtype) for kind in kinds],
    )


def iteration(program: Program, state: Inside, k: int, t: Any) -> Inside:
    """Run the t-th iteration of the k-th loop."""
    s = _segments(program.structure)
    place, env = s.places[k], s.pieces.given(program)
    eqn = s.eqns[place]
    env.update(zip(s.pieces.live(place), state.live, strict=True))
    values = [_read(env, v) for v in eqn.invars]
    n, m = _jax.scan_sizes(eqn)
    i = eqn.params["length"] - 1 - t if eqn.params["reverse"] else t
    jaxpr, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
    args = [*values[:n], *state.carry, *(x[i] for x in values[n + m :])]
    outs = evaluate(Interpreter(), jaxpr, consts, args).outs
    rows = [row.at[i].set(outs[m + w]) for row, w in zip(state.rows, s.wanted[k], strict=True)]
    return Inside(state.live, outs[:m], rows)


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, _jax.Literal) else env[atom]
