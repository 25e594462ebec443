"""`extract`: from weighted representations back to programs on their values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl._types import PyTree
from ppl.distributions import Categorical
from ppl.errors import ArgumentError, message
from ppl.program import Program, inline, require_program
from ppl.semantics.population import Population
from ppl.semantics.weighted import Trace, Weighted
from ppl.staging import stage
from ppl.statements import factor, sample, scope


def extract(program: Program) -> Program:
    """Turn a program of weighted values back into a program on the values.

    **Meaning.** A population is collapsed: the run is weighted by the evidence estimate and one
    particle drawn by its normalised weight. So extract(q) denotes f -> E[Z sum_i W_i f(x_i)], and a
    population method t is valid if `enumerate(extract(t(p)))` equals `enumerate(p)`. A `Weighted`
    or `Trace` weighs the run by its weight. Scores that the program itself has stay.

    Args:
        program: a program whose return value is a `Population`, a `Weighted` or a `Trace`.

    Raises:
        ArgumentError: the program returns something else.

    Source: Ścibior et al. (POPL 2018), collapse; the proper weighting of Naesseth et al. (2015).
    """
    require_program("extract", program)
    kind = type(program.structure.shapes)
    if kind not in (Population, Weighted, Trace):
        raise ArgumentError(
            message(
                f"extract got {program.name}, which returns {kind.__name__}",
                needs="a program of Population, Weighted or Trace",
                why="what is to be extracted is a value with its weight",
                fix="ppl.extract(ppl.importance(program, num_particles=100))",
            )
        )
    return stage(_extract, (program,), name=f"extract({program.name})")


def is_weighted(program: Program) -> bool:
    """Tell whether a program's value carries weights that `extract` understands."""
    return type(program.structure.shapes) in (Population, Weighted, Trace)


def _extract(program: Program) -> PyTree:
    name = "extract"
    while any(site.address.startswith(f"{name}/") for site in program.sites):
        name += "'"  # an extraction inside has its own sites
    result = inline(program)
    with scope(name):
        return collapse(result)


def collapse(result: Population | Weighted | Trace) -> PyTree:
    """Weigh the run and give one value: the statement form of `extract`, inside a model."""
    if not isinstance(result, Population):
        factor("weight", result.log_weight)
        return result.value
    factor("evidence", result.log_evidence)
    logits = result.log_weights
    # Where every weight is zero the run has weight zero, whichever particle is taken.
    nothing = jnp.all(logits == -jnp.inf)
    choice: Any = Categorical(logits=jnp.where(nothing, 0.0, _shifted(logits)))
    index = sample("particle", choice)
    return jax.tree.map(lambda x: x[index], result.values)


def _shifted(log_weights: Any) -> Any:
    """Scale the largest weight to one, so that no sum overflows."""
    top = jnp.max(log_weights)
    return log_weights - jnp.where(jnp.isfinite(top), top, 0.0)
