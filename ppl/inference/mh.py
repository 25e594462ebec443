"""`mh`: Metropolis-Hastings-Green, for any proposal that is a program.

The proposal draws values at addresses of the program. Every other element keeps its value as long
as it exists; one that comes into being and is not proposed is drawn from the program. Then

          p(y)   q(y -> x)
    ratio = ---- * ---------,
          p(x)   q(x -> y)

where q counts the elements that a move draws and that exist: those proposed, and those drawn from
the program. What is proposed and does not exist in y is an auxiliary variable. The way back has its
own, which are drawn from the proposal at y, given what it has to propose; so their densities cancel
(Storvik 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from ppl._types import PyTree, pytree, static
from ppl.errors import (
    AddressError,
    ArgumentError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.inference.redrawing import Elements, Given, canonical, like, refuse_scores, rerun
from ppl.inference.trace_kernel import Step, Time, TraceKernel, accepted, as_addresses, over
from ppl.model import Model
from ppl.program import Program
from ppl.semantics.kernel import choose
from ppl.semantics.weighted import Trace
from ppl.sites import SiteInfo
from ppl.staging import stage
from ppl.statements import scope

Proposal = Callable[[Trace], Any]


@named_keywords
def mh(proposal: Proposal, *, addresses: Sequence[str] | None = None) -> MH:
    """Make the Metropolis-Hastings kernel with a proposal of one's own.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, whatever the proposal,
    and is reversible. Which sites the proposal draws may depend on the trace and on what it draws:
    a site that both the old and the new run have must be drawn on the way there and on the way
    back, or on neither; other moves are rejected. Sites that come and go with branches may be
    proposed; those that are not are drawn from the program.

    Args:
        proposal: a model function from the present trace that draws new values with `ppl.sample`,
            at addresses of the program's latent sites. It reads `trace.choices` and `trace.value`.
            Its value is not used.
        addresses: the sites that the proposal may draw; None for all.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: the proposal is no function.
        AddressError: (when called) the proposal draws nothing, an address that the program does not
            have or that is not among `addresses`, or values of another shape or kind.
        OpenObservationsError: (when called) the proposal scores.
        UnsupportedError: (when called) the proposal proposes elements of a branch jointly, or a
            site with an improper flat prior may have to be drawn from the program.

    Source: Metropolis et al. (1953), Hastings (1970), Green (1995); proposals as programs as in
    Cusumano-Towner et al. (2019).
    """
    if not callable(proposal):
        raise ArgumentError(
            message(
                f"mh got the proposal {proposal!r}",
                needs="a model function from a trace",
                fix="a function of the trace that draws "
                'ppl.sample("x", dist.Normal(trace.choices["x"], 0.5))',
            )
        )
    return MH(proposal, as_addresses("mh", addresses))


@pytree
class MH(TraceKernel):
    """The kernel of `mh`."""

    proposal: Proposal = static()
    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "mh"

    def move(self, trace: Trace) -> Trace:
        """Propose, complete the run, and accept or not."""
        return self.step(trace, (), Time(0, 0)).trace

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Move, and report the probability of acceptance."""
        found = propose(trace, self)
        ratio = jnp.where(found.returns, found.log_q - found.log_p, -jnp.inf)
        rate = jnp.exp(jnp.minimum(0.0, jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)))
        return Step(choose(accepted(ratio), found.trace, trace), memory, {"acceptance_rate": rate})

    def _proposal(self, trace: Trace) -> Program:
        whole = self.proposal
        return whole.program(trace) if isinstance(whole, Model) else stage(whole, (trace,))


class Proposed(NamedTuple):
    """A proposed trace, and what its acceptance depends on.

    `log_p` and `log_q` are the log densities of the old trace and the new one, over those of what
    is drawn on the way there; `returns` tells whether the way back draws what the way there did.
    """

    trace: Trace
    log_p: Any
    log_q: Any
    returns: Any


def propose(trace: Trace, kernel: MH) -> Proposed:
    """Draw what the proposal draws, and complete the run."""
    trace = canonical(trace)
    program, forth = trace._known_program("mh"), kernel._proposal(trace)
    _check(program, forth, kernel.addresses)
    old = rerun("mh", program, {a: Given(x) for a, x in trace.choices.items()})
    with scope("proposal"):
        there = rerun("mh", forth, {})
    proposed = _proposed(old, there)
    given, completed = {}, _completed(program, forth)
    for address, x in trace.choices.items():
        if address in proposed:
            flag = like(proposed[address], there.log_density[address])
            x = jnp.where(over(flag, x), there.choices[address].astype(x.dtype), x)
        keep = old.exists[address] | proposed.get(address, False)
        given[address] = Given(x, keep if address in completed else None)
    with scope("completion"):
        new = rerun("mh", program, given)
    moved = trace.with_choices(new.choices)
    returning = {}
    for address in forth.latents:
        x = trace.choices[address].astype(there.choices[address].dtype)
        keep = like(old.exists[address], there.log_density[address])
        returning[address] = Given(x, keep if program.sites[address].conditional else None)
    with scope("return"):
        back = rerun("mh", kernel._proposal(moved), returning)
    returned = _proposed(old, back)
    same = [
        jnp.all((proposed[a] == returned[a]) | ~old.exists[a] | ~new.exists[a]) for a in proposed
    ]
    return Proposed(
        moved,
        _divided(trace.log_density, _drawn(back, returned, new, old)),
        _divided(moved.log_density, _drawn(there, proposed, old, new)),
        jnp.all(jnp.array(same)),
    )


def _proposed(run: Elements, proposal: Elements) -> dict[str, Any]:
    """Say which elements of the program's sites a run of the proposal drew."""
    return {a: like(f, run.log_density[a]) for a, f in proposal.exists.items()}


def _drawn(proposal: Elements, proposed: dict[str, Any], one: Elements, two: Elements) -> Any:
    """Give the log density of what is drawn on the way from one run to the other, and exists."""
    existing = {
        a: f & like(two.exists[a], proposal.log_density[a]) for a, f in proposal.exists.items()
    }
    completing = {
        a: f & ~one.exists[a] & ~proposed.get(a, jnp.zeros((), bool)) for a, f in two.exists.items()
    }
    return proposal.total(existing) + two.total(completing)


def _divided(log_density: Any, log_drawn: Any) -> Any:
    """Divide the draws of the move out; an impossible run has weight zero, whatever was drawn."""
    possible = log_density > -jnp.inf
    return jnp.where(possible, log_density - jnp.where(possible, log_drawn, 0.0), -jnp.inf)


def _completed(program: Program, proposal: Program) -> tuple[str, ...]:
    """List the sites that may come into being without being proposed."""
    always = [a for a in proposal.latents if not proposal.sites[a].conditional]
    return tuple(
        s.address
        for s in program.sites
        if s.kind == "latent" and s.conditional and s.address not in always
    )


# --- What a proposal must be --------------------------------------------------------------------


def _check(program: Program, proposal: Program, addresses: tuple[str, ...] | None) -> None:
    check_addresses("mh", addresses or (), program.latents)
    refuse_scores("mh got a proposal", proposal)
    check_addresses("mh(proposal=)", proposal.latents, program.latents)
    strange = [a for a in proposal.latents if addresses is not None and a not in addresses]
    if strange or not proposal.latents:
        raise AddressError(
            message(
                f"mh got a proposal that draws {', '.join(strange) or 'nothing'}",
                needs=f"draws at addresses among {', '.join(addresses or program.latents)}",
                why="nothing else is to move",
                fix="ppl.kernels.mh(proposal) without addresses"
                if strange
                else 'ppl.sample("x", ...) in the proposal, for a latent site "x"',
            )
        )
    for address in proposal.latents:
        _check_site(proposal.sites[address], program.sites[address])
    for address in _completed(program, proposal):
        site = program.sites[address]
        if site.improper:
            raise UnsupportedError(
                message(
                    f"mh got the improper flat prior at {at(site.address, site.source)}",
                    needs="a proposal that always draws it",
                    why="where it comes into being without a proposal it is drawn from its "
                    "distribution, and a flat prior has no total mass",
                    fix=f'ppl.sample("{address}", ...) in the proposal, outside of branches',
                )
            )


def _check_site(mine: SiteInfo, theirs: SiteInfo) -> None:
    where = at(mine.address, mine.source)
    if mine.shape != theirs.shape or mine.discrete != theirs.discrete:
        said, wanted = (
            f"{'discrete' if s.discrete else 'continuous'} values of shape {s.shape}"
            for s in (mine, theirs)
        )
        raise AddressError(
            message(
                f"mh got a proposal of {said} at {where}",
                needs=f"{wanted}, as the program has ({theirs.source})",
                fix="a distribution, plates and loops of the same shape",
            )
        )
    if _joint(mine, theirs) or _joint(theirs, mine):
        raise UnsupportedError(
            message(
                f"mh got a proposal at {where} whose branches and events lie across those of the "
                f"program ({theirs.source})",
                needs="elements in a branch of the one to be elements of the other",
                why="part of a vector that is drawn as one would exist, or be proposed",
                fix="the same plates, loops and branches around the site in both",
            )
        )


def _joint(one: SiteInfo, other: SiteInfo) -> bool:
    """Tell whether elements that are one in the one may differ in the other in being there."""
    rank = len(one.shape) - one.placed.site.event_dim
    return other.conditional and len(other.placed.prefix) > rank
