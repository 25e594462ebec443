"""All that particles have chosen so far, and the program up to where they are.

A `Remembering` run carries every choice, so that a kernel may change any of them. Inside a loop the
choices of earlier iterations stand in buffers; what the particles hold outside the loop is carried
through it, as a move changes that too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from ppl.inference.particles.cloud import moved, read
from ppl.inference.particles.run import Place, is_held
from ppl.interpreter import Record
from ppl.program import Program
from ppl.semantics.cuts import Loop, Piece, stage_equation
from ppl.semantics.weighted import Trace
from ppl.staging import stage


def choices_at(
    place: Place, values: dict[Any, Any], inside: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Give all choices so far by address, of shape (particle, *site).

    `inside` has those of a loop in the region of the place.
    """
    here = {name[1:]: x.value for name, x in values.items() if is_held(name)} | dict(inside)
    if (around := place.around) is None:
        return here
    for address, buffer in values[around.memory.choices].items():
        if address in here:
            buffer = buffer.at[:, around.iteration].set(here[address])
        here[address] = moved(1, 1 + around.axes[address])(buffer)
    return choices_at(around.place, around.memory.outside(values), here)


def with_choices(
    place: Place, values: dict[Any, Any], traces: Trace, state: list[list[Any]]
) -> dict[Any, Any]:
    """Put the choices of traces in the place of those so far, and what the program makes of them.

    `state` is what `program_up_to` gives: what is held in each region, innermost first.
    """
    (own, *outer), around = state, place.around
    values = {**values, **dict(zip(_variables(values), own, strict=True))}
    for name in filter(is_held, values):
        values[name] = record_of(traces, name[1:], values[name], place)
    if around is None:
        return values
    memory = around.memory
    values[memory.choices] = {
        a: _rows(place, a, traces.choices[a]) if a in traces.choices else buffer
        for a, buffer in values[memory.choices].items()
    }
    outside = with_choices(around.place, memory.outside(values), traces, outer)
    return {**values, memory.name: [outside[k] for k in memory.keys]}


def record_of(traces: Trace, address: str, old: Record, place: Place | None = None) -> Record:
    """Give the record of a site from traces, as it stands in the region of a place."""

    def here(x: Any) -> Any:
        return x if place is None else _here(place, address, x)

    if old.present is None:
        return Record(here(traces.choices[address]))
    return Record(here(traces.choices[address]), here(traces.present[address]))


def _here(place: Place, address: str, x: Any) -> Any:
    """Give the part of a site's array that belongs to the present iterations."""
    return x if place.around is None else _rows(place, address, x)[:, place.around.iteration]


def _rows(place: Place, address: str, x: Any) -> Any:
    """Give what belongs to the loop around, of shape (particle, iteration, ...)."""
    around = place.around
    assert around is not None
    return moved(1 + around.axes[address], 1)(_here(around.place, address, x))


def _variables(values: dict[Any, Any]) -> list[Any]:
    return [v for v in values if not isinstance(v, str)]


# --- The program up to a place ------------------------------------------------------------------


def program_up_to(flat: Program, place: Place, values: dict[Any, Any]) -> Program:
    """Give the program up to and including the part at a place, for one particle.

    Its value is what a particle holds there: a list of values for the region of the place, one for
    the region around it, and so on. Iterations of loops that are yet to come are skipped.
    """
    places, wanted, iterations = [place], [_variables(values)], []
    while (around := places[-1].around) is not None:
        iterations.append(around.iteration)
        values = around.memory.outside(values)
        wanted.append(_variables(values))
        places.append(around.place)
    path = _Path(tuple(p.index for p in places), tuple(map(tuple, wanted)), places[-1].region)
    return stage(_up_to, (flat, path, iterations), name=f"{flat.name} so far")


class _Path:
    """Where to stop: the part of each region, innermost first, and what is wanted of each."""

    def __init__(self, indices: tuple[int, ...], wanted: tuple[tuple[Any, ...], ...], region: Any):
        self.indices, self.wanted, self.region = indices, wanted, region

    def __hash__(self) -> int:
        return hash((self.indices, self.wanted, self.region))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Path) and vars(self) == vars(other)


def _up_to(flat: Program, path: _Path, iterations: list[Any]) -> list[list[Any]]:
    region = path.region
    env = dict(zip(region.inputs, [*flat.consts, *flat.args], strict=True))
    return _region(region, env, path, len(path.indices) - 1, iterations)


def _region(region: Any, env: dict[Any, Any], path: _Path, level: int, iterations: Any) -> Any:
    index = path.indices[level]
    for part in region.parts[:index]:
        _part(part, env)
    part, inner = region.parts[index], []
    if isinstance(part, Loop):
        inner = _loop(part, env, path, level - 1, iterations)
    else:
        _part(part, env)
    return [*inner, [env[v] for v in path.wanted[level]]]


def _part(part: Piece | Loop, env: dict[Any, Any]) -> None:
    eqns = [part.eqn] if isinstance(part, Loop) else [*part.shared, *part.jaxpr.eqns]
    for eqn in eqns:
        outs = stage_equation(eqn, [read(env, {}, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))


def _loop(part: Loop, env: dict[Any, Any], path: _Path, level: int, iterations: Any) -> Any:
    """Run the iterations that are over as they are, the present one up to its part."""
    n, m = part.sizes
    body, now = part.body, iterations[level]
    operands = [read(env, {}, v) for v in part.eqn.invars]
    consts, init, rows = operands[:n], operands[n : n + m], operands[n + m :]

    def entered(carry: Any, row: Any) -> dict[Any, Any]:
        return dict(zip(body.inputs, [*part.consts, *consts, *carry, *row], strict=True))

    def whole(carry: Any, row: Any) -> Any:
        inner = entered(carry, row)
        for p in body.parts:
            _part(p, inner)
        outs = [read(inner, {}, v) for v in body.jaxpr.outvars[:m]]
        return [jnp.asarray(x, c.dtype) for x, c in zip(outs, carry, strict=True)]

    def partly(carry: Any, row: Any) -> Any:
        return _region(body, entered(carry, row), path, level, iterations)

    init = [jnp.asarray(x, v.aval.dtype) for x, v in zip(init, body.jaxpr.invars[n:], strict=False)]
    like = jax.eval_shape(partly, init, [x[0] for x in rows])
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)

    def step(state: Any, x: Any) -> Any:
        carry, found = state
        i, row = x
        past = i > now if part.reverse else i < now
        which = jnp.where(i == now, 1, jnp.where(past, 0, 2))
        run = [
            lambda: (whole(carry, row), found),
            lambda: (carry, partly(carry, row)),
            lambda: (carry, found),
        ]
        return jax.lax.switch(which, run), None

    (_, found), _ = jax.lax.scan(
        step, (init, nothing), (jnp.arange(part.length), rows), reverse=part.reverse
    )
    return found
