"""`same_measure`: two programs compared as measures, by draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from ppl._types import Key, PyTree
from ppl.check.comparison import compare
from ppl.check.draws import Sample, columns, draw_many, log_weights
from ppl.check.report import Report
from ppl.errors import named_keywords
from ppl.program import Program, require_program
from ppl.semantics.run import as_key
from ppl.semantics.weighted import Weighted, weighted
from ppl.staging import stage


def _measured(program: Program, statistics: Callable[[Any], Any] | None) -> Weighted:
    """A draw's statistics and its weight."""
    run = weighted(program)()
    return Weighted(run.value if statistics is None else statistics(run.value), run.log_weight)


@named_keywords
def same_measure(
    p: Program,
    q: Program,
    *,
    key: Key,
    statistics: Callable[[PyTree], PyTree] | None = None,
    false_alarm: float = 1e-6,
    resolution: float = 0.05,
    max_draws: int = 1_000_000,
    name: str = "same_measure",
) -> Report:
    """Compare two programs as unnormalised measures, by draws.

    **Meaning.** "failed" has probability at most `false_alarm` if both denote one measure. Test
    functions are the coordinates of the value and random directions through them. If neither
    program scores, their laws are compared by two-sample Kolmogorov-Smirnov tests, whose level is
    exact. Otherwise the total mass and the masses of sets {x <= t} are compared; their level rests
    on Cramér's approximation and finite third moments of the weights (`pvalues.contrast`). "passed"
    tells that a difference of the stated size would have been seen; it looks at those functions
    only.

    Args:
        p: a program; it may score.
        q: another, with a value of the same form.
        key: a JAX key or a seed.
        statistics: a function of a value that gives the numbers to compare; None for the value.
        false_alarm: the probability of failing wrongly.
        resolution: the check passes only if differences of about twice this, as part of the mass,
            would have been seen.
        max_draws: draws allowed of each program.
        name: what the report is called.

    Returns:
        A report; undecided if the draws allowed are too few.

    Raises:
        ArgumentError: the values have different forms, or a setting is out of range.
        ResultError: a run has a weight that is no number.

    Source: Gandy and Scott (2020), section 3.
    """
    programs = (require_program(name, p), require_program(name, q))
    scores = any(x.structure.open_scores for x in programs)
    measured = [stage(_measured, (x, statistics), name=x.name) for x in programs]

    def draw(side: int, key: Array, num: int) -> Sample:
        value, log_weight = _fields(draw_many(measured[side], key, num))
        found = columns(name, value)
        if not scores:
            return Sample(found)
        logs = log_weights(name, log_weight)
        return Sample(found, logs, _rounding(log_weight))

    return compare(
        name,
        draw,
        as_key(key),
        false_alarm=false_alarm,
        resolution=resolution,
        max_draws=max_draws,
        witness=f"first: {p!r}\n\nsecond: {q!r}",
    )


def _fields(value: Weighted) -> tuple[Any, Any]:
    return value.value, value.log_weight


def _rounding(log_weight: Any) -> float:
    """The relative error of a mean weight that rounding explains."""
    finite = log_weight[np.isfinite(log_weight)]
    size = float(np.max(np.abs(finite))) if finite.size else 0.0
    return 16 * float(np.finfo(log_weight.dtype).eps) * (1 + size)
