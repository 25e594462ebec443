"""`suspend`: a program cut at its scores, so that something can happen between them.

A jaxpr is cut after every equation that scores, and a loop with scores inside at every iteration.
What one piece hands to the next are the values that depend on draws and are still needed; the rest
is computed from the program's arrays wherever it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl import _jax
from ppl._types import PyTree
from ppl.interpreter import Interpreter, evaluate
from ppl.primitives import sample_p, score_p
from ppl.program import Program, require_program
from ppl.semantics.cuts import scores_in, stage_equation
from ppl.staging import stage

Step = Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Suspended:
    """A program cut at its scores.

    **Meaning.** That of `finish(s)`: the first piece, then every step, then the last. `first` is a
    program of what is carried over the first cut; each of `steps` is a model function from what is
    carried to what is carried on, and scores once; `last` gives the value.
    """

    first: Program
    steps: tuple[Step, ...]
    last: Step

    def advance(self) -> Suspended:
        """Run on to the next score: the first step becomes part of the first piece."""
        if not self.steps:
            return self
        first = stage(_run, (self.first, self.steps[:1]), name=self.first.name)
        return Suspended(first, self.steps[1:], self.last)

    def finish(self) -> Program:
        """Run to the end: the whole program again."""
        return stage(_run, (self.first, (*self.steps, self.last)), name=self.first.name)

    def hoist_first(self, transformer: Callable[[Program], Program]) -> Suspended:
        """Transform the first piece; the meaning stays if the transformer keeps that of programs.

        Args:
            transformer: maps a program to a program of values of the same kind.
        """
        return dataclasses.replace(self, first=transformer(self.first))


def _run(first: Program, steps: tuple[Step, ...]) -> PyTree:
    return functools.reduce(lambda carry, step: step(carry), steps, first())


def suspend(program: Program) -> Suspended:
    """Cut a program at its scores.

    **Meaning.** finish(suspend(p)) = p, and finish(advance(s)) = finish(s), as measures. Cuts are
    after each observation or factor of the model itself and after each iteration of its `scan`s
    that score; what scores inside another operation (a branch, a `while_loop`) stays together.

    Args:
        program: any program.

    Source: Ścibior et al. (POPL 2018), the suspension transformer.
    """
    require_program("suspend", program)
    pieces = _Pieces(program.structure.jaxpr)
    first = stage(_first, (program, pieces), name=program.name)
    cuts = pieces.cuts
    steps = tuple(_Step(program, pieces, a, b) for a, b in itertools.pairwise(cuts))
    return Suspended(first, steps, _Last(program, pieces))


class Cut(NamedTuple):
    """A place between two pieces: before an equation, and before an iteration of it if a scan."""

    equation: int
    iteration: int = 0


class _Pieces:
    """The pieces of a jaxpr. Shared by all programs of one structure, and compared by identity."""

    def __init__(self, jaxpr: Any):
        self.jaxpr = jaxpr
        self.random = _random(jaxpr)
        self.cuts = list(_cuts(jaxpr))

    def live(self, equation: int) -> list[Any]:
        """List the variables that depend on draws and are needed from an equation on."""
        later = self.jaxpr.eqns[equation:]
        used = [v for eqn in later for v in eqn.invars] + list(self.jaxpr.outvars)
        made = {v for eqn in later for v in eqn.outvars}
        names = (v for v in used if not isinstance(v, _jax.Literal))
        return [v for v in dict.fromkeys(names) if v in self.random and v not in made]

    def given(self, program: Program) -> dict[Any, Any]:
        """Compute what does not depend on draws."""
        env = dict(zip(self.jaxpr.constvars, program.consts, strict=True))
        env.update(zip(self.jaxpr.invars, program.args, strict=True))
        for eqn in self.jaxpr.eqns:
            if not any(v in self.random for v in eqn.outvars) and not _jax.contains_effect(eqn):
                outs = _jax.bind_equation(eqn, [_read(env, v) for v in eqn.invars])
                env.update(zip(eqn.outvars, outs, strict=True))
        return env

    def run(self, env: dict[Any, Any], start: int, stop: int) -> None:
        """Run equations, drawing and scoring as the program does."""
        for eqn in self.jaxpr.eqns[start:stop]:
            if any(v in self.random for v in eqn.outvars) or _jax.contains_effect(eqn):
                outs = stage_equation(eqn, [_read(env, v) for v in eqn.invars])
                env.update(zip(eqn.outvars, outs, strict=True))


class _Step:
    """One piece as a function of what is carried: equations, or one iteration of a scan."""

    def __init__(self, program: Program, pieces: _Pieces, start: Cut, stop: Cut):
        self.program, self.pieces, self.start, self.stop = program, pieces, start, stop

    def __call__(self, carry: PyTree) -> PyTree:
        return _between(self.program, self.pieces, self.start, self.stop, carry)


class _Last:
    """The piece after the last score."""

    def __init__(self, program: Program, pieces: _Pieces):
        self.program, self.pieces = program, pieces

    def __call__(self, carry: PyTree) -> PyTree:
        end = Cut(len(self.pieces.jaxpr.eqns))
        env = _between(self.program, self.pieces, self.pieces.cuts[-1], end, carry, whole=True)
        outs = [_read(env, v) for v in self.pieces.jaxpr.outvars]
        return self.program.structure.rebuild(outs)


def _first(program: Program, pieces: _Pieces) -> PyTree:
    return _between(program, pieces, Cut(0), pieces.cuts[0], {"values": [], "scan": None})


def _between(
    program: Program, pieces: _Pieces, start: Cut, stop: Cut, carry: Any, whole: bool = False
) -> Any:
    """Run from one cut to the next. What is carried inside a scan is its state so far."""
    env = pieces.given(program)
    env.update(zip(pieces.live(start.equation), carry["values"], strict=True))
    scan, place = carry["scan"], start.equation
    if scan is not None:
        eqn = pieces.jaxpr.eqns[place]
        if stop.equation == place:
            scan = _iterate(eqn, env, scan, start.iteration)
            values = [env[v] for v in pieces.live(place)]
            return {"values": values, "scan": scan}
        env.update(zip(eqn.outvars, _left(eqn, scan), strict=True))
        place += 1
    pieces.run(env, place, stop.equation)
    if whole:
        return env
    values = [env[v] for v in pieces.live(stop.equation)]
    if stop.iteration == 0:
        return {"values": values, "scan": None}
    eqn = pieces.jaxpr.eqns[stop.equation]
    return {"values": values, "scan": _iterate(eqn, env, _entered(eqn, env), 0)}


# --- Scans --------------------------------------------------------------------------------------


def _parts(eqn: Any, env: dict[Any, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    values = [_read(env, v) for v in eqn.invars]
    n, m = _jax.scan_sizes(eqn)
    return values[:n], values[n : n + m], values[n + m :]


def _entered(eqn: Any, env: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    _, carry, _ = _parts(eqn, env)
    ys = eqn.outvars[len(carry) :]
    return carry, [jnp.zeros(v.aval.shape, v.aval.dtype) for v in ys]


def _iterate(eqn: Any, env: dict[Any, Any], scan: Any, count: int) -> tuple[list[Any], list[Any]]:
    consts, _, xs = _parts(eqn, env)
    carry, ys = scan
    length = eqn.params["length"]
    t = length - 1 - count if eqn.params["reverse"] else count
    jaxpr, held = _jax.open_jaxpr(eqn.params["jaxpr"])
    renamed = _Iteration(count)
    outs = evaluate(renamed, jaxpr, held, [*consts, *carry, *(x[t] for x in xs)]).outs
    new = [y.at[t].set(x) for y, x in zip(ys, outs[len(carry) :], strict=True)]
    return outs[: len(carry)], new


def _left(eqn: Any, scan: Any) -> list[Any]:
    carry, ys = scan
    return [*carry, *ys]


class _Iteration(Interpreter):
    """Stage one iteration: its sites have the iteration in their addresses."""

    name = "suspend"

    def __init__(self, count: int):
        self.count = count

    def sample(self, frame: Any, site: Any, leaves: list[Any]) -> Any:
        return sample_p.bind(*leaves, site=self._named(site))[0]

    def score(self, frame: Any, site: Any, leaves: list[Any]) -> None:
        score_p.bind(*leaves, site=self._named(site))

    def _named(self, site: Any) -> Any:
        return dataclasses.replace(site, address=f"{site.address}[{self.count}]")


# --- Where to cut -------------------------------------------------------------------------------


def _cuts(jaxpr: Any) -> Any:
    found = False
    for k, eqn in enumerate(jaxpr.eqns):
        if not scores_in(eqn):
            continue
        if eqn.primitive.name == "scan":
            for t in range(eqn.params["length"]):
                found = True
                yield Cut(k, t + 1)
        else:
            found = True
            yield Cut(k + 1)
    if not found:
        yield Cut(len(jaxpr.eqns))


def _random(jaxpr: Any) -> set[Any]:
    """Find the variables that depend on a draw."""
    random: set[Any] = set()
    for eqn in jaxpr.eqns:
        if _jax.contains_effect(eqn) or any(
            v in random for v in eqn.invars if not isinstance(v, _jax.Literal)
        ):
            random.update(eqn.outvars)
    return random


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return atom.val if isinstance(atom, _jax.Literal) else env[atom]
