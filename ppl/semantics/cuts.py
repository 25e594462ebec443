"""Where a program may be cut: its pieces, and the loops whose iterations are cut in turn.

A region (the program, or the body of a loop) is a sequence of parts. A part is a loop, if a `scan`
scores, or else a piece: equations of which the draws come before the scores, so that the place for
resampling is in front of it. What does not depend on draws is computed once for all particles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from ppl import _jax
from ppl.interpreter import placed_sites
from ppl.primitives import sample_p, score_p
from ppl.program import Program, inline
from ppl.staging import stage


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Equations without a cut between them: first those that depend on no draw, then the others.

    `inputs` and `outputs` are what the dependent ones read, and what of theirs is needed later.
    """

    shared: tuple[Any, ...]
    jaxpr: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    draws: bool
    scores: bool

    @functools.cached_property
    def latents(self) -> frozenset[str]:
        """The addresses that are drawn here."""
        sites = (s for eqn in self.jaxpr.eqns for s in sites_in(eqn))
        return frozenset(s.address for s in sites if s.kind == "latent")


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A `scan` that scores; `outputs` are the rows it stacks that differ and are needed later."""

    eqn: Any
    consts: tuple[Any, ...]
    body: Region
    outputs: tuple[Any, ...]
    draws: bool
    scores: bool = True

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of constants and of carried values among the operands."""
        return _jax.scan_sizes(self.eqn)

    @property
    def length(self) -> int:
        """The number of iterations."""
        return self.eqn.params["length"]

    @property
    def reverse(self) -> bool:
        """Whether the last iteration comes first."""
        return self.eqn.params["reverse"]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A jaxpr in parts. `random` holds the variables that differ between particles."""

    jaxpr: Any
    parts: tuple[Piece | Loop, ...]
    random: frozenset[Any]

    @property
    def inputs(self) -> list[Any]:
        """The variables that are given."""
        return [*self.jaxpr.constvars, *self.jaxpr.invars]

    def needed_from(self, k: int) -> list[Any]:
        """List the variables that differ between particles and are read from part k on."""
        return self.needed_after(k - 1)

    def needed_after(self, k: int) -> list[Any]:
        """List the variables that differ between particles and are read after part k."""
        later = [v for part in self.parts[k + 1 :] for v in _reads(part)]
        names = [v for v in (*later, *self.jaxpr.outvars) if not isinstance(v, _jax.Literal)]
        return [v for v in dict.fromkeys(names) if v in self.random]


def _reads(part: Piece | Loop) -> Sequence[Any]:
    return part.inputs if isinstance(part, Piece) else part.eqn.invars


def cut(program: Program, shared: Sequence[str] = ()) -> tuple[Program, Region]:
    """Cut a program: give it in a form without inner calls, and the region that this form is.

    Args:
        program: any program.
        shared: addresses of latent sites that are drawn once for all particles.
    """
    flat = stage(_flat, (program,), name=program.name)
    return flat, _cut(flat.structure, tuple(shared))


def _flat(program: Program) -> Any:
    """Inline the program: the loop that evaluates enters `jit` and its like."""
    return inline(program)


@functools.lru_cache(maxsize=256)
def _cut(structure: Any, shared: tuple[str, ...]) -> Region:
    jaxpr = structure.jaxpr
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    return _region(jaxpr, [False] * len(inputs), frozenset(shared))


def _region(jaxpr: Any, flags: Sequence[bool], shared: frozenset[str]) -> Region:
    random = _random(jaxpr, flags, shared)
    parts = list(_parts(jaxpr, random, shared))
    # What a part must hand on is known once the parts are.
    final = []
    for k, part in enumerate(parts):
        later = [v for p in parts[k + 1 :] for v in _touched(p)] + list(jaxpr.outvars)
        wanted = {v for v in later if not isinstance(v, _jax.Literal)}
        final.append(_finished(jaxpr, part, random, wanted, shared))
    return Region(jaxpr, tuple(final), frozenset(random))


@dataclasses.dataclass
class _Open:
    """A piece in the making."""

    shared: list[Any] = dataclasses.field(default_factory=list)
    own: list[Any] = dataclasses.field(default_factory=list)
    draws: bool = False
    scores: bool = False


def _parts(jaxpr: Any, random: set[Any], shared: frozenset[str]) -> Iterator[Any]:
    piece = _Open()
    for eqn in jaxpr.eqns:
        if not _differs(eqn, random, shared):
            piece.shared.append(eqn)
            continue
        draws, scores = draws_in(eqn), scores_in(eqn)
        loop = eqn.primitive.name == "scan" and scores
        if loop or (draws and piece.scores):
            yield piece
            piece = _Open()
        if loop:
            yield eqn
            continue
        piece.own.append(eqn)
        piece.draws, piece.scores = piece.draws or draws, piece.scores or scores
    yield piece


def _touched(part: Any) -> list[Any]:
    eqns = [*part.shared, *part.own] if isinstance(part, _Open) else [part]
    return [v for eqn in eqns for v in eqn.invars]


def _finished(
    region: Any, part: Any, random: set[Any], wanted: set[Any], shared: frozenset[str]
) -> Any:
    if not isinstance(part, _Open):
        jaxpr, consts = _jax.open_jaxpr(part.params["jaxpr"])
        flags = [False] * len(consts) + _loop_flags(part, random, shared)
        rows = part.outvars[_jax.scan_sizes(part)[1] :]
        outputs = tuple(v for v in rows if v in random and v in wanted)
        body = _region(jaxpr, flags, shared)
        return Loop(part, tuple(consts), body, outputs, any(map(draws_in, jaxpr.eqns)))
    made = {v for eqn in part.own for v in eqn.outvars}
    read = [v for eqn in part.own for v in eqn.invars if not isinstance(v, _jax.Literal)]
    inputs = tuple(v for v in dict.fromkeys(read) if v not in made)
    outputs = tuple(v for eqn in part.own for v in eqn.outvars if v in wanted)
    jaxpr = _jax.part_of_jaxpr(region, part.own, inputs, outputs)
    return Piece(tuple(part.shared), jaxpr, inputs, outputs, part.draws, part.scores)


# --- What differs between particles -------------------------------------------------------------


def _random(jaxpr: Any, flags: Sequence[bool], shared: frozenset[str]) -> set[Any]:
    inputs = [*jaxpr.constvars, *jaxpr.invars]
    random = {v for v, flag in zip(inputs, flags, strict=True) if flag}
    for eqn in jaxpr.eqns:
        if not _differs(eqn, random, shared):
            continue
        if eqn.primitive.name == "scan" and scores_in(eqn):
            outs = _loop_outs(eqn, random, shared)
            random.update(v for v, flag in zip(eqn.outvars, outs, strict=True) if flag)
        else:
            random.update(eqn.outvars)
    return random


def _differs(eqn: Any, random: set[Any], shared: frozenset[str]) -> bool:
    """Tell whether an equation is to run for every particle."""
    if any(v in random for v in eqn.invars if not isinstance(v, _jax.Literal)):
        return True
    if eqn.primitive is sample_p:
        site = eqn.params["site"]
        return not (site.kind == "latent" and site.address in shared)
    return _jax.contains_effect(eqn)


def _loop_flags(eqn: Any, random: set[Any], shared: frozenset[str]) -> list[bool]:
    """Tell of the inputs of a loop's body which differ: a carried value may come to differ."""
    flags = [not isinstance(v, _jax.Literal) and v in random for v in eqn.invars]
    n, m = _jax.scan_sizes(eqn)
    jaxpr, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
    while True:
        inner = _random(jaxpr, [False] * len(consts) + flags, shared)
        outs = [not isinstance(v, _jax.Literal) and v in inner for v in jaxpr.outvars]
        wider = [a or b for a, b in zip(flags[n : n + m], outs[:m], strict=True)]
        if wider == flags[n : n + m]:
            return flags
        flags[n : n + m] = wider


def _loop_outs(eqn: Any, random: set[Any], shared: frozenset[str]) -> list[bool]:
    flags = _loop_flags(eqn, random, shared)
    n, m = _jax.scan_sizes(eqn)
    jaxpr, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
    inner = _random(jaxpr, [False] * len(consts) + flags, shared)
    ys = [not isinstance(v, _jax.Literal) and v in inner for v in jaxpr.outvars[m:]]
    return [*flags[n : n + m], *ys]


def stage_equation(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Make an equation part of the model being traced."""
    arrays = [jnp.asarray(v) for v in values] if eqn.primitive in (sample_p, score_p) else values
    return _jax.bind_equation(eqn, arrays)


# --- Sites --------------------------------------------------------------------------------------


def sites_in(eqn: Any) -> list[Any]:
    """List the sites of an equation."""
    if eqn.primitive in (sample_p, score_p):
        return [eqn.params["site"]]
    return [p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub)]


def draws_in(eqn: Any) -> bool:
    """Tell whether an equation draws."""
    return any(site.kind == "latent" for site in sites_in(eqn))


def scores_in(eqn: Any) -> bool:
    """Tell whether an equation scores: observations, factors, and latents with a scale."""
    return any(map(_scoring, sites_in(eqn)))


def _scoring(site: Any) -> bool:
    if site.kind in ("observed", "factor"):
        return True
    return site.kind == "latent" and site.operands([0] * site.tree.num_leaves).scale is not None
