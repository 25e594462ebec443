"""Metropolis-Hastings on parameters, where an unbiased estimate stands in for the likelihood.

What `pmmh` and the moves of `smc2` share. The estimate belongs to the state: it is kept as long as
the parameters are, and never made anew for them. Then the chain on parameters and estimates has the
right invariant measure, however noisy the estimates (Andrieu and Roberts 2009).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from ppl import distributions as dist
from ppl._types import Choices, PyTree, pytree, static
from ppl.errors import AddressError, OpenObservationsError, UnsupportedError, at, message
from ppl.model import Model
from ppl.program import Program
from ppl.semantics.density import log_density
from ppl.semantics.kernel import choose
from ppl.semantics.unconstrained import Unconstrained, unconstrain
from ppl.semantics.weighted import traced
from ppl.staging import stage
from ppl.statements import sample, scope

#: Maps choices of parameters to the program of the next ones.
Proposal = Callable[[Choices], Any]


class Point(NamedTuple):
    """Where a chain is: a position, the evidence estimate made there, and what came with it."""

    position: PyTree
    log_evidence: Any
    held: PyTree


class Here(NamedTuple):
    """What a position stands for.

    `log_density` is that of the prior with respect to positions, `log_prior` to parameters.
    """

    parameters: Choices
    log_density: Any
    log_prior: Any


@pytree
class Walk:
    """Gaussian steps of the parameters' unconstrained coordinates, which are the positions."""

    space: Unconstrained

    adapts: ClassVar[bool] = True

    def start(self, parameters: Choices) -> Any:
        """Give the position of parameters."""
        return self.space.flatten(parameters)

    def at(self, position: Any) -> Here:
        """Say what a position stands for."""
        point = self.space.at(position)
        density = point.log_density
        return Here(point.choices, density, density - point.log_jacobian)

    def propose(self, position: Any, root: Any) -> tuple[Any, Any]:
        """Draw a position, and give the log density of the way back over that of the way there.

        `root` is a square root of the steps' covariance.
        """
        noise = sample("step", dist.Normal(0.0, 1.0).expand([self.space.size]).to_event(1))
        return position + root @ noise, 0.0


@pytree
class Given:
    """A proposal that is a program; positions are the parameters themselves."""

    prior: Program
    proposal: Proposal = static()

    adapts: ClassVar[bool] = False

    def start(self, parameters: Choices) -> Any:
        """Give the position of parameters."""
        return parameters

    def at(self, position: Any) -> Here:
        """Say what a position stands for."""
        density = log_density(self.prior, position)
        return Here(position, density, density)

    def propose(self, position: Any, root: Any) -> tuple[Any, Any]:
        """Draw a position, and give the log density of the way back over that of the way there."""
        there = self.program(position)
        drawn = traced(there)().choices
        new = {a: jnp.asarray(drawn[a], x.dtype) for a, x in position.items()}
        back = log_density(self.program(new), position)
        return new, back - log_density(there, new)

    def program(self, parameters: Choices) -> Program:
        """Give the proposal's program at some parameters."""
        whole = self.proposal
        return (
            whole.program(parameters) if isinstance(whole, Model) else stage(whole, (parameters,))
        )


Space = Walk | Given


def space_of(operation: str, prior: Program, proposal: Proposal | None) -> Space:
    """Give the space that chains move in, and check that the proposal fits the parameters."""
    if not prior.latents:
        raise AddressError(
            message(
                f"{operation} got no parameters",
                needs="the address of at least one latent site",
                fix=f'{operation}(..., parameters=["a"])',
            )
        )
    if proposal is None:
        for site in prior.sites:
            if site.kind == "latent" and site.discrete:
                raise UnsupportedError(
                    message(
                        f"{operation} got the discrete parameter {at(site.address, site.source)} "
                        "and no proposal",
                        needs="continuous parameters for Gaussian steps",
                        why="a discrete value has no neighbourhood to take a small step in",
                        fix=f"{operation}(..., proposal=model), where model(parameters) draws "
                        f"{', '.join(prior.latents)}",
                    )
                )
        return Walk(unconstrain(prior))
    space = Given(prior, proposal)
    like = {a: jnp.zeros(prior.sites[a].shape, prior.sites[a].dtype) for a in prior.latents}
    _check(operation, space.program(like), prior)
    return space


def _check(operation: str, made: Program, prior: Program) -> None:
    fix = f"a model of {{address: value}} that draws {', '.join(prior.latents)}"
    for site in made.structure.open_scores:
        raise OpenObservationsError(
            message(
                f"{operation} got a proposal that scores at {at(site.address, site.source)}",
                needs="a proposal without observations, factors or scaled sites",
                why="its density would have to be normalised",
                fix=fix,
            )
        )
    if set(made.latents) != set(prior.latents):
        raise AddressError(
            message(
                f"{operation} got a proposal that draws {', '.join(made.latents) or 'nothing'}",
                needs=f"a proposal that draws {', '.join(prior.latents)}, and nothing else",
                why="the density of a proposed value is that of all that is drawn for it",
                fix=fix,
            )
        )
    for address in made.latents:
        mine, theirs = made.sites[address], prior.sites[address]
        if mine.shape != theirs.shape or mine.discrete != theirs.discrete or mine.conditional:
            said, wanted = (
                f"{'discrete' if s.discrete else 'continuous'} values of shape {s.shape}"
                + (" in a branch" if s.conditional else "")
                for s in (mine, theirs)
            )
            raise AddressError(
                message(
                    f"{operation} got a proposal of {said} at {at(address, mine.source)}",
                    needs=f"{wanted}, as the program has ({theirs.source})",
                    fix=fix,
                )
            )


def require_proper(operation: str, prior: Program, fix: str) -> None:
    """Raise `UnsupportedError` where parameters cannot be drawn from their prior."""
    for site in prior.sites:
        if site.improper:
            where = at(site.address, site.source)
            raise UnsupportedError(
                message(
                    f"{operation} got the improper flat prior at {where}",
                    needs="priors that can be drawn from",
                    why="a flat prior on an unbounded set has no total mass to normalise by",
                    fix=fix.format(site.address),
                )
            )


def move(
    space: Space, rerun: Callable[[Choices], tuple[Any, PyTree]], point: Point, root: Any
) -> tuple[Point, Any]:
    """Propose parameters, estimate their evidence, and accept or reject.

    `rerun` draws, for parameters, a log evidence estimate and what comes with it. Gives also the
    probability of acceptance.
    """
    here = space.at(point.position)
    with scope("proposal"):
        position, log_ratio = space.propose(point.position, root)
    there = space.at(position)
    # Outside of the support nothing is run, as the program may be undefined there.
    inside = there.log_density > -jnp.inf
    with scope("rerun"):
        log_evidence, held = rerun(choose(inside, there.parameters, here.parameters))
    log_ratio += there.log_density + log_evidence - here.log_density - point.log_evidence
    # A ratio that is no number comes from an impossible state; staying is always right.
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, jnp.minimum(log_ratio, 0.0))
    probability = jnp.exp(jnp.where(inside, log_ratio, -jnp.inf))
    accept = sample("accept", dist.Bernoulli(probability)) == 1
    return choose(accept, Point(position, log_evidence, held), point), probability
