"""`rejection`: independent runs, each accepted or not."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ppl.counts import count
from ppl.distributions import Bernoulli
from ppl.errors import named_keywords
from ppl.interpreter import evaluate
from ppl.program import Program, require_program
from ppl.semantics.population import Population
from ppl.semantics.weighted import Recording
from ppl.staging import stage
from ppl.statements import sample


class _Try(Recording):
    """Draw and weigh one run."""

    name = "rejection"
    unbounded = True


@named_keywords
def rejection(program: Program, num_tries: int, *, log_bound: Any = 0.0) -> Program:
    """Accept independent runs by their weight.

    **Meaning.** A run of weight w is accepted with probability w / B, where B = exp(log_bound), and
    then weighs B; if not, nothing. So accepted runs are exact, independent draws from the
    normalised measure; the evidence estimate, B times the share that is accepted, and weighted sums
    are unbiased. A fixed number of runs is tried, as a program has to end; often none is accepted
    where B is far above the mean weight.

    A weight above B would make all this wrong. Such a run weighs NaN, and so does the evidence:
    what reads the population then refuses to go on, and says so.

    Args:
        program: any program.
        num_tries: how many runs.
        log_bound: the log of what no weight exceeds. The default is right where all scores are
            conditions, or probabilities.

    Returns:
        A program of a `Population` of all runs. Its `steps` has "accepted", the share of them.

    Raises:
        ArgumentError: `num_tries` is not a positive integer.

    Source: von Neumann (1951).
    """
    number = count("rejection", "num_tries", num_tries)
    require_program("rejection", program)
    return stage(_rejection, (program, number, log_bound), name=f"rejection({program.name})")


def _rejection(program: Program, num_tries: int, log_bound: Any) -> Population:
    s = program.structure
    name = "accept"
    while any(site.address == name for site in program.sites):
        name += "'"

    def one(_: Any) -> Any:
        outs, weight, records = evaluate(_Try(), s.jaxpr, program.consts, program.args)
        bound = jnp.asarray(log_bound, weight.dtype)
        choices = {a: records[a].value for a in program.latents if a in records}
        present = {a: records[a].present for a in choices}
        present = {a: x for a, x in present.items() if x is not None}
        # Rounding may lift a sum of logs a little above a bound that it meets.
        slack = 32 * jnp.finfo(weight.dtype).eps * jnp.maximum(jnp.abs(bound), 1.0)
        fine = weight - bound <= slack
        chance = jnp.where(fine, jnp.exp(jnp.minimum(weight - bound, 0.0)), 0.0)
        accepted = sample(name, Bernoulli(chance)) == 1
        log_weight = jnp.where(accepted, bound, -jnp.inf)
        log_weight = jnp.where(fine, log_weight, jnp.nan)
        return [jnp.asarray(x) for x in outs], log_weight, choices, present

    outs, weights, choices, present = jax.vmap(one)(jnp.arange(num_tries))
    evidence = jax.nn.logsumexp(weights) - math.log(num_tries)
    share = jnp.mean(weights > -jnp.inf, dtype=weights.dtype)
    # The standard error of a share, relative to it.
    error = jnp.where(
        share > 0, jnp.sqrt((1 / jnp.where(share > 0, share, 1) - 1) / num_tries), jnp.nan
    )
    values = s.rebuild(outs)
    steps = {"accepted": share}
    return Population(values, weights, evidence, choices, program, error, present, steps)
