"""Compare two samplers: the laws of their draws, or the measures their weighted draws stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ppl.check import pvalues
from ppl.check.draws import Columns, Sample, features
from ppl.check.integrals import (
    MOST,
    PILOT,
    greatest,
    integrals,
    needed,
    thresholds,
    typical,
    weights,
)
from ppl.check.report import Report, number
from ppl.check.sequential import (
    Outcome,
    passing_level,
    require_between,
    require_count,
    sequential,
)
from ppl.errors import ArgumentError, message

STAGES, GROWTH = 5, 4
_ROWS = 8
_MARGIN = 1.5  # the pilot's guess of what is seen may be off by this much
_SHARE = 8  # the pilot is at least this part of the first stage


class Row(NamedTuple):
    """One test function: its name, what the two sides say, the difference, its p-value."""

    name: str
    first: str
    second: str
    difference: float
    p_value: float


class Test(NamedTuple):
    """A test of two samples: the draws and functions it needs, rows, and what it could miss."""

    size: int
    number: int
    rows: Callable[[Sample, Sample], list[Row]]
    missed: Callable[[Sample, Sample], float]
    unit: str


Draw = Callable[[int, Array, int], Sample]


def compare(
    check: str,
    draw: Draw,
    key: Array,
    *,
    false_alarm: float,
    resolution: float,
    max_draws: int,
    witness: str,
) -> Report:
    """Test whether two samplers agree.

    Args:
        check: the name for the report.
        draw: `draw(side, key, num)` gives fresh draws of side 0 or 1.
        key: a JAX key.
        false_alarm: the probability of failing where both are the same.
        resolution: the difference to look for, as a distance of distribution functions.
        max_draws: draws allowed of each side, in all stages.
        witness: what to print below a report.
    """
    require_between(check, "resolution", resolution, 0.0, 1.0, "0.05")
    require_between(check, "false_alarm", false_alarm, 0.0, 0.5, "1e-6")
    require_count(check, "max_draws", max_draws, 100, "1_000_000")
    level = passing_level(false_alarm, STAGES)
    first_key, key = jax.random.split(key)
    test = _plan(check, draw, first_key, level, resolution, max_draws)

    latest: list[Any] = [[], math.inf]

    def p_values(stage: int, num: int) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, stage))
        one, two = (draw(side, keys[side], num) for side in (0, 1))
        latest[:] = test.rows(one, two), test.missed(one, two)
        return [row.p_value for row in latest[0]]

    outcome = sequential(
        p_values,
        false_alarm=false_alarm,
        first=min(test.size, max_draws),
        growth=GROWTH,
        stages=STAGES,
        max_draws=max_draws,
    )
    return _report(check, outcome, test, latest[0], latest[1], false_alarm, resolution, witness)


def _plan(
    check: str, draw: Draw, key: Array, level: float, resolution: float, max_draws: int
) -> Test:
    """Choose test functions and the number of draws by pilot draws, which are not tested.

    Few draws do not show how variable weights are, so the pilot grows with what it says is needed.
    """
    num = PILOT
    while True:
        keys = jax.random.split(jax.random.fold_in(key, num), 3)
        pilot = [draw(side, keys[side], num) for side in (0, 1)]
        _same_columns(check, *(s.columns for s in pilot))
        rng = np.random.default_rng(np.asarray(jax.random.bits(keys[2], (4,))))
        if pilot[0].log_weights is None:
            return _laws(pilot, rng, level, resolution)
        test = _measures(pilot, rng, level, resolution)
        if test.size <= _SHARE * num or _SHARE * num >= max_draws:
            return test
        num *= GROWTH


def _same_columns(check: str, one: Columns, two: Columns) -> None:
    if one.names != two.names:
        odd = sorted(set(one.names) ^ set(two.names))
        raise ArgumentError(
            message(
                f"{check} got programs whose values differ in form at {', '.join(odd[:6])}",
                needs="values with the same entries and shapes",
                why="only measures on one space can be equal",
                fix="statistics=lambda value: ... that gives the same form for both",
            )
        )


# --- Laws: draws of equal weight ----------------------------------------------------------------


def _laws(
    pilot: Sequence[Sample], rng: np.random.Generator, level: float, resolution: float
) -> Test:
    pooled = np.concatenate([s.columns.matrix for s in pilot])
    names, apply = features(pilot[0].columns.names, pooled, rng)

    def rows(one: Sample, two: Sample) -> list[Row]:
        x, y = apply(one.columns.matrix), apply(two.columns.matrix)
        return [_law_row(name, x[:, i], y[:, i]) for i, name in enumerate(names)]

    def missed(one: Sample, two: Sample) -> float:
        return pvalues.kolmogorov_distance(len(one.columns.matrix), level / len(names))

    size = math.ceil(math.log(2 * len(names) / level) / resolution**2)
    return Test(size, len(names), rows, missed, "in the probability of any {x <= t}")


def _law_row(name: str, x: Any, y: Any) -> Row:
    distance, p_value = pvalues.kolmogorov(x, y)
    with np.errstate(invalid="ignore"):  # a mean of infinities of both signs is shown as nan
        means = [number(float(side.mean())) for side in (x, y)]
    return Row(name, means[0], means[1], distance, p_value)


# --- Measures: weighted draws -------------------------------------------------------------------


def _measures(
    pilot: Sequence[Sample], rng: np.random.Generator, level: float, resolution: float
) -> Test:
    pooled = np.concatenate([s.columns.matrix for s in pilot])
    weighed = [weights(s, greatest([s])) for s in pilot]
    mixed = np.concatenate([w / max(w.sum(), 1.0) for w in weighed])
    names, apply = features(pilot[0].columns.names, typical(pooled, mixed, rng), rng)
    x = apply(pooled)
    cuts = [(i, t) for i in range(len(names)) for t in thresholds(x[:, i], mixed)]
    count = 1 + len(cuts)

    def contrasts(one: Sample, two: Sample) -> tuple[pvalues.Contrast, Any, float]:
        shift = greatest([one, two])
        sides = [integrals(s, shift, apply, cuts) for s in (one, two)]
        mass = float(sides[0].mean[0] + sides[1].mean[0]) / 2
        slack = max(one.rounding, two.rounding) * mass
        return pvalues.contrast(sides[0], sides[1], slack), sides, mass

    def rows(one: Sample, two: Sample) -> list[Row]:
        c, sides, mass = contrasts(one, two)
        shift = greatest([one, two])
        logs = [_log(float(side.mean[0]), shift) for side in sides]
        scale = mass or 1.0
        shares = [[number(float(m) / scale) for m in side.mean] for side in sides]
        named = ["log total mass", *(f"{names[i]} <= {number(t)}" for i, t in cuts)]
        shares[0][0], shares[1][0] = logs
        found = (c.difference / scale, c.p_value)
        table = zip(named, *shares, *(x.tolist() for x in found), strict=True)
        return [Row(*cells) for cells in table]

    def missed(one: Sample, two: Sample) -> float:
        c, _, mass = contrasts(one, two)
        if mass == 0:
            return math.inf
        return float(np.max(pvalues.detectable(c.error, c.skewness, level / count))) / mass

    sides = [integrals(s, greatest(pilot), apply, cuts) for s in pilot]
    size = needed(sides, level / count, resolution)
    return Test(size, count, rows, missed, "of the mass of any {x <= t}")


def _log(mean: float, shift: float) -> str:
    return f"{math.log(mean) + shift:.4f}" if mean > 0 else "-inf"


# --- The report ---------------------------------------------------------------------------------


def _report(
    check: str,
    outcome: Outcome,
    test: Test,
    rows: list[Row],
    missed: float,
    false_alarm: float,
    resolution: float,
    witness: str,
) -> Report:
    worst = sorted(rows, key=lambda r: (r.p_value, -abs(r.difference)))
    verdict = outcome.verdict
    if verdict == "failed":
        notes = [f"{r.name} differs: {r.first} against {r.second}." for r in worst[:1]]
    elif verdict == "passed" and missed <= _MARGIN * resolution:
        notes = [f"A difference of {number(2 * missed)} {test.unit} would have been seen."]
    else:
        verdict = "undecided"
        notes = [_undecided(outcome, missed, resolution, test)]
    return Report(
        check,
        verdict,
        outcome.p_value,
        f"p-value, adjusted for {test.number} test functions",
        outcome.level,
        false_alarm,
        {"draws of each": outcome.draws, "stages": outcome.stages},
        witness,
        ("test function", "first", "second", "difference", "p-value"),
        [
            (r.name, r.first, r.second, number(r.difference), number(r.p_value))
            for r in worst[:_ROWS]
        ],
        tuple(notes),
    )


def _undecided(outcome: Outcome, missed: float, resolution: float, test: Test) -> str:
    if outcome.verdict == "undecided":
        return f"The p-value {number(outcome.p_value)} calls for more draws: raise max_draws."
    enough = test.size > outcome.draws and test.size < MOST
    advice = f"Set max_draws to {number(test.size)} or more" if enough else "Raise max_draws"
    if not np.isfinite(missed):
        return (
            "A few draws carry all of the weight, so that no difference could be seen. "
            f"{advice}, or compare programs with less variable weights."
        )
    return (
        f"Only a difference of {number(2 * missed)} {test.unit} would have been seen, and the "
        f"check asks for {number(2 * resolution)}. {advice}, or raise resolution."
    )
