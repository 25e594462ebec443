"""`importance`: weighted runs of a program."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import named_keywords
from ppl.interpreter import evaluate
from ppl.program import Program, require_program
from ppl.semantics.guided import guided
from ppl.semantics.population import Population
from ppl.semantics.weighted import Recording
from ppl.staging import stage


class _Particle(Recording):
    """Draw and weigh one run."""

    name = "importance"
    unbounded = True  # sites in a while_loop are drawn, and have no record


@named_keywords
def importance(program: Program, num_particles: int, proposal: Program | None = None) -> Program:
    """Weigh independent runs.

    **Meaning.** A population whose evidence is unbiased and whose weighted sums are unbiased for
    the program's measure; normalised weights make estimates consistent with bias O(1 / N).

    Args:
        program: any program.
        num_particles: number of independent runs.
        proposal: a program without scores that draws some of the latent addresses; None draws all
            from the program itself. It must be able to propose whatever the program can draw; how
            the two run together, `ppl.guided` says.

    Returns:
        A program of `Population`.

    Raises:
        ArgumentError: `num_particles` is not a positive integer.
        AddressError: the proposal draws an address the program does not have, or of another shape.
        OpenObservationsError: the proposal scores.
        UnsupportedError: a proposed site stands in a `while_loop`, in a branch of the proposal, or
            is masked.
    """
    number = count("importance", "num_particles", num_particles)
    require_program("importance", program)
    if proposal is not None:
        require_program("importance", proposal)
    return stage(_importance, (program, number, proposal), name=f"importance({program.name})")


def _importance(program: Program, num_particles: int, proposal: Program | None) -> Population:
    drawn = program if proposal is None else guided(program, proposal, operation="importance")
    s = drawn.structure

    def particle(_: Any) -> Any:
        outs, weight, records = evaluate(_Particle(), s.jaxpr, drawn.consts, drawn.args)
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
