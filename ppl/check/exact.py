"""Checks by exact enumeration, where programs are finite; by draws where they are not."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import Key, PyTree
from ppl.check.means import same_mean
from ppl.check.programs import source
from ppl.check.report import Report
from ppl.check.statistical import same_measure
from ppl.errors import ArgumentError, UnsupportedError, check_addresses, message, suggest
from ppl.program import Program, require_program
from ppl.semantics.enumerated import enumerate as measure_of
from ppl.semantics.extract import extract, is_weighted
from ppl.semantics.kernel import started
from ppl.semantics.measure import FiniteMeasure
from ppl.semantics.weighted import Trace, trace_of
from ppl.staging import stage
from ppl.statements import scope

Kernel = Callable[[Trace], Any]

#: Whether the trace that a kernel returned says of itself what its program says.
_FRESH = "trace up to date"

#: What the comparisons by draws are given by the checks themselves.
_OURS = ("key", "name")


def _tolerance() -> float:
    """How far rounding may lead two measures apart, relative to the total mass."""
    return 1e-10 if jnp.result_type(float) == jnp.float64 else 1e-4


def preserves(
    transformer: Callable[[Program], Program],
    program: Program,
    *,
    key: Key = 0,
    quadrature: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    **statistical: Any,
) -> Report:
    """Check that a transformer keeps a program's measure: m(t(p)) = m(p).

    **Meaning.** On finite programs both measures are enumerated, with all the randomness the
    algorithm draws, and compared: the verdict is exact. Where a site has no finite support, or
    worlds are too many, both are compared by draws (`ppl.check.same_measure`), with the
    false-alarm probability that the report states.

    Args:
        transformer: maps a program to a program of a value of the same kind, or of a `Population`,
            `Weighted` or `Trace` of it, which `ppl.extract` turns into one.
        program: the program to try it on.
        key: for the comparison by draws.
        quadrature: number of nodes for continuous sites, as for `ppl.enumerate`.
        tolerance: of the total variation relative to the total mass; None for 1e-10 in double and
            1e-4 in single precision.
        max_worlds: beyond this the comparison is by draws.
        **statistical: settings of `ppl.check.same_measure`.

    Returns:
        A report, with the states whose masses differ most.

    Raises:
        ArgumentError: the transformer gives no program, or one of values of another kind.
    """
    require_program("preserves", program)
    _check_settings("preserves", statistical, same_measure)
    made = transformer(program)
    if not isinstance(made, Program):
        raise ArgumentError(
            message(
                f"preserves got a transformer that returned {type(made).__name__}",
                needs="a function from a program to a program",
                why="the algorithm's own randomness is to be enumerated too",
                fix="ppl.check.preserves(lambda p: ppl.importance(p, num_particles=2), program)",
            )
        )
    made = extract(made) if is_weighted(made) else made
    return _compare(
        "preserves",
        program,
        made,
        witness=program,
        names=("the program", "the transformed"),
        key=key,
        quadrature=quadrature,
        tolerance=tolerance,
        max_worlds=max_worlds,
        statistical=statistical,
    )


def equal(
    p: Program,
    q: Program,
    *,
    key: Key = 0,
    quadrature: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    **statistical: Any,
) -> Report:
    """Check that two programs denote one unnormalised measure.

    **Meaning.** As `preserves` with a transformer from the one to the other.

    Args:
        p: a program.
        q: a program of values of the same kind.
        key: as for `preserves`.
        quadrature: as for `preserves`.
        tolerance: as for `preserves`.
        max_worlds: as for `preserves`.
        **statistical: settings of `ppl.check.same_measure`.

    Returns:
        A report, with the states whose masses differ most.
    """
    _check_settings("equal", statistical, same_measure)
    return _compare(
        "equal",
        require_program("equal", p),
        require_program("equal", q),
        witness=p,
        names=("the one", "the other"),
        key=key,
        quadrature=quadrature,
        tolerance=tolerance,
        max_worlds=max_worlds,
        statistical=statistical,
    )


def invariant(
    kernel: Kernel,
    program: Program,
    *,
    key: Key = 0,
    quadrature: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    **statistical: Any,
) -> Report:
    """Check that a kernel leaves a program's measure on choices invariant.

    **Meaning.** The measure of "run the program, then the kernel" is compared with that of "run the
    program", on the choices that exist. The trace that the kernel returns must also say of itself
    what the program says of its choices: a density that was not brought up to date is a failure.

    Args:
        kernel: a `@ppl.kernel`, or any function from a trace to a trace that draws with
            `ppl.sample`.
        program: the program; its latent sites are bounded in number.
        key: for the comparison by draws, where the program is not finite.
        quadrature: number of nodes for continuous sites, as for `ppl.enumerate`.
        tolerance: as for `preserves`.
        max_worlds: beyond this the comparison is by draws.
        **statistical: settings of `ppl.check.same_measure`.

    Returns:
        A report, with the states whose masses differ most.
    """
    return _kernel_check(
        "invariant", _stayed, _moved, ("before", "after"), kernel, program,
        key, quadrature, tolerance, max_worlds, statistical,
    )  # fmt: skip


def reversible(
    kernel: Kernel,
    program: Program,
    *,
    key: Key = 0,
    quadrature: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    **statistical: Any,
) -> Report:
    """Check detailed balance: the pairs (before, after) and (after, before) have one measure.

    **Meaning.** Stronger than invariance: a reversible kernel leaves the measure invariant, and not
    the other way round (a sweep over sites in fixed order is invariant and not reversible).

    Args:
        kernel: as for `invariant`.
        program: as for `invariant`.
        key: as for `invariant`.
        quadrature: as for `invariant`.
        tolerance: as for `preserves`.
        max_worlds: as for `invariant`.
        **statistical: settings of `ppl.check.same_measure`.

    Returns:
        A report, with the pairs of states whose masses differ most.
    """
    return _kernel_check(
        "reversible", _forwards, _backwards, ("forwards", "backwards"), kernel, program,
        key, quadrature, tolerance, max_worlds, statistical,
    )  # fmt: skip


def unbiased(
    estimator: Program,
    exact: PyTree,
    *,
    key: Key = 0,
    quadrature: Mapping[str, int] | None = None,
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    **statistical: Any,
) -> Report:
    """Check that the mean of a program's value is what it should be.

    **Meaning.** The integral of the value against the program's measure is compared with `exact`:
    of a gradient estimator with the gradient, of an evidence estimate with the evidence.

    Args:
        estimator: a program whose value is a number, an array, or a pytree of them.
        exact: the mean it should have, of the same form.
        key: for the test by draws, where the program is not finite.
        quadrature: number of nodes for continuous sites, as for `ppl.enumerate`.
        tolerance: of the largest difference, absolute and relative; None for 1e-10 in double and
            1e-4 in single precision.
        max_worlds: beyond this the test is by draws (`ppl.check.same_mean`).
        **statistical: settings of `ppl.check.same_mean`.

    Returns:
        A report, with the coordinates that differ most.

    Raises:
        ArgumentError: `exact` has another form than the value.
    """
    require_program("unbiased", estimator)
    _check_settings("unbiased", statistical, same_mean)
    began = time.perf_counter()
    shapes = jax.tree.map(lambda x: jnp.shape(x), (estimator.structure.shapes, exact))
    if shapes[0] != shapes[1]:
        raise ArgumentError(
            message(
                f"unbiased got exact of shape {shapes[1]} for values of shape {shapes[0]}",
                needs="the mean of the value, of the same form",
                fix="ppl.check.unbiased(estimator, jax.grad(objective)(params))",
            )
        )
    try:
        found = measure_of(estimator, quadrature=quadrature, max_worlds=max_worlds)
    except UnsupportedError as error:
        return _by_draws(same_mean(estimator, exact, key=key, **statistical), error)
    paths = jax.tree_util.tree_flatten_with_path(found.expect(lambda value: value))[0]
    wanted = [np.asarray(x, np.float64) for x in jax.tree.leaves(exact)]
    rows, worst = [], 0.0
    for (path, mean), right in zip(paths, wanted, strict=True):
        gap = np.abs(mean - right) / np.maximum(1.0, np.abs(right))
        worst = max(worst, float(np.max(np.nan_to_num(gap, nan=np.inf), initial=0.0)))
        name = jax.tree_util.keystr(path).lstrip(".")
        for index in np.ndindex(np.shape(mean)):
            label = name + (f"[{', '.join(map(str, index))}]" if index else "")
            rows.append((float(gap[index]), label or "value", mean[index], right[index]))
    rows.sort(key=lambda row: -row[0])
    limit = _tolerance() if tolerance is None else tolerance
    errors = jax.tree.leaves(found.quadrature_error(lambda value: value))
    doubt = max((float(np.max(e, initial=0.0)) for e in errors), default=0.0)
    notes: tuple[str, ...] = ()
    if not len(found):
        notes = ("every run of the estimator has weight zero",)
    elif limit < worst <= doubt:
        notes = (f"quadrature is uncertain by about {doubt:.2g}: use more nodes",)
    return Report(
        check="unbiased",
        verdict="undecided" if notes else "passed" if worst <= limit else "failed",
        statistic=worst,
        statistic_name="largest difference",
        threshold=limit,
        budget={"points": len(found), "seconds": time.perf_counter() - began},
        witness=source(estimator),
        columns=("coordinate", "mean", "exact", "difference"),
        differences=[
            (name, f"{mean:.8g}", f"{right:.8g}", f"{gap:.2g}")
            for gap, name, mean, right in rows[:10]
        ],
        notes=notes,
    )


# --- The programs that are compared -------------------------------------------------------------


def _state(trace: Trace) -> dict[str, Any]:
    choices, present = trace.canonical
    return {**choices, **{f"{a} exists": flag for a, flag in present.items()}}


def _stayed(kernel: Kernel, program: Program) -> PyTree:
    return {**_state(started(program)), _FRESH: jnp.ones((), bool)}


def _move(kernel: Kernel, program: Program) -> tuple[Trace, Trace]:
    before = started(program)
    with scope("kernel"):
        after = kernel(before)
    if isinstance(after, Program):
        after = after()
    if not isinstance(after, Trace):
        raise ArgumentError(
            message(
                f"the kernel returned {type(after).__name__}",
                needs="a Trace",
                why="a kernel moves from a trace to a trace",
                fix="return trace.with_choices({...})",
            )
        )
    return before, after


def _moved(kernel: Kernel, program: Program) -> PyTree:
    _, after = _move(kernel, program)
    again = trace_of(program, after.choices)
    pairs = [(after.log_density, again.log_density), (after.log_weight, again.log_weight)]
    pairs += zip(jax.tree.leaves(after.value), jax.tree.leaves(again.value), strict=True)
    fresh = jnp.array([jnp.all(_close(*pair)) for pair in pairs])
    return {**_state(again), _FRESH: jnp.all(fresh)}


def _close(a: Any, b: Any) -> Any:
    a, b = jnp.asarray(a), jnp.asarray(b)
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return a == b
    slack = 1e-6 if a.dtype == jnp.float64 else 1e-3
    return (a == b) | (jnp.abs(a - b) <= slack * jnp.maximum(1.0, jnp.abs(b)))


def _forwards(kernel: Kernel, program: Program) -> PyTree:
    before, after = _move(kernel, program)
    return _state(before), _state(trace_of(program, after.choices))


def _backwards(kernel: Kernel, program: Program) -> PyTree:
    return _forwards(kernel, program)[::-1]


def _kernel_check(
    check: str,
    one: Callable[..., Any],
    two: Callable[..., Any],
    names: tuple[str, str],
    kernel: Kernel,
    program: Program,
    key: Key,
    quadrature: Mapping[str, int] | None,
    tolerance: float | None,
    max_worlds: int,
    statistical: dict[str, Any],
) -> Report:
    require_program(check, program)
    _check_settings(check, statistical, same_measure)
    if not callable(kernel):
        raise ArgumentError(
            message(
                f"{check} got the kernel {kernel!r}",
                needs="a function from a trace to a trace",
                fix=f"@ppl.kernel above its definition, then ppl.check.{check}(kernel, program)",
            )
        )
    p, q = (stage(f, (kernel, program), name=n) for f, n in zip((one, two), names, strict=True))
    return _compare(
        check,
        p,
        q,
        witness=program,
        names=names,
        key=key,
        quadrature=quadrature,
        tolerance=tolerance,
        max_worlds=max_worlds,
        statistical=statistical,
    )


def _check_settings(check: str, given: Mapping[str, Any], by_draws: Callable[..., Any]) -> None:
    """Refuse unknown settings even where the check turns out to be exact and needs none."""
    parameters = inspect.signature(by_draws).parameters.values()
    known = [x.name for x in parameters if x.kind == x.KEYWORD_ONLY and x.name not in _OURS]
    for name in given:
        if name not in known:
            own = ["key", "quadrature", "tolerance", "max_worlds"]
            raise ArgumentError(
                message(
                    f"{check} got the unknown keyword {name}={given[name]!r}",
                    needs="one of its own keywords, or of those of the comparison by draws",
                    why=suggest(name, [*own, *known]),
                    fix=f"ppl.check.{check}(..., {', '.join(f'{x}=...' for x in known)})",
                )
            )


# --- The comparison -----------------------------------------------------------------------------


def _compare(
    check: str,
    p: Program,
    q: Program,
    *,
    witness: Program,
    names: tuple[str, str],
    key: Key,
    quadrature: Mapping[str, int] | None,
    tolerance: float | None,
    max_worlds: int,
    statistical: dict[str, Any],
) -> Report:
    began = time.perf_counter()
    known = dict.fromkeys((*p.latents, *q.latents))
    check_addresses(f"{check}(quadrature=)", quadrature or {}, known)
    try:
        one, two = (_measure(x, quadrature, max_worlds) for x in (p, q))
    except UnsupportedError as error:
        return _by_draws(same_measure(p, q, key=key, name=check, **statistical), error)
    limit = _tolerance() if tolerance is None else tolerance
    mass = max(one.total_mass, two.total_mass)
    distance = one.total_variation(two) / mass if mass else 0.0
    # A difference that is no larger than what the nodes leave open decides nothing.
    doubt = (one.quadrature_error() + two.quadrature_error()) / mass if mass else 0.0
    verdict, notes = "passed", []
    if not mass:
        verdict = "undecided"
        notes.append("both measures have total mass zero: there was nothing to compare")
    elif limit < distance <= doubt:
        verdict = "undecided"
        notes.append(f"quadrature is uncertain by about {doubt:.2g} of the mass: use more nodes")
    elif distance > limit:
        verdict = "failed"
        notes.append(_explain(one, two))
    rows = one.differences(two, 10) if verdict != "passed" else []
    return Report(
        check=check,
        verdict=verdict,
        statistic=distance,
        statistic_name="total variation / total mass",
        threshold=limit,
        budget={"points": len(one) + len(two), "seconds": time.perf_counter() - began},
        witness=source(witness),
        columns=("state", *names),
        differences=[
            (state.removesuffix(f", {_FRESH} = True"), f"{a:.8g}", f"{b:.8g}")
            for state, a, b in rows
            if abs(a - b) > limit * mass
        ],
        notes=tuple(notes),
    )


def _measure(
    program: Program, quadrature: Mapping[str, int] | None, max_worlds: int
) -> FiniteMeasure:
    rules = {a: n for a, n in (quadrature or {}).items() if a in program.latents}
    return measure_of(program, quadrature=rules, max_worlds=max_worlds)


def _explain(one: FiniteMeasure, two: FiniteMeasure) -> str:
    a, b = one.total_mass, two.total_mass
    if abs(a - b) > 1e-6 * max(a, b):
        return f"the total mass differs: {a:.8g} against {b:.8g}; a weight is lost or counted twice"
    return "the total mass agrees, its distribution over the states does not"


def _by_draws(report: Report, error: UnsupportedError) -> Report:
    """Say why a check that might have been exact was not."""
    reason = f"compared by draws: {error}".partition("; needs")[0]
    return dataclasses.replace(report, notes=(*report.notes, reason))
