"""Sums within each iteration of a loop, so that the loop goes on scoring step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ppl import _jax
from ppl.errors import UnsupportedError, message
from ppl.interpreter import Frame, Interpreter, evaluate, placed_sites, run_equation
from ppl.program import Program, inline
from ppl.staging import stage

Summing = Callable[[Program, Sequence[str]], Program]


def sum_in_steps(program: Program, addresses: tuple[str, ...], summing: Summing) -> Any:
    """Run a program as a part of the model being traced, with sites summed out where they stand.

    `summing` sums sites out of a program as a whole: here out of the body of each `scan`.
    """
    flat = stage(_inlined, (program,), name=program.name)
    jaxpr, env = flat.structure.jaxpr, {}
    env.update(zip([*jaxpr.constvars, *jaxpr.invars], [*flat.consts, *flat.args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        here = _inside(eqn, addresses)
        if here:
            outs = _summed_scan(eqn, values, here, summing)
        else:
            outs = run_equation(_Staging(), Frame(None, {}, None), eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return flat.structure.rebuild([read(v) for v in jaxpr.outvars])


class _Staging(Interpreter):
    name = "marginalize"


def _inlined(program: Program) -> Any:
    return inline(program)


def _inside(eqn: Any, addresses: Sequence[str]) -> tuple[str, ...]:
    if eqn.primitive.name != "scan":
        return ()
    found = {p.site.address for p in placed_sites(eqn.params["jaxpr"])}
    return tuple(a for a in addresses if a in found)


def in_scans(program: Program, addresses: Sequence[str]) -> tuple[str, ...]:
    """List those of the addresses whose sites stand in a `scan`."""
    return tuple(a for a in addresses if program.sites[a].placed.scans)


def _summed_scan(eqn: Any, values: list[Any], addresses: Any, summing: Summing) -> list[Any]:
    n, m = _jax.scan_sizes(eqn)
    params = eqn.params
    consts, init, rows = values[:n], values[n : n + m], values[n + m :]

    def step(carry: list[Any], row: list[Any]) -> Any:
        body = stage(_body, (_Body(eqn), [*consts, *carry, *row]), name="one iteration")
        outs = inline(summing(body, addresses))
        if not all(isinstance(x, jax.Array) or _jax.is_tracer(x) for x in outs):
            names = ", ".join(f'"{a}"' for a in addresses)
            raise UnsupportedError(
                message(
                    f"marginalize got in_steps=True for {names}, which a loop carries or stacks",
                    needs="sites that nothing outside of their iteration reads",
                    why="each iteration sums by itself",
                    fix="leave in_steps out: the sum then goes over all iterations",
                )
            )
        return list(outs[:m]), list(outs[m:])

    carry, ys = jax.lax.scan(
        step, list(init), list(rows), length=params["length"], reverse=params["reverse"]
    )
    return [*carry, *ys]


class _Body:
    """The body of a scan, compared by the equation."""

    def __init__(self, eqn: Any):
        self.jaxpr, self.consts = _jax.open_jaxpr(eqn.params["jaxpr"])

    def __hash__(self) -> int:
        return id(self.jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Body) and self.jaxpr is other.jaxpr


def _body(body: _Body, values: list[Any]) -> list[Any]:
    return evaluate(_Staging(), body.jaxpr, body.consts, values).outs
