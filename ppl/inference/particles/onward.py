"""What is left of a program from a place on, as far as its density there needs it.

The rest of a run is the rest of the region, further iterations of the loop around, and what follows
the loop. Where all choices to come are given, a state-space model forgets where it comes from: what
is carried depends on the particle for a few iterations only, and the others need not be looked at.
How many is read off the loop's body.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.inference.particles.run import Place
from ppl.primitives import sample_p
from ppl.semantics.cuts import Loop, Piece, Region, sites_in


@dataclasses.dataclass(frozen=True, eq=False)
class Onward:
    """How a run goes on when an iteration is over.

    `body` is the loop's body, from its inputs to the carried values at the indices `carried`: those
    on which a density to come depends. `after` is what follows the loop in the region around it.
    """

    part: Loop
    body: Any
    carried: tuple[int, ...]
    after: Any
    region: Region
    around: Onward | None

    def place_of(self, v: Any) -> int | None:
        """Say which of the carried values an output of the loop is; None for no output of it."""
        outs = [self.part.eqn.outvars[i] for i in self.carried]
        return outs.index(v) if v in outs else None


@dataclasses.dataclass(frozen=True, eq=False)
class Rest:
    """What is left from a place on.

    `jaxpr` goes to the end of the region; then come `steps` further iterations of the loop around;
    then `after`, unless its density is the same whatever the particle held at the place.
    """

    jaxpr: Any
    steps: int
    after: Rest | None
    onward: Onward | None


def rest_of(operation: str, place: Place) -> Rest:
    """Find what is left from a place on.

    Raises:
        UnsupportedError: it reads what a loop stacked in earlier iterations.
    """
    onward = _onward(place)
    wanted = _outputs(place.region, onward)
    jaxpr = _pruned(place.region.jaxpr, _equations(place.region, place.index), wanted)
    flags = [v in place.region.random for v in jaxpr.invars]
    return _rest(operation, jaxpr, flags, onward)


def _rest(operation: str, jaxpr: Any, flags: Sequence[bool], onward: Onward | None) -> Rest:
    """Find what is left; the flags tell which inputs of the jaxpr depend on the particle."""
    if onward is None:
        return Rest(jaxpr, 0, None, None)
    every, random = onward.part.length - 1, onward.part.body.random
    inputs = onward.body.invars
    n, m = onward.part.sizes
    first = onward.part.body.jaxpr.invars
    carries = [first[n + i] for i in onward.carried]
    state, steps = _depends(jaxpr, flags), 0
    always = [v in random and v not in first[n : n + m] for v in inputs]
    # A dependence that is not over after as many iterations as there are values never is.
    while any(state) and steps <= len(carries) and not any(always):
        held = dict(zip(carries, state, strict=True))
        state, steps = _depends(onward.body, [held.get(v, False) for v in inputs]), steps + 1
    if any(state) or any(always):
        state, steps = [True] * len(state), every

    def reaches(v: Any) -> bool:
        k = onward.place_of(v)
        return v in onward.region.random if k is None else state[k]

    flags = [reaches(v) for v in onward.after.invars]
    after = _rest(operation, onward.after, flags, onward.around)
    if not (any(flags) or after.steps or after.after):
        return Rest(jaxpr, min(steps, every), None, onward)
    _refuse_rows(operation, onward)
    return Rest(jaxpr, every, after, onward)


def _refuse_rows(operation: str, onward: Onward) -> None:
    _, m = onward.part.sizes
    rows = [v for v in onward.part.eqn.outvars[m:] if v in onward.after.invars]
    if not rows:
        return
    readers = [e for e in onward.after.eqns if any(v in rows for v in e.invars)]
    sites = [s for e in onward.after.eqns for s in sites_in(e) if s.kind != "deterministic"]
    named = [s for e in readers for s in sites_in(e)] or sites
    where = at(named[0].address, named[0].source) if named else "what follows a loop"
    raise UnsupportedError(
        message(
            f"{operation} met {where}, which reads what a loop stacked in all its iterations",
            needs="later draws and scores to read what the loop carries",
            why="rows of earlier iterations differ from one possible past to another, and are not "
            "kept for each",
            fix="carry what is read through the loop, or ppl.kernels.conditional_smc(...) without "
            "ancestor or backward sampling",
        )
    )


# --- Parts of jaxprs ----------------------------------------------------------------------------


def _onward(place: Place) -> Onward | None:
    """Find how the run goes on after the region of a place; None if that is the program's end."""
    return None if place.around is None else onward_of(place.around.loop, place.around.place)


def onward_of(part: Loop, outer: Place) -> Onward:
    """Find how a run goes on when an iteration of a loop is over; the loop stands at `outer`."""
    beyond = _onward(outer)
    eqns = _equations(outer.region, outer.index + 1)
    after = _pruned(outer.region.jaxpr, eqns, _outputs(outer.region, beyond))
    n, m = part.sizes
    jaxpr = part.body.jaxpr
    ins, outs = jaxpr.invars[n : n + m], part.eqn.outvars[:m]
    carried = {i for i, v in enumerate(outs) if v in after.invars}
    while True:
        wanted = [jaxpr.outvars[i] for i in sorted(carried)]
        body = _pruned(jaxpr, jaxpr.eqns, wanted)
        wider = carried | {i for i, v in enumerate(ins) if v in body.invars}
        if wider == carried:
            return Onward(part, body, tuple(sorted(carried)), after, outer.region, beyond)
        carried = wider


def _outputs(region: Region, onward: Onward | None) -> list[Any]:
    """List the outputs of a region that are still wanted when it is over."""
    return [] if onward is None else [region.jaxpr.outvars[i] for i in onward.carried]


def _equations(region: Region, index: int) -> list[Any]:
    return [eqn for part in region.parts[index:] for eqn in _of_part(part)]


def _of_part(part: Piece | Loop) -> Iterator[Any]:
    if isinstance(part, Loop):
        yield part.eqn
    else:
        yield from part.shared
        yield from part.jaxpr.eqns


def _pruned(jaxpr: Any, eqns: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Keep the equations that draw or score, and those that they or the outputs need."""
    kept: list[Any] = []
    needed = {v for v in outputs if not isinstance(v, _jax.Literal)}
    for eqn in reversed(eqns):
        weighs = any(site.kind != "deterministic" for site in sites_in(eqn))
        if weighs or any(v in needed for v in eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
    made = {v for eqn in kept for v in eqn.outvars}
    everything = [*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars)]
    inputs = [v for v in everything if v in needed and v not in made]
    return _jax.part_of_jaxpr(jaxpr, kept[::-1], inputs, outputs)


# --- What depends on what, if choices are given -------------------------------------------------


def _depends(jaxpr: Any, flags: Sequence[bool]) -> list[bool]:
    """Tell which outputs depend on the inputs that are flagged, if all choices are given."""
    env = dict(zip(jaxpr.invars, flags, strict=True))

    def read(atom: Any) -> bool:
        return not isinstance(atom, _jax.Literal) and env.get(atom, False)

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _outs(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _outs(eqn: Any, ins: list[bool]) -> list[bool]:
    if eqn.primitive is sample_p:
        site = eqn.params["site"]
        return [site.kind != "latent" and any(jax.tree.leaves(site.operands(ins).value))]
    match eqn.primitive.name:
        case "cond":
            branches = [_jax.open_jaxpr(b)[0] for b in eqn.params["branches"]]
            outs = zip(*(_depends(b, ins[1:]) for b in branches), strict=True)
            return [ins[0] or any(flags) for flags in outs]
        case "scan":
            n, m = _jax.scan_sizes(eqn)
            body, flags = _jax.open_jaxpr(eqn.params["jaxpr"])[0], list(ins)
            while True:
                outs = _depends(body, flags)
                wider = [a or b for a, b in zip(flags[n : n + m], outs, strict=False)]
                if wider == flags[n : n + m]:
                    return [*wider, *outs[m:]]
                flags[n : n + m] = wider
        case _:
            return [any(ins)] * len(eqn.outvars)
