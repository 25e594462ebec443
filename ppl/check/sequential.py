"""A sequential test: cheap where nothing is wrong, sure where something is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ppl.check.report import Verdict
from ppl.errors import ArgumentError, ResultError, message


class Outcome(NamedTuple):
    """How a sequential test ended.

    `p_value` is that of the last stage, multiplied by the number of its statistics; the test fails
    if it is at most `level`. `stages` and `draws` tell what was used.
    """

    verdict: Verdict
    p_value: float
    level: float
    stages: int
    draws: int


def sequential(
    p_values: Callable[[int, int], Float[Any, " statistics"]],
    *,
    false_alarm: float = 1e-6,
    first: int = 1000,
    growth: float = 4.0,
    stages: int = 5,
    max_draws: int | None = None,
) -> Outcome:
    """Test a hypothesis in stages of independent draws, the second and later ones larger.

    **Meaning.** If the hypothesis holds, "failed" has probability at most `false_alarm`. With
    b = false_alarm / stages and g = b^(1 / stages), let q be the smallest p-value of stage i times
    the number of p-values. The stage fails if q <= b / g^(i - 1), passes if q > g, and otherwise
    calls for the next stage. By Bonferroni q is at most u with probability at most u; the stages
    are independent, so stage i is reached with probability at most g^(i - 1), and fails with
    probability at most b in all. There are `stages` of them. At the last the two limits meet at g,
    so that every run decides, if the draws allow it.

    Args:
        p_values: `p_values(stage, num)` makes `num` draws, independent of those of other stages,
            and gives valid p-values (P(p <= u) <= u under the hypothesis), which may depend on one
            another.
        false_alarm: the probability of failing wrongly.
        first: draws in the first stage.
        growth: later stages have `growth * first` draws.
        stages: the greatest number of stages.
        max_draws: draws allowed in all stages together; None for no limit.

    Returns:
        The outcome; "undecided" if the next stage would exceed `max_draws`.

    Raises:
        ArgumentError: a setting is out of range.
        ResultError: a p-value is not a number between 0 and 1.

    Source: Gandy and Scott (2020), algorithm 1. Deviation: a stage passes above g where theirs does
    above g + b / g^(i - 1), which keeps the level exact for p-values that are only bounded.
    """
    _check(false_alarm, first, growth, stages)
    base = false_alarm / stages
    factor = base ** (1.0 / stages)
    level, used = base, 0
    smallest = 1.0
    for stage in range(stages):
        num = int(first if stage == 0 else growth * first)
        if max_draws is not None and used + num > max_draws:
            return Outcome("undecided", smallest, level, stage, used)
        used += num
        smallest = adjusted(p_values(stage, num))
        level = factor if stage == stages - 1 else base / factor**stage
        if smallest <= level:
            return Outcome("failed", smallest, level, stage + 1, used)
        if smallest > factor:
            return Outcome("passed", smallest, level, stage + 1, used)
    raise AssertionError("the last stage decides")


def passing_level(false_alarm: float, stages: int) -> float:
    """The adjusted p-value above which a stage passes: g in `sequential`."""
    return (false_alarm / stages) ** (1.0 / stages)


def adjusted(p_values: Any) -> float:
    """Combine p-values, however dependent, into one (Bonferroni)."""
    p = np.asarray(p_values, np.float64).reshape(-1)
    if p.size == 0 or not np.all((p >= 0) & (p <= 1)):
        raise ResultError(
            message(
                f"sequential got the p-values {np.array2string(p, threshold=6)}",
                needs="at least one, all between 0 and 1",
                why="a statistic that is not a number says nothing",
                fix="let the statistic be finite for every draw",
            )
        )
    return min(1.0, float(p.min()) * p.size)


def _check(false_alarm: float, first: int, growth: float, stages: int) -> None:
    require_between("sequential", "false_alarm", false_alarm, 0.0, 0.5, "1e-6")
    for name, count in (("first", first), ("stages", stages)):
        require_count("sequential", name, count, 1, "1000" if name == "first" else "5")
    if not growth >= 1:
        raise ArgumentError(
            message(f"sequential got growth={growth!r}", needs="at least 1", fix="growth=4")
        )


def require_count(operation: str, name: str, count: Any, least: int, example: str) -> None:
    """Raise `ArgumentError` unless a setting is an integer of at least `least`."""
    try:
        fine = not isinstance(count, bool) and operator.index(count) >= least
    except TypeError:
        fine = False
    if not fine:
        raise ArgumentError(
            message(
                f"{operation} got {name}={count!r}",
                needs=f"an integer of at least {least}",
                fix=f"{name}={example}",
            )
        )


def require_between(
    operation: str, name: str, value: Any, low: float, high: float, example: str
) -> None:
    """Raise `ArgumentError` unless a setting lies strictly between two numbers."""
    if not isinstance(value, int | float) or not low < value < high:
        raise ArgumentError(
            message(
                f"{operation} got {name}={value!r}",
                needs=f"a number between {low:g} and {high:g}",
                fix=f"{name}={example}",
            )
        )
