"""`smooth`: a particle filter, then trajectories drawn from the last choice to the first."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import named_keywords
from ppl.inference.particles.backward import History
from ppl.inference.particles.bootstrap import Bootstrap, bootstrap_settings
from ppl.inference.particles.future import choose_particle
from ppl.program import Program, require_program
from ppl.resampling import Resampling
from ppl.semantics.population import Population
from ppl.semantics.weighted import trace_of
from ppl.staging import stage
from ppl.statements import scope


@named_keywords
def smooth(
    program: Program,
    num_particles: int,
    num_trajectories: int,
    resample: str | type[Resampling] = "systematic",
    ess_threshold: float = 0.5,
) -> Program:
    """Filter forwards, and draw whole trajectories backwards.

    **Meaning.** A population of equally weighted trajectories whose evidence is that of the filter:
    evidence and weighted sums are unbiased for the program's measure, as those of `smc` are. Given
    the filter, trajectories are independent. In `smc` the early choices of all particles descend
    from a few; here each is drawn from all particles that were there, by weight times the density
    of what follows. In state-space models that is one step; where a program never forgets its past
    it is all that follows, at a cost that is quadratic in time.

    Args:
        program: any program whose latent sites are bounded in number.
        num_particles: number of particles N of the filter.
        num_trajectories: number of trajectories M; each step weighs N particles for each of them.
        resample: name or class of a scheme of `ppl.resampling`.
        ess_threshold: resample where the effective sample size is below this part of N.

    Returns:
        A program of `Population`, of M trajectories; `steps` and `log_evidence_se` are the
        filter's. All trajectories come from one filter, so that standard errors of expectations
        are NaN: repeat the run with other keys to learn them.

    Raises:
        ArgumentError: a setting is out of range.
        UnsupportedError: a latent site stands in a `while_loop`, or a later draw or score reads
            what a loop stacked.

    Source: Godsill, Doucet and West (2004); unbiased with any unbiased resampling scheme, at any
        steps, as each backward draw leaves the law of (filter so far, what follows) as it is.
    """
    require_program("smooth", program)
    settings = bootstrap_settings("smooth", num_particles, resample, ess_threshold)
    num = count("smooth", "num_trajectories", num_trajectories)
    return stage(_smooth, (program, num, *settings), name=f"smooth({program.name})")


def _smooth(
    program: Program,
    num_trajectories: int,
    num_particles: int,
    scheme: type[Resampling],
    ess_threshold: float,
) -> Population:
    run = History("smooth", Bootstrap(scheme, ess_threshold), num_particles, program.latents)
    filtered = run.program(program)

    def trajectory(_: Any) -> Any:
        last = choose_particle("last", filtered.log_weights)
        return trace_of(program, {a: r.value for a, r in run.draw_back(last).items()})

    with scope("backward"):
        traces = jax.vmap(trajectory)(jnp.arange(num_trajectories))
    evidence = filtered.log_evidence
    log_weight = jnp.where(evidence == -jnp.inf, evidence, 0.0)
    return Population(
        traces.value,
        jnp.broadcast_to(log_weight, (num_trajectories,)),
        evidence,
        traces.choices,
        program,
        filtered.log_evidence_se,
        traces.present,
        filtered.steps,
        jnp.zeros(num_trajectories, int),  # one family: they share the filter's error
    )
