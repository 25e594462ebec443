"""Slices of a density: the terms that depend on some of the latents, and no others.

A term is the log density of a site, an observation or a factor. Which terms depend on a latent, and
which equations they need, follows from the program's equations; given all other choices, what leads
to these is not needed. A loop or branch is kept or left out as a whole, but only the terms that
depend are counted in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, ArrayLike

from ppl import _jax
from ppl._types import Scalar
from ppl.errors import check_addresses
from ppl.interpreter import Frame, evaluate
from ppl.primitives import Site, sample_p
from ppl.program import Program, Structure, require_program
from ppl.semantics.cuts import sites_in
from ppl.semantics.density import Density, match_choices
from ppl.semantics.marginal import roles_of


def sliced_density(program: Program, addresses: Sequence[str] | str) -> SlicedDensity:
    """Make the part of a log density that depends on some latents.

    **Meaning.** A function of choices; its differences between choices that differ at `addresses`
    only are those of `ppl.log_density`, wherever the latter is finite. As a function of the named
    latents it is the log density of their conditional distribution given all other choices, up to a
    constant. What the other terms need is not computed.

    Args:
        program: any program whose latent sites are bounded in number.
        addresses: latent sites.

    Returns:
        A function of choices (a value for every latent address), in nats.

    Raises:
        AddressError: an address is not a latent site of the program.
    """
    require_program("sliced_density", program)
    chosen = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    check_addresses("sliced_density", chosen, program.latents)
    terms = roles_of(program, chosen).scored | set(chosen)
    jaxpr, held = _needed(program.structure.jaxpr, terms)
    structure = Structure(
        f"slice({program.name})", lambda: (jaxpr, lambda outs: None, program.structure.consts)
    )
    return SlicedDensity(program, chosen, terms, held, structure)


class Terms(NamedTuple):
    """The sum of the terms, and which sites of theirs exist (those that stand in branches)."""

    log_density: Scalar
    present: dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class SlicedDensity:
    """A part of a log density; made by `sliced_density`.

    `terms` are the addresses of sites, observations and factors that depend on `addresses`;
    `held` are the latents whose values they need beside those they contain.
    """

    program: Program
    addresses: tuple[str, ...]
    terms: frozenset[str]
    held: tuple[str, ...]
    structure: Structure

    def __call__(self, choices: Mapping[str, ArrayLike]) -> Scalar:
        """Add up the terms at a value of every latent address."""
        return self.at(match_choices("sliced_density", self.program, choices)).log_density

    def at(self, choices: Mapping[str, Any]) -> Terms:
        """Evaluate at choices that are known to fit."""
        part = self.given(choices)
        inputs = [*part.consts, *part.args]
        _, weight, records = evaluate(
            _Terms(self.terms), part.structure.jaxpr, [], inputs, given=choices
        )
        present = {a: r.present for a, r in records.items() if r.present is not None}
        return Terms(weight, present)

    def given(self, choices: Mapping[str, Any]) -> Program:
        """Give the equations that the terms need as a program; held latents are its data."""
        held = [choices[a] for a in self.held]
        return Program(self.structure, self.program.consts, [*self.program.args, *held])


class _Terms(Density):
    """Count some terms only; take every choice from what is given, and note which exist."""

    name = "sliced_density"

    def __init__(self, terms: frozenset[str]):
        super().__init__()
        self.terms = terms

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = frame.given[site.address]
        if site.address in self.terms:
            self.observed(frame, site, leaves, value)
            frame.record(site, leaves, value)
        return value

    def observed(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        if site.address in self.terms:
            super().observed(frame, site, leaves, value)

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        if site.address in self.terms:
            super().score(frame, site, leaves)


def _needed(jaxpr: Any, terms: frozenset[str]) -> tuple[Any, tuple[str, ...]]:
    """Keep the equations that terms need; latents that are no terms become inputs."""
    kept, held, wanted = [], {}, set()
    for eqn in reversed(jaxpr.eqns):
        read = not wanted.isdisjoint(eqn.outvars)
        sites = sites_in(eqn)
        latent = eqn.primitive is sample_p and sites[0].kind == "latent"
        if latent and sites[0].address not in terms:
            if read:
                held[eqn.outvars[0]] = sites[0].address
        elif read or any(s.address in terms for s in sites):
            kept.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
    inputs = [*jaxpr.constvars, *jaxpr.invars, *held]
    return _jax.part_of_jaxpr(jaxpr, kept[::-1], inputs, []), tuple(held.values())
