"""`guided`: a program that draws from a proposal, and means the same."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from ppl._types import PyTree
from ppl.distributions import is_masked
from ppl.errors import (
    AddressError,
    OpenObservationsError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.interpreter import Frame, Interpreter
from ppl.primitives import Site, bind, log_prob, presence, value_of, with_operand
from ppl.program import Program, require_program
from ppl.semantics.handlers import Pointing
from ppl.semantics.lockstep import Ahead, lockstep
from ppl.sites import SiteInfo
from ppl.staging import stage
from ppl.statements import factor


@named_keywords
def guided(
    program: Program, proposal: Program, operation: str = "guided", subsampled: bool = False
) -> Program:
    """Draw latent sites from a proposal, and weigh them for it.

    **Meaning.** The measure of `program`, as long as the proposal can propose whatever the program
    can draw. Each address that the proposal draws is drawn from the proposal's distribution; where
    the program comes to the site, the run is weighed by the ratio of the two densities, a factor at
    `<address>/weight`. All other sites, and the value, are the program's; the proposal's value and
    its deterministic sites have no part in the measure, and are left out.

    The proposal runs no further ahead than it must. Scans of both that hold the same proposed
    addresses, have the same length and direction and lay them along the same axes are merged into
    one, so that proposing and weighing alternate. Otherwise (a plate of the proposal for a scan of
    the program, or a scan backwards) the values are drawn before the loop, and wait. A site in a
    branch takes its value from a draw before the branch, at `<address>/proposed`.

    Args:
        program: any program.
        proposal: a program without scores that draws some of the latent addresses.
        operation: what error messages say was called.
        subsampled: let the proposal draw members of a plate with `subsample_size=`. Its density
            counts as often there as the program's: the log weight then has the mean it has with all
            members, but the weight is no longer one of the program's measure.

    Raises:
        AddressError: the proposal draws an address the program does not have, or of another shape.
        OpenObservationsError: the proposal scores.
        UnsupportedError: a proposed site stands in a `while_loop`, in a branch of the proposal, or
            is masked.
    """
    require_program(operation, program)
    _check(program, require_program(operation, proposal), operation, subsampled)
    return stage(_guided, (program, proposal, operation), name=f"guided({program.name})")


def _guided(program: Program, proposal: Program, operation: str) -> PyTree:
    taken = {site.address for site in program.sites}

    def fresh(address: str) -> str:
        while address in taken:
            address += "'"
        taken.add(address)
        return address

    theirs = {a: program.sites[a] for a in proposal.latents}
    apart = {a: fresh(f"{a}/proposed") for a, site in theirs.items() if site.conditional}
    weights = {a: fresh(f"{a}/weight") for a in theirs}
    drawing = _Drawing(operation, apart, {a: x.placed.site for a, x in theirs.items()})
    p, q = program.structure, proposal.structure
    ahead = Ahead(drawing, weights, q.jaxpr, proposal.consts, proposal.args)
    weighing = _Weighing(operation, apart, weights)
    return p.rebuild(lockstep(weighing, p.jaxpr, program.consts, program.args, ahead))


# --- What a site becomes ------------------------------------------------------------------------


class _Drawing(Interpreter):
    """Draw the proposal's sites; record value and elementwise log density.

    `apart` has the addresses of draws that are not the program's sites themselves.
    """

    weighs = True  # in the sense that a user's derivative rule cannot know what it does

    def __init__(self, operation: str, apart: dict[str, str], theirs: dict[str, Site]):
        self.name, self.apart, self.theirs = operation, apart, theirs

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        address = self.apart.get(site.address, site.address)
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        (value,) = bind(dataclasses.replace(plain, address=address), bare)
        density = log_prob(site, leaves, value)
        # Where it is joint for several lanes or iterations of the program, each gets its share.
        rank = max(density.ndim, value.ndim - len(self.theirs[site.address].shape))
        shared = value.shape[density.ndim : rank]
        density = density.reshape(density.shape + (1,) * len(shared)) / math.prod(shared)
        frame.record(site, leaves, (value, jnp.broadcast_to(density, value.shape[:rank])))
        return value


class _Weighing(Pointing):
    """Take proposed values, weigh each where the program has it; keep all other sites."""

    weighs = True

    def __init__(self, operation: str, apart: dict[str, str], weights: dict[str, str]):
        self.name, self.apart, self.weights = operation, apart, weights

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent" or site.address not in self.weights:
            return Interpreter.sample(self, frame, site, leaves)
        value, proposed = frame.given[site.address]
        value = jnp.asarray(value, site.dtype)
        factor(self.weights[site.address], _ratio(site, leaves, value, proposed))
        if site.address not in self.apart:
            return value
        site, leaves = with_operand(site, leaves, "scale", None, mapped=False)
        return bind(*self.rewrite(site, leaves, value))[0]


def _ratio(site: Site, leaves: list[Any], value: Any, proposed: Any) -> Any:
    """Give the log density that the program has over the proposal's, elementwise."""
    density, rank = log_prob(site, leaves, value), len(site.sizes)
    if density.shape != proposed.shape:  # events of one are elements of the other
        density, proposed = (x.sum(tuple(range(rank, x.ndim))) for x in (density, proposed))
    present = presence(site, leaves)
    if present is not None:
        flag = present.reshape(present.shape + (1,) * (proposed.ndim - rank))
        proposed = jnp.where(flag, proposed, 0.0)
    return jnp.where(density == -jnp.inf, -jnp.inf, density - proposed)


# --- What a proposal must be --------------------------------------------------------------------


def _check(program: Program, proposal: Program, operation: str, subsampled: bool) -> None:
    check_addresses(f"{operation}(proposal=)", proposal.latents, program.latents)
    for address in proposal.latents:
        _check_site(f"{operation} got a proposal", proposal.sites[address], program.sites[address])
    for site in proposal.structure.open_scores:
        if subsampled and site.kind == "latent" and program.sites[site.address].weighted:
            continue
        raise OpenObservationsError(
            message(
                f"{operation} got a proposal that scores at {at(site.address, site.source)}",
                needs="a proposal without observations or factors",
                why="its density would have to be normalised",
                fix="remove the observation from the proposal",
            )
        )


def _check_site(got: str, mine: SiteInfo, theirs: SiteInfo) -> None:
    here, there = (at(s.address, s.source) for s in (mine, theirs))
    if mine.shape != theirs.shape or mine.discrete != theirs.discrete:
        said, wanted = (
            f"{'discrete' if s.discrete else 'continuous'} values of shape {s.shape}"
            for s in (mine, theirs)
        )
        raise AddressError(
            message(
                f"{got} of {said} at {here}",
                needs=f"{wanted}, as the program has ({theirs.source})",
                fix="give the proposal's site the program's plates and kind of distribution",
            )
        )
    lanes, densities = (
        theirs.placed.prefix,
        mine.shape[: len(mine.shape) - mine.placed.site.event_dim],
    )
    masked = (
        "probability distributions where a site is proposed",
        "where the mask is false, the density is not that of the draw",
        "leave the address out of the proposal, and masks to observations",
    )
    for holds, what, needs, why, fix in [
        (
            mine.placed.whiles or theirs.placed.whiles,
            f"for {there} in a while_loop",
            "proposed sites that occur a known number of times",
            "in a loop without bounds no array can hold the values",
            "leave the address out of the proposal, or use jax.lax.scan",
        ),
        (
            mine.conditional,
            f"that may not draw {here}",
            "proposal sites outside of branches",
            "where the branch is not taken there is no proposed value",
            "draw the site before the branch",
        ),
        (_masked(mine), f"of a masked distribution at {here}", *masked),
        (_masked(theirs), f"for the masked distribution at {there}", *masked),
        (
            theirs.conditional and len(densities) < len(lanes),
            f"of one density for {lanes} values at {here}",
            "a density of each value of a site that stands in a branch",
            "the density of those that the program reaches is not known",
            "draw them independently, in a plate, a vmap or a scan",
        ),
    ]:
        if holds:
            raise UnsupportedError(message(f"{got} {what}", needs=needs, why=why, fix=fix))


def _masked(site: SiteInfo) -> bool:
    distribution = site.placed.site.operands([0] * site.placed.site.tree.num_leaves).distribution
    return distribution is not None and is_masked(distribution)
