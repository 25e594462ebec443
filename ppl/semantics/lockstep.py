"""Two programs in lockstep: one draws ahead what the other takes.

Each is a coroutine over its equations: it stops at every one with sites inside, and is sent the
results. Before an equation of the one, the other runs just as far as the equation needs; where both
stand before the same loop, the two loops become one.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from typing import Any

import jax

from ppl import _jax
from ppl.interpreter import Frame, Interpreter, Placed, placed_sites, run_equation
from ppl.interpreter.base import RULES
from ppl.primitives import sample_p, score_p


def _walk(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> Generator[Any, Any, list[Any]]:
    """Run a jaxpr; give each equation with sites, and its operands, and be sent its results."""
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        if not _jax.contains_effect(eqn):
            outs = _jax.bind_equation(eqn, values)
        elif RULES.get(eqn.primitive.name) is RULES["jit"]:  # the same region
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            outs = yield from _walk(*_jax.open_jaxpr(inner), values)
        else:
            outs = yield eqn, values
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


class Ahead:
    """A run that draws ahead, as far as it was needed.

    `waiting` is its next equation with sites, with operands. What it draws, the interpreter
    `drawing` records; those are the sites at `addresses`.
    """

    def __init__(
        self,
        drawing: Interpreter,
        addresses: Container[str],
        jaxpr: Any,
        consts: Sequence[Any],
        args: Sequence[Any],
    ):
        self.drawing, self.addresses = drawing, addresses
        self.frame = Frame(None, {}, None)
        self.waiting: Any = None
        self._walk = _walk(jaxpr, consts, args)
        self.resume(None)

    def resume(self, outs: list[Any] | None) -> None:
        """Go on with the results of the equation that was waiting."""
        self.outs: list[Any] = []
        try:
            self.waiting = self._walk.send(outs)
        except StopIteration as stop:
            self.waiting, self.outs = None, stop.value

    def draw(self) -> None:
        """Run the equation that is waiting, whole."""
        self.resume(run_equation(self.drawing, self.frame, *self.waiting))

    def finish(self) -> list[Any]:
        """Run to the end, and give the outputs."""
        while self.waiting:
            self.draw()
        return self.outs


def lockstep(
    weighing: Interpreter, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], ahead: Ahead
) -> list[Any]:
    """Run a region under `weighing`, which is given what the run ahead recorded of each site."""
    walk, outs = _walk(jaxpr, consts, args), None
    while True:
        try:
            eqn, values = walk.send(outs)
        except StopIteration as stop:
            return stop.value
        wanted, drawn = _latent(eqn, ahead.addresses), ahead.frame.records
        while not wanted.keys() <= drawn.keys():
            if _same_loop(eqn, ahead.waiting[0], ahead.addresses):
                outs = _merged(weighing, eqn, values, ahead)
                break
            ahead.draw()
        else:
            given = {a: drawn[a].value for a in wanted}
            outs = run_equation(weighing, Frame(None, given, None), eqn, values)


def _latent(eqn: Any, known: Container[str]) -> dict[str, Placed]:
    """Find the latent sites of an equation that have a known address."""
    if eqn.primitive in (sample_p, score_p):
        placed = [Placed(eqn.params["site"])]
    else:
        placed = [p for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub)]
    return {
        p.site.address: p for p in placed if p.site.kind == "latent" and p.site.address in known
    }


def _same_loop(eqn: Any, other: Any, known: Container[str]) -> bool:
    """Tell whether two loops hold the same sites, in the same order and along the same axes."""
    if not eqn.primitive.name == other.primitive.name == "scan":
        return False

    def layout(eqn: Any) -> Any:
        axes = {a: p.axis(len(p.scans) + 1) for a, p in _latent(eqn, known).items()}
        return axes, eqn.params["length"], eqn.params["reverse"]

    return layout(eqn) == layout(other)


def _merged(weighing: Interpreter, eqn: Any, values: list[Any], ahead: Ahead) -> list[Any]:
    """Run two loops as one, each iteration in lockstep; the run ahead goes on behind it."""
    other, others = ahead.waiting
    consts, init, xs = _parts(eqn, values)
    their_consts, their_init, their_xs = _parts(other, others)
    jaxpr, held = _jax.open_jaxpr(eqn.params["jaxpr"])
    their_jaxpr, their_held = _jax.open_jaxpr(other.params["jaxpr"])

    def body(carries: Any, slices: Any) -> Any:
        (carry, their_carry), (x, their_x) = carries, slices
        theirs = [*their_consts, *their_carry, *their_x]
        inner = Ahead(ahead.drawing, ahead.addresses, their_jaxpr, their_held, theirs)
        outs = lockstep(weighing, jaxpr, held, [*consts, *carry, *x], inner)
        their_outs = inner.finish()
        n, m = len(carry), len(their_carry)
        return (outs[:n], their_outs[:m]), (outs[n:], their_outs[m:])

    (carry, their_carry), (ys, their_ys) = jax.lax.scan(
        body,
        (init, their_init),
        (xs, their_xs),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    ahead.resume([*their_carry, *their_ys])
    return [*carry, *ys]


def _parts(eqn: Any, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    n, m = _jax.scan_sizes(eqn)
    return values[:n], values[n : n + m], values[n + m :]
