"""`geweke`: does a kernel keep the posterior, whatever the data?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ppl._types import Key
from ppl.check.comparison import compare
from ppl.check.draws import Sample, columns, draw_many
from ppl.check.report import Report
from ppl.check.sequential import require_count
from ppl.check.simulation import generative, log_likelihood, simulated
from ppl.errors import ArgumentError, OpenObservationsError, at, message, named_keywords
from ppl.program import Program
from ppl.semantics.density import joint
from ppl.semantics.handlers import condition
from ppl.semantics.run import as_key
from ppl.semantics.weighted import Trace, trace_of
from ppl.staging import stage
from ppl.statements import scope


@named_keywords
def geweke(
    kernel: Callable[[Trace], Any],
    program: Program,
    *,
    key: Key,
    num_steps: int = 5,
    false_alarm: float = 1e-6,
    resolution: float = 0.03,
    max_draws: int = 200_000,
) -> Report:
    """Check that a Markov kernel leaves the posterior as it is, for data from the program itself.

    **Meaning.** Choices and data are drawn together from the program with its observations left
    open. If the kernel keeps the posterior, then moving the choices by it, given the data, leaves
    their joint law as it was. Moved draws are compared with fresh ones, all independent, by
    two-sample Kolmogorov-Smirnov tests: of every choice, every datum, the log density, the log
    likelihood, and random directions. "failed" has then probability at most `false_alarm`, exactly.
    "passed" looks at those functions only, and says nothing of how fast the kernel mixes.

    Args:
        kernel: a function that, in a model, maps a `Trace` to a `Trace`, or to a program of one.
        program: the program; the data in it serve as an example of their shape.
        key: a JAX key or a seed.
        num_steps: how often the kernel moves each draw; more make an error larger.
        false_alarm: the probability of failing wrongly.
        resolution: the check passes only if differences of about twice this, of any distribution
            function, would have been seen.
        max_draws: simulations allowed, moved and fresh ones each.

    Returns:
        A report; undecided if the draws allowed are too few.

    Raises:
        OpenObservationsError: the program has a factor, so that data cannot be simulated, or the
            kernel scores.
        ArgumentError: the kernel gives something else than a trace, or a setting is out of range.

    Source: Geweke (2004), section 3; Gandy and Scott (2020), section 2, whose independent draws
    replace Geweke's one chain and make the level exact.
    """
    require_count("geweke", "num_steps", num_steps, 1, "5")
    free = generative("geweke", program)
    # Fresh draws do not depend on the kernel, and are compiled once for all kernels.
    sides = [
        stage(_moved, (free, program.observed, move, num_steps), name=f"geweke, {name}")
        for name, move in (("moved", kernel), ("fresh", None))
    ]
    _refuse_kernel_scores(sides[0])

    def draw(side: int, key: Array, num: int) -> Sample:
        return Sample(columns("geweke", draw_many(sides[side], key, num)))

    return compare(
        "geweke",
        draw,
        as_key(key),
        false_alarm=false_alarm,
        resolution=resolution,
        max_draws=max_draws,
        witness=f"first: moved by the kernel; second: fresh draws of\n{program!r}",
    )


def _refuse_kernel_scores(moved: Program) -> None:
    if moved.structure.open_scores:
        site = moved.structure.open_scores[0]
        raise OpenObservationsError(
            message(
                f"geweke got a kernel that scores at {at(site.address, site.source)}",
                needs="a kernel that only draws",
                why="a weighted move is not a probability of moving",
                fix='accept or reject with a draw: ppl.sample("accept", dist.Bernoulli(p))',
            )
        )


def _moved(
    free: Program, observed: tuple[str, ...], kernel: Callable[[Trace], Any] | None, num_steps: int
) -> dict[str, Any]:
    """Draw choices and data, move the choices, and say where they are; a model function."""
    choices, data = simulated(free, observed)
    posterior = condition(free, data)

    trace = trace_of(posterior, choices)
    if kernel is not None:  # the trace goes on from step to step, with what the kernel put into it
        trace, _ = jax.lax.scan(lambda t, _: (_step(kernel, t), None), trace, length=num_steps)
    there = joint(posterior, trace.choices).sites
    found = {a: _where_present(x, there[a].present) for a, x in trace.choices.items()}
    likelihood = log_likelihood(posterior, trace.choices)
    return {**found, **data, "log density": trace.log_density, "log likelihood": likelihood}


def _step(kernel: Callable[[Trace], Any], trace: Trace) -> Trace:
    with scope("kernel"):
        out = kernel(trace)
        out = out() if isinstance(out, Program) else out
    return _like(trace, out)


def _where_present(x: Array, present: Any) -> Array:
    """Mark choices of branches that were not taken; what stands there is a placeholder."""
    if present is None:
        return x
    flags = present.reshape(present.shape + (1,) * (x.ndim - present.ndim))
    return jnp.where(flags, x.astype(jnp.result_type(float, x)), jnp.nan)


def _like(before: Trace, after: Any) -> Trace:
    """Check that the kernel gave a trace of the same form."""
    if _form(before) != _form(after):
        what = "a trace of another form" if isinstance(after, Trace) else type(after).__name__
        raise ArgumentError(
            message(
                f"geweke got a kernel that gave {what}",
                needs=f"a trace with choices of {', '.join(before.choices)}, shapes and dtypes "
                "unchanged",
                why="the move has to end in the space it began in",
                fix="return trace.with_choices({address: new value})",
            )
        )
    return jax.tree.map(lambda b, a: jnp.asarray(a, b.dtype), before, after)


def _form(trace: Any) -> Any:
    leaves, tree = jax.tree.flatten(trace)
    return tree, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]
