"""`same_mean`: the mean of a program's value against an exact one, by draws."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ppl._types import Key, PyTree
from ppl.check import pvalues
from ppl.check.comparison import GROWTH, STAGES
from ppl.check.draws import columns, draw_many
from ppl.check.report import Report, number
from ppl.check.sequential import (
    Outcome,
    passing_level,
    require_between,
    require_count,
    sequential,
)
from ppl.errors import ArgumentError, message, named_keywords
from ppl.program import Program, require_program
from ppl.semantics.run import as_key, refuse_scores


@named_keywords
def same_mean(
    program: Program,
    exact: PyTree,
    *,
    key: Key,
    false_alarm: float = 1e-6,
    resolution: float = 0.05,
    max_draws: int = 1_000_000,
    name: str = "same_mean",
) -> Report:
    """Compare the mean of a program's value with an exact one, by draws.

    **Meaning.** "failed" has probability at most `false_alarm` if every coordinate has the exact
    mean, under the assumptions of `pvalues.contrast`: finite third moments, which the draws show.
    Bias is looked for in units of the standard deviation of one draw.

    Args:
        program: a program without scores, whose value is a pytree of numbers.
        exact: the means, in the same form.
        key: a JAX key or a seed.
        false_alarm: the probability of failing wrongly.
        resolution: the check passes only if a bias of about twice this, in standard deviations of
            one draw, would have been seen.
        max_draws: draws allowed.
        name: what the report is called.

    Returns:
        A report; undecided if the draws allowed are too few, or carried by a few great values.

    Raises:
        OpenObservationsError: the program scores, so that its mean is not that of its draws.
        ArgumentError: `exact` has another form than the value, or a setting is out of range.
    """
    require_program(name, program)
    refuse_scores(program)
    require_between(name, "resolution", resolution, 0.0, 1.0, "0.05")
    require_between(name, "false_alarm", false_alarm, 0.0, 0.5, "1e-6")
    require_count(name, "max_draws", max_draws, 100, "1_000_000")
    names, means = _exact(name, program, exact)
    base, level = as_key(key), passing_level(false_alarm, STAGES) / len(names)
    size = max(1000, math.ceil((float(stats.norm.isf(level / 2)) / resolution) ** 2))
    latest: list[Any] = []

    def p_values(step: int, num: int) -> Any:
        value = draw_many(program, jax.random.fold_in(base, step), num)
        found = pvalues.moments(columns(name, value).matrix)
        scale = np.abs(found.mean) + np.sqrt(found.variance) + np.abs(means)
        latest[:] = [found, pvalues.known_mean(found, means, 16 * _epsilon(value) * scale)]
        return latest[1].p_value

    outcome = sequential(
        p_values,
        false_alarm=false_alarm,
        first=min(size, max_draws),
        growth=GROWTH,
        stages=STAGES,
        max_draws=max_draws,
    )
    return _report(name, program, outcome, names, means, latest, level, false_alarm, resolution)


def _exact(name: str, program: Program, exact: PyTree) -> tuple[tuple[str, ...], Any]:
    """Check that the means have the form of the value, and give them flat."""
    shapes = program.structure.shapes
    rows = jax.tree.map(lambda s: np.zeros((1, *s.shape), s.dtype), shapes)
    names = columns(name, rows).names
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(exact)]
    wanted = [s.shape for s in jax.tree.leaves(shapes)]
    same_tree = jax.tree.structure(exact) == jax.tree.structure(shapes)
    if not same_tree or [x.shape for x in leaves] != wanted:
        raise ArgumentError(
            message(
                f"{name} got exact means of shapes {[x.shape for x in leaves]}",
                needs=f"the form of the value, with shapes {wanted}",
                why="each coordinate is compared with its own mean",
                fix="pass a pytree like that of ppl.run(program, key)",
            )
        )
    means = np.concatenate([x.reshape(-1) for x in leaves])
    if not np.all(np.isfinite(means)):
        raise ArgumentError(
            message(f"{name} got exact means that are not finite", needs="finite numbers")
        )
    return names, means


def _epsilon(value: PyTree) -> float:
    floats = [x.dtype for x in jax.tree.leaves(value) if jnp.issubdtype(x.dtype, jnp.floating)]
    return max((float(jnp.finfo(d).eps) for d in floats), default=0.0)


def _report(
    name: str,
    program: Program,
    outcome: Outcome,
    names: tuple[str, ...],
    means: Any,
    latest: list[Any],
    level: float,
    false_alarm: float,
    resolution: float,
) -> Report:
    found, c = latest
    order = np.lexsort((-np.abs(c.difference), c.p_value))
    rows = [
        (names[i], *map(number, map(float, (found.mean[i], means[i], c.error[i], c.p_value[i]))))
        for i in order[:8]
    ]
    sd = np.sqrt(found.variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        in_sds = np.where(sd > 0, pvalues.detectable(c.error, c.skewness, level) / sd, 0.0)
    missed = float(np.max(in_sds))
    verdict, worst = outcome.verdict, rows[0]
    if verdict == "failed":
        note = f"The mean of {worst[0]} is {worst[1]} ± {worst[3]}, and should be {worst[2]}."
    elif verdict == "undecided":
        note = f"The p-value {number(outcome.p_value)} calls for more draws: raise max_draws."
    elif missed <= 1.5 * resolution:
        note = f"A bias of {number(2 * missed)} standard deviations would have been seen."
    else:
        verdict = "undecided"
        note = (
            f"A bias of {number(2 * missed)} standard deviations could have been missed, and the "
            f"check asks for {number(2 * resolution)}: raise max_draws or resolution. If it is "
            "infinite, a few great values carry the mean."
        )
    return Report(
        name,
        verdict,
        outcome.p_value,
        f"p-value, adjusted for {len(names)} coordinates",
        outcome.level,
        false_alarm,
        {"draws": outcome.draws, "stages": outcome.stages},
        repr(program),
        ("coordinate", "mean", "exact", "standard error", "p-value"),
        rows,
        (note,),
    )
