"""The kernel of particle marginal Metropolis-Hastings: propose parameters, redraw all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ppl._types import pytree, static
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.particle_marginal import Point, Proposal, move, space_of
from ppl.inference.pseudo_marginal import as_parameters, prior
from ppl.inference.trace_kernel import TraceKernel, as_addresses
from ppl.semantics.handlers import do
from ppl.semantics.weighted import Trace, trace_of, traced


@named_keywords
def pmmh(parameters: Sequence[str], proposal: Proposal) -> Pmmh:
    """Make the kernel that proposes parameters and redraws all else from the program.

    **Meaning.** Leaves the measure of any program invariant, exactly, and is reversible. For a
    program of the form `ppl.pseudo_marginal` it is particle marginal Metropolis-Hastings: the
    current trace has the particles that its evidence estimate was made with.

    Args:
        parameters: addresses of latent sites that stand outside of loops and branches, and depend
            on no other latent site than parameters.
        proposal: a model function from the current parameters, by address, that draws the next at
            the same addresses.

    Raises:
        AddressError: (when called) a parameter is not a latent site, or the proposal draws others.
        UnsupportedError: (when called) a parameter stands in a loop or branch, or depends on other
            draws.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.2.
    """
    if not callable(proposal):
        raise ArgumentError(
            message(
                f"kernels.pmmh got the proposal {proposal!r}",
                needs="a model function from parameters",
                fix='a @ppl.model that draws ppl.sample("a", dist.Normal(parameters["a"], 0.1))',
            )
        )
    return Pmmh(as_addresses("pmmh", parameters) or (), proposal)


@pytree
class Pmmh(TraceKernel):
    """The kernel of `ppl.kernels.pmmh`."""

    parameters: tuple[str, ...] = static()
    proposal: Proposal = static()

    operation: ClassVar[str] = "pmmh"

    def move(self, trace: Trace) -> Trace:
        """Propose parameters, redraw the rest, and accept or reject."""
        program = trace._known_program("pmmh")
        theirs = prior(program, as_parameters("pmmh", program, self.parameters))
        space = space_of("pmmh", theirs, self.proposal)
        old = {a: trace.choices[a] for a in theirs.latents}

        def rerun(parameters: Any) -> Any:
            run = traced(do(program, parameters))()
            return run.log_weight, run.choices

        # What scaled parameters score is part of their density.
        log_evidence = trace.log_weight - trace_of(theirs, old).log_weight
        held = {a: x for a, x in trace.choices.items() if a not in old}
        point, _ = move(space, rerun, Point(old, log_evidence, held), None)
        return trace.with_choices({**point.held, **point.position})
