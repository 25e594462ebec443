"""`importance`: weighted runs of a program."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from ppl.errors import (
    AddressError,
    ArgumentError,
    OpenObservationsError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.interpreter import Frame, evaluate
from ppl.primitives import Site, log_prob
from ppl.program import Program, require_program
from ppl.semantics.population import Population
from ppl.semantics.weighted import Recording, Separating
from ppl.staging import stage


class _Proposed(Recording):
    """Keep draws, record each with its elementwise log density."""

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = Separating.latent(self, frame, site, leaves)
        frame.record(site, leaves, (value, log_prob(site, leaves, value)))
        return value


class _Guided(Recording):
    """Take proposed values and add their log densities; draw the rest."""

    name = "importance"
    unbounded = True  # sites in a while_loop are drawn, and have no record

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.address not in frame.given:
            return super().latent(frame, site, leaves)
        value = frame.given[site.address]
        frame.add(jnp.sum(log_prob(site, leaves, value)))
        frame.record(site, leaves, value)
        return value


@named_keywords
def importance(program: Program, num_particles: int, proposal: Program | None = None) -> Program:
    """Weigh independent runs.

    **Meaning.** A population whose evidence is unbiased and whose weighted sums are unbiased for
    the program's measure; normalised weights make estimates consistent with bias O(1 / N).

    Args:
        program: any program.
        num_particles: number of independent runs.
        proposal: a program without scores that draws some of the latent addresses; None draws all
            from the program itself. It must be able to propose whatever the program can draw.

    Returns:
        A program of `Population`.

    Raises:
        ArgumentError: `num_particles` is not a positive integer.
        AddressError: the proposal draws an address the program does not have, or of another shape.
        OpenObservationsError: the proposal scores.
    """
    try:
        count = operator.index(num_particles)
    except TypeError:
        count = 0
    if count < 1:
        raise ArgumentError(
            message(
                f"importance got num_particles={num_particles!r}",
                needs="a positive integer",
                fix="num_particles=1000",
            )
        )
    require_program("importance", program)
    if proposal is not None:
        _check_proposal(program, require_program("importance", proposal))
    return stage(_importance, (program, count, proposal), name=f"importance({program.name})")


def _check_proposal(program: Program, proposal: Program) -> None:
    check_addresses("importance(proposal=)", proposal.latents, program.latents)
    for address in proposal.latents:
        mine, theirs = proposal.sites[address], program.sites[address]
        if mine.shape != theirs.shape or mine.discrete != theirs.discrete:
            said, wanted = (
                f"{'discrete' if s.discrete else 'continuous'} values of shape {s.shape}"
                for s in (mine, theirs)
            )
            raise AddressError(
                message(
                    f"importance got a proposal of {said} at {at(address, mine.source)}",
                    needs=f"{wanted}, as the program has ({theirs.source})",
                    fix="give the proposal's site the program's plates and kind of distribution",
                )
            )
        if mine.placed.whiles or theirs.placed.whiles:
            raise UnsupportedError(
                message(
                    f"importance got a proposal for {at(address, theirs.source)} in a while_loop",
                    needs="proposed sites that occur a known number of times",
                    fix="leave the address out of the proposal, or use jax.lax.scan",
                )
            )
        if mine.conditional:
            raise UnsupportedError(
                message(
                    f"importance got a proposal that may not draw {at(address, mine.source)}",
                    needs="proposal sites outside of branches",
                    why="where the branch is not taken there is no proposed value",
                    fix="draw the site before the branch",
                )
            )
    if proposal.structure.open_scores:
        site = proposal.structure.open_scores[0]
        raise OpenObservationsError(
            message(
                f"importance got a proposal that scores at {at(site.address, site.source)}",
                needs="a proposal without observations or factors",
                why="its density would have to be normalised",
                fix="remove the observation from the proposal",
            )
        )


def _importance(program: Program, num_particles: int, proposal: Program | None) -> Population:
    s = program.structure

    def particle(_: Any) -> Any:
        given, proposed = {}, {}
        if proposal is not None:
            q = proposal.structure
            proposed = evaluate(_Proposed(), q.jaxpr, proposal.consts, proposal.args).records
            given = {a: r.value[0] for a, r in proposed.items() if a in proposal.latents}
        outs, weight, records = evaluate(
            _Guided(), s.jaxpr, program.consts, program.args, given=given
        )
        for address in given:
            # Where the program did not reach the site, the proposed value is not part of the run.
            density = proposed[address].value[1]
            present = records[address].present
            if present is not None:
                extra = (1,) * (density.ndim - present.ndim)
                density = jnp.where(present.reshape(present.shape + extra), density, 0.0)
            weight = weight - jnp.sum(density)
        choices = {a: records[a].value for a in program.latents if a in records}
        present = {a: r.present for a, r in records.items() if a in choices}
        present = {a: x for a, x in present.items() if x is not None}
        return [jnp.asarray(x) for x in outs], weight, choices, present

    outs, weights, choices, present = jax.vmap(particle)(jnp.arange(num_particles))
    evidence = jax.nn.logsumexp(weights) - math.log(num_particles)
    # The delta method: sd(w) / (mean(w) sqrt(N)) is the relative error of the mean weight.
    relative = jnp.where(evidence == -jnp.inf, jnp.nan, jnp.exp(weights - evidence))
    error = jnp.std(relative) / math.sqrt(num_particles)
    return Population(s.rebuild(outs), weights, evidence, choices, program, error, present)
