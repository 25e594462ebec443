"""What the loop of a program goes through row by row, and what needs all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.program import Program
from ppl.semantics.cuts import Loop, Piece, Region, scores_in, sites_in

_WHY = "a stream sees one row at a time"


class Rows(NamedTuple):
    """The loop among the parts of a region, and where its rows come from.

    `sources` has for each array that is scanned the index of the region's input that it is, or None
    if it counts the iterations. `lost` are the variables that need all rows; nothing that draws,
    scores or enters the loop does.
    """

    part: int
    sources: tuple[int | None, ...]
    lost: frozenset[Any]


def find_rows(operation: str, program: Program, region: Region) -> Rows:
    """Find the one loop that scores, and check that its rows are arguments."""
    loops = [(k, part) for k, part in enumerate(region.parts) if isinstance(part, Loop)]
    if len(loops) != 1:
        places = ", ".join(_place(part.eqn) for _, part in loops) or "none"
        _refuse(
            f"{operation} got {program.name}, with {len(loops)} loops that score ({places})",
            "exactly one jax.lax.scan with observations in its body",
            "its iterations are what the stream advances by",
            "join the loops into one scan over all data",
        )
    k, loop = loops[0]
    if loop.reverse:
        _refuse(
            f"{operation} got {program.name}, whose scan at {_place(loop.eqn)} runs backwards",
            "a scan in the order in which the data arrive",
            _WHY,
            "jax.lax.scan(step, init, data), without reverse=True",
        )
    after = [p for p in region.parts[k + 1 :] if p.scores]
    if after:
        eqn = next(e for p in after if isinstance(p, Piece) for e in p.jaxpr.eqns if scores_in(e))
        _refuse(
            f"{operation} got {program.name}, which scores after its loop, at {_place(eqn)}",
            "scores in the loop or before it",
            "the data never end, and what is returned now must have the weights of the data so far",
            "move the statement into the loop, or in front of it",
        )
    count = sum(loop.sizes)
    sources = tuple(_source(operation, program, region, loop, v) for v in loop.eqn.invars[count:])
    if all(s is None for s in sources):
        _refuse(
            f"{operation} got {program.name}, whose scan at {_place(loop.eqn)} has no data",
            "an argument of the model among what is scanned",
            "there is nothing to feed",
            "jax.lax.scan(step, init, y), with y an argument of the model",
        )
    return Rows(k, sources, _lost(operation, program, region, loop))


def _source(operation: str, program: Program, region: Region, loop: Loop, v: Any) -> int | None:
    """Say which input a scanned array is; None if it is 0, 1, 2, ..."""
    inputs = {u: i for i, u in enumerate(region.inputs)}
    first = len(region.inputs) - len(program.args)
    made = next((e for e in region.jaxpr.eqns if v in e.outvars), None)
    if v in inputs and inputs[v] >= first:
        return inputs[v]
    if made is not None and made.primitive.name == "iota" and len(made.params["shape"]) == 1:
        return None
    if made is None:
        what, why = "an array that the model closes over", "only arguments can be fed"
    elif v in region.random:
        what, why = f"the result of '{_name(made)}' on draws", "each particle would have other data"
    else:
        what, why = f"the result of '{_name(made)}'", _WHY
    return _refuse(
        f"{operation} got {program.name}, whose scan at {_place(loop.eqn)} goes through {what}",
        "a scan over the model's arguments themselves, or jnp.arange of their length",
        why,
        "make the array an argument, scan over it, and compute inside the loop",
    )


def _lost(operation: str, program: Program, region: Region, loop: Loop) -> frozenset[Any]:
    count, carried = sum(loop.sizes), loop.sizes[1]
    why: dict[Any, str] = dict.fromkeys(loop.eqn.invars[count:], "")
    for eqn in region.jaxpr.eqns:
        own = eqn is loop.eqn
        read = eqn.invars[:count] if own else eqn.invars
        bad = [v for v in read if not isinstance(v, _jax.Literal) and v in why]
        if bad and (own or _jax.contains_effect(eqn)):
            through = f"through '{why[bad[0]]}'" if why[bad[0]] else "as a whole"
            _refuse(
                f"{operation} got {program.name}, in which the "
                f"{'loop' if own else 'statement'} at {_place(eqn)} reads all rows, {through}",
                "data that are read row by row, in the body of the scan",
                _WHY,
                "compute what is needed inside the loop, or pass it as an argument of its own",
            )
        outs = eqn.outvars[carried:] if own else eqn.outvars if bad else []
        why.update((v, why.get(v) or _name(eqn)) for v in outs)
    return frozenset(why)


def without(part: Piece | Loop, lost: frozenset[Any]) -> Piece | Loop:
    """Leave out of a piece what needs all rows."""
    if isinstance(part, Loop):
        return part

    def kept(eqns: Any) -> list[Any]:
        return [
            e
            for e in eqns
            if not any(not isinstance(v, _jax.Literal) and v in lost for v in e.invars)
            and not any(v in lost for v in e.outvars)
        ]

    def having(variables: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(v for v in variables if v not in lost)

    inputs, outputs = having(part.inputs), having(part.outputs)
    jaxpr = _jax.part_of_jaxpr(part.jaxpr, kept(part.jaxpr.eqns), inputs, outputs)
    return Piece(tuple(kept(part.shared)), jaxpr, inputs, outputs, part.draws, part.scores)


def _name(eqn: Any) -> str:
    return eqn.params.get("name", eqn.primitive.name)


def _place(eqn: Any) -> str:
    site = sites_in(eqn)[0]
    return at(site.address, site.source)


def _refuse(what: str, needs: str, why: str, fix: str) -> Any:
    raise UnsupportedError(message(what, needs=needs, why=why, fix=fix))
