"""`FiniteMeasure`: an exact, unnormalised measure on finitely many points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._types import PyTree
from ppl.errors import ArgumentError, ResultError, message
from ppl.results import html
from ppl.semantics.worlds import grouping
from ppl.semantics.worlds.showing import name, number, show

_SHOWN = 20

# What tells that a function of one point cannot be traced by JAX, but may work on numbers. JAX's
# own errors of this kind are all of these; so is a tracer as the key of a dictionary.
_UNTRACEABLE = (TypeError, jax.errors.NonConcreteBooleanIndexError)


class FiniteMeasure:
    """A measure on finitely many points, of masses that need not sum to one.

    **Meaning.** f -> sum of masses[i] f(points[i]). Operations on measures are exact up to
    rounding. Points are equal if their integers are, and their floats up to `tolerance`.

    Args:
        values: a pytree whose arrays have a leading axis of points.
        log_masses: in nats, one number for each point; -inf for a point of mass zero.
        tolerance: two floats are equal if they differ by less than this times max(1, magnitude);
            None for 1e-9 in double and 1e-5 in single precision.
        coarse: log masses of the same points under a coarser quadrature, for error estimates.
        choices: the best choices that lead to each point, of a maximisation.
        statistics: sums of mass times statistic at each point, of the expectation semiring.

    Raises:
        ArgumentError: the arrays disagree about the number of points, or a mass is NaN.
    """

    def __init__(
        self,
        values: PyTree,
        log_masses: Any,
        *,
        tolerance: float | None = None,
        coarse: Any = None,
        choices: dict[str, np.ndarray] | None = None,
        statistics: PyTree = None,
    ):
        log_masses = np.asarray(log_masses, np.float64)
        leaves, self._tree = jax.tree.flatten(values)
        self._leaves = [np.asarray(x) if _is_array(x) else x for x in leaves]
        self.log_masses, self.tolerance = log_masses, tolerance
        self.coarse, self.choices, self.statistics = coarse, choices, statistics
        bad = [x.shape for x in self._arrays if x.shape[:1] != log_masses.shape]
        if log_masses.ndim != 1 or bad or np.any(np.isnan(log_masses)):
            raise ArgumentError(
                message(
                    f"FiniteMeasure got log masses of shape {log_masses.shape} "
                    f"({int(np.sum(np.isnan(log_masses)))} NaN) and values of shapes "
                    f"{[x.shape for x in self._arrays]}",
                    needs="one log mass for each point along the first axis, none of them NaN",
                    fix="FiniteMeasure.of(points, masses) builds one from a list of points",
                )
            )

    @classmethod
    def of(cls, points: Sequence[PyTree], masses: Sequence[float]) -> FiniteMeasure:
        """Build a measure from a list of points; equal ones are joined.

        Args:
            points: values of one structure.
            masses: their masses, natural scale.
        """
        weights = np.asarray(masses, np.float64)
        if not len(points) or weights.shape != (len(points),) or not np.all(weights >= 0):
            raise ArgumentError(
                message(
                    f"FiniteMeasure.of got {len(points)} points and masses {weights}",
                    needs="at least one point, and a non-negative mass for each",
                    fix="FiniteMeasure.of([0, 1], [0.3, 0.7])",
                )
            )
        with np.errstate(divide="ignore"):
            return joined(_stacked(points), np.log(weights))

    # --- What it holds --------------------------------------------------------------------------

    @property
    def _arrays(self) -> list[np.ndarray]:
        return [x for x in self._leaves if isinstance(x, np.ndarray)]

    @property
    def values(self) -> PyTree:
        """The points as one pytree, along the leading axis of its arrays."""
        return jax.tree.unflatten(self._tree, self._leaves)

    @property
    def masses(self) -> np.ndarray:
        """Masses, natural scale, of shape (point,)."""
        return np.exp(self.log_masses)

    @property
    def points(self) -> list[PyTree]:
        """The points one by one."""
        return [self._point(i) for i in range(len(self))]

    def _point(self, i: int) -> PyTree:
        parts = [x[i] if isinstance(x, np.ndarray) else x for x in self._leaves]
        return jax.tree.unflatten(self._tree, parts)

    def __len__(self) -> int:
        return len(self.log_masses)

    def __iter__(self) -> Iterator[tuple[PyTree, float]]:
        return iter(zip(self.points, self.masses.tolist(), strict=True))

    @property
    def log_evidence(self) -> float:
        """The log of the total mass, in nats; -inf if no run of the program has positive weight."""
        return grouping.log_sum_exp(self.log_masses)

    @property
    def total_mass(self) -> float:
        """The total mass: the evidence of the observations."""
        return math.exp(self.log_evidence)

    def mass(self, value: PyTree) -> float:
        """Give the mass of one point, 0 if it is not in the support.

        Args:
            value: a point.
        """
        one = FiniteMeasure(jax.tree.map(lambda x: np.asarray(x)[None], value), [0.0])
        aligned = _align(self, one, "mass")
        (at,) = np.flatnonzero(aligned.two == 0.0)
        return float(np.exp(aligned.one[at]))

    def mode(self) -> PyTree:
        """Give the point of largest mass (the first of several).

        Raises:
            ResultError: there is no point.
        """
        self._require_mass("mode")
        return self._point(int(np.argmax(self.log_masses)))

    # --- Operations -----------------------------------------------------------------------------

    def normalize(self) -> FiniteMeasure:
        """Scale to total mass one: the posterior.

        Raises:
            ResultError: the total mass is zero.
        """
        self._require_mass("normalize")
        coarse = None if self.coarse is None else self.coarse - grouping.log_sum_exp(self.coarse)
        return self._with(self.log_masses - self.log_evidence, coarse)

    def expect(self, fun: Callable[[PyTree], Any]) -> Any:
        """Integrate a function against the measure as it stands; normalise first for a mean.

        Args:
            fun: a function of one point to numbers (a pytree of arrays).
        """
        return self._integrate(fun, self.masses)

    def _integrate(self, fun: Callable[[PyTree], Any], masses: np.ndarray) -> Any:
        return jax.tree.map(
            lambda x: np.tensordot(masses, np.asarray(x, np.float64), axes=1)[()],
            self._map(fun),
        )

    def quadrature_error(self, fun: Callable[[PyTree], Any] = lambda value: 1.0) -> Any:
        """Estimate the error of `expect(fun)` that is due to quadrature nodes.

        The difference to the rule that uses every other node: far larger than the error of a rule
        that has converged, and of its order where it has not. 0 for programs without quadrature.

        Args:
            fun: as for `expect`; by default the error is that of the total mass.
        """
        if self.coarse is None:
            return jax.tree.map(np.zeros_like, self.expect(fun))
        fine, coarse = self.expect(fun), self._integrate(fun, np.exp(self.coarse))
        return jax.tree.map(lambda a, b: abs(a - b), fine, coarse)

    def pushforward(self, fun: Callable[[PyTree], Any]) -> FiniteMeasure:
        """Give the measure of `fun(value)`; points with the same image are joined.

        Args:
            fun: a function of one point.
        """
        return joined(self._map(fun), self.log_masses, self.tolerance, self.coarse)

    def marginal(self, part: Any) -> FiniteMeasure:
        """Forget all but a part of the value.

        Args:
            part: a key, index or attribute of the value, or a function of it.
        """
        if callable(part):
            return self.pushforward(part)
        like = [x[0] if len(x) else np.zeros(x.shape[1:]) for x in self._arrays]
        point: Any = self._rebuilt(like)
        if isinstance(part, str) and not isinstance(point, Mapping) and hasattr(point, part):
            return self.pushforward(lambda value: getattr(value, part))
        try:
            _ = point[part]
        except (KeyError, IndexError, TypeError) as error:
            raise ArgumentError(
                message(
                    f"marginal got {part!r}",
                    needs="a key, index or attribute of the value, or a function of it",
                    why=f"the value is {jax.tree.structure(self.values)}",
                    fix="measure.marginal(lambda value: ...)",
                )
            ) from error
        return self.pushforward(lambda value: value[part])

    def condition(self, predicate: Callable[[PyTree], Any]) -> FiniteMeasure:
        """Restrict to the points where a predicate holds; the rest of the mass is lost.

        Args:
            predicate: a function of one point to a bool.
        """
        return self._take(np.flatnonzero(np.asarray(self._map(predicate), bool)))

    def bind(self, kernel: Callable[[PyTree], Any]) -> FiniteMeasure:
        """Mix measures that depend on the point: f -> integral of kernel(x)(f) over this measure.

        Args:
            kernel: a function of one point to a `FiniteMeasure` or a finite `Program`.
        """
        from ppl.semantics.enumerated import enumerate as measure_of

        parts = [kernel(point) for point in self.points]
        parts = [p if isinstance(p, FiniteMeasure) else measure_of(p) for p in parts]
        logs = [p.log_masses + w for p, w in zip(parts, self.log_masses, strict=True)]
        if not parts:
            return self
        values = jax.tree.map(_stack, *[p.values for p in parts])
        return joined(values, np.concatenate(logs), self.tolerance)

    def product(self, other: FiniteMeasure) -> FiniteMeasure:
        """Give the measure on pairs of independent points.

        Args:
            other: the measure of the second coordinate.
        """
        i, j = (x.reshape(-1) for x in np.indices((len(self), len(other))))
        one, two = self._take(i), other._take(j)
        tolerance = _first(self.tolerance, other.tolerance)
        pairs = (one.values, two.values)
        return FiniteMeasure(pairs, one.log_masses + two.log_masses, tolerance=tolerance)

    # --- Comparisons ----------------------------------------------------------------------------

    def total_variation(self, other: FiniteMeasure) -> float:
        """Half the sum of absolute differences of masses, unnormalised.

        Args:
            other: a measure on the same kind of values.
        """
        both = _align(self, other, "total_variation")
        return 0.5 * float(np.sum(np.abs(np.exp(both.one) - np.exp(both.two))))

    def kl(self, other: FiniteMeasure) -> float:
        """Kullback-Leibler divergence to another measure, in nats.

        For unnormalised measures P and Q it is sum p log(p / q) - P + Q, which is non-negative and
        the usual one if both have total mass one. It is inf where q lacks a point of p.

        Args:
            other: a measure on the same kind of values.
        """
        both = _align(self, other, "kl")
        p, here = np.exp(both.one), both.one > -np.inf
        terms = p[here] * (both.one[here] - both.two[here])
        return float(np.sum(terms)) - float(np.sum(p)) + float(np.sum(np.exp(both.two)))

    def differences(self, other: FiniteMeasure, most: int = 10) -> list[tuple[str, float, float]]:
        """List the points whose masses differ most: the point, its mass here, its mass there.

        Args:
            other: a measure on the same kind of values.
            most: the number of points.
        """
        both = _align(self, other, "differences")
        p, q = np.exp(both.one), np.exp(both.two)
        order = np.argsort(-np.abs(p - q), kind="stable")[:most]
        return [
            (show(both.measure._point(int(i))), float(p[i]), float(q[i]))
            for i in order
            if p[i] != q[i]
        ]

    # --- Pictures -------------------------------------------------------------------------------

    def _rows(self) -> tuple[list[str], list[list[str]], list[float]]:
        paths = jax.tree_util.tree_flatten_with_path(self.values)[0]
        names = [name(path) or "value" for path, _ in paths]
        kept = np.argsort(-self.log_masses, kind="stable")[:_SHOWN]
        kept = np.sort(kept)  # the heaviest points, in the order of the support
        cells = [
            [
                number(x[i]) if isinstance(x, np.ndarray) else str(x)
                for x in jax.tree.leaves(self.values)
            ]
            + [f"{self.masses[i]:.6g}"]
            for i in kept
        ]
        top = max(self.masses[kept], default=0.0)
        return [*names, "mass"], cells, [float(self.masses[i]) / (top or 1.0) for i in kept]

    @property
    def _title(self) -> str:
        rest = "" if len(self) <= _SHOWN else f", the {_SHOWN} heaviest shown"
        return (
            f"total mass {self.total_mass:.6g} (log evidence {self.log_evidence:.6f}), "
            f"{len(self)} point{'s' if len(self) != 1 else ''}{rest}"
        )

    def __repr__(self) -> str:
        names, cells, bars = self._rows()
        rows = [
            [*c, "█" * max(round(24 * b), int(b > 0))] for c, b in zip(cells, bars, strict=True)
        ]
        align = "l" * (len(names) - 1) + ".l"
        return f"{self._title}\n{html.text_table([*names, ''], rows, align=align)}"

    def _repr_html_(self) -> str:
        names, cells, bars = self._rows()
        align = "l" * (len(names) - 1) + "r"
        return html.table(names, cells, caption=self._title, align=align, bars=bars)

    def plot(self, ax: Any = None) -> Any:
        """Draw the masses as a bar chart.

        Args:
            ax: matplotlib axes; None makes some.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        _, cells, _ = self._rows()
        if ax is None:
            ax = plt.subplots(figsize=(6, 0.3 * max(len(cells), 4) + 0.8))[1]
        labels = [", ".join(row[:-1]) for row in cells]
        ax.barh(range(len(cells)), [float(row[-1]) for row in cells], color="C0")
        ax.set_yticks(range(len(cells)), labels)
        ax.invert_yaxis()
        ax.set_xlabel("mass")
        return ax

    # --- Inside ---------------------------------------------------------------------------------

    def _with(self, log_masses: Any, coarse: Any) -> FiniteMeasure:
        return FiniteMeasure(
            self.values,
            log_masses,
            tolerance=self.tolerance,
            coarse=coarse,
            choices=self.choices,
        )

    def _take(self, rows: np.ndarray) -> FiniteMeasure:
        values = jax.tree.map(lambda x: x[rows] if isinstance(x, np.ndarray) else x, self.values)
        coarse = None if self.coarse is None else self.coarse[rows]
        choices = None if self.choices is None else {a: x[rows] for a, x in self.choices.items()}
        return FiniteMeasure(
            values,
            self.log_masses[rows],
            tolerance=self.tolerance,
            coarse=coarse,
            choices=choices,
        )

    def _map(self, fun: Callable[[PyTree], Any]) -> Any:
        """Apply a function to every point: at once if JAX can trace it, else one by one."""

        def one(arrays: list[Any]) -> Any:
            return jax.tree.map(jnp.asarray, fun(self._rebuilt(arrays)))

        if self._arrays:
            try:
                with jax.enable_x64(True):
                    return jax.tree.map(np.asarray, jax.vmap(one)(self._arrays))
            except _UNTRACEABLE:
                pass
        images = [fun(point) for point in self.points]
        return _stacked(images) if images else np.zeros(0)

    def _rebuilt(self, arrays: Sequence[Any]) -> Any:
        fresh = iter(arrays)
        parts = [next(fresh) if isinstance(x, np.ndarray) else x for x in self._leaves]
        return jax.tree.unflatten(self._tree, parts)

    def _require_mass(self, operation: str) -> None:
        if self.log_evidence == -np.inf:
            raise ResultError(
                message(
                    f"{operation} got a measure of total mass zero",
                    needs="a point of positive mass",
                    why="no run of the program has positive weight: the observations are "
                    "impossible under the model",
                    fix="check the observations and factors against the supports of the sites",
                )
            )


class _Aligned(NamedTuple):
    """Two measures' log masses on the union of their supports, and a measure with its points."""

    one: np.ndarray
    two: np.ndarray
    measure: FiniteMeasure


def _align(one: FiniteMeasure, two: FiniteMeasure, operation: str) -> _Aligned:
    if not len(one) or not len(two):
        whole = one if len(one) else two
        nothing = np.full(len(whole), -np.inf)
        return _Aligned(
            whole.log_masses if len(one) else nothing,
            whole.log_masses if len(two) else nothing,
            whole,
        )
    shapes = [[getattr(x, "shape", (0,))[1:] for x in m._leaves] for m in (one, two)]
    if one._tree != two._tree or shapes[0] != shapes[1]:
        raise ResultError(
            message(
                f"{operation} got measures on values of different structure: {one._tree} of "
                f"shapes {shapes[0]} and {two._tree} of shapes {shapes[1]}",
                needs="measures on the same kind of values",
                fix="measure.pushforward(fun) to bring one to the other's form",
            )
        )
    values = jax.tree.map(_stack, one.values, two.values)
    arrays = [x for x in jax.tree.leaves(values) if isinstance(x, np.ndarray)]
    rows = len(one) + len(two)
    groups = grouping.group(arrays, rows, _first(one.tolerance, two.tolerance))
    logs = []
    for part, m in ((slice(len(one)), one), (slice(len(one), None), two)):
        logs.append(grouping.total_of(m.log_masses, groups.codes[part], groups.number))
    points = jax.tree.map(lambda x: x[groups.first] if isinstance(x, np.ndarray) else x, values)
    return _Aligned(logs[0], logs[1], FiniteMeasure(points, logs[0]))


def _first(one: float | None, two: float | None) -> float | None:
    return two if one is None else one


def _stacked(points: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *points)


def _stack(*parts: Any) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else parts[0]


def joined(
    values: PyTree, log_masses: np.ndarray, tolerance: float | None = None, coarse: Any = None
) -> FiniteMeasure:
    """Build a measure whose points differ: equal ones are joined, those of mass zero dropped."""
    kept = np.flatnonzero(log_masses > -np.inf)
    values = jax.tree.map(lambda x: np.asarray(x)[kept] if _is_array(x) else x, values)
    arrays = [x for x in jax.tree.leaves(values) if isinstance(x, np.ndarray)]
    groups = grouping.group(arrays, len(kept), tolerance)
    values = jax.tree.map(lambda x: x[groups.first] if isinstance(x, np.ndarray) else x, values)
    if coarse is not None:
        coarse = grouping.total(coarse[kept], groups)
    return FiniteMeasure(
        values,
        grouping.total(log_masses[kept], groups),
        tolerance=tolerance,
        coarse=coarse,
    )


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | jax.Array) and not _jax.is_tracer(x)
