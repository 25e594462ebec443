"""Summary tables of draws and of weighted particles, with their warnings in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Num

from ppl.errors import ArgumentError, ResultError, message
from ppl.results import _notes, diagnostics, html, weighted
from ppl.results._names import Coords, Dims, element_labels, require, unknown_variable
from ppl.results._rounding import ERROR_COLUMNS, format_row

if TYPE_CHECKING:
    import pandas as pd

Draws = Mapping[str, Num[np.ndarray, "chain draw *event"]]
Particles = Mapping[str, Num[np.ndarray, "N *event"]]

_MAX_ROWS = 60


@dataclass(frozen=True, eq=False)
class Summary:
    """A table with one row for each element of each variable.

    `summary["mu"]["mean"]` is a number, `summary["theta[0]"]["mean"]` too (an element is found by
    position even where coordinates label it), and `summary["theta"]["mean"]` an array of the shape
    of theta. `values` holds everything; only the printed table is rounded and cut.

    Attributes:
        rows: labels such as `mu`, `theta[0]`, `Sigma[1,2]`.
        columns: names of the statistics.
        values: the numbers.
        notes: what looks wrong and what to try.
        title: size of the sample, in words.
        shapes: event shape of each variable, in order.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "row column"]
    notes: tuple[str, ...]
    title: str
    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Look up the statistics of a row, or of a whole variable.

        Raises:
            ResultError: there is no such row or variable.
        """
        if name in self.shapes:
            start, stop = self._span(name)
            block = self.values[start:stop].reshape(*self.shapes[name], len(self.columns))
            parts = np.moveaxis(block, -1, 0)
            return {c: p if p.ndim else float(p) for c, p in zip(self.columns, parts, strict=True)}
        for labels in (self.rows, self._positions()):
            if name in labels:
                row = self.values[list(labels).index(name)]
                return dict(zip(self.columns, row.tolist(), strict=True))
        raise unknown_variable("Summary", name, [*self.shapes, *self.rows])

    def __contains__(self, name: object) -> bool:
        return name in self.shapes or name in self.rows or name in self._positions()

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return the rows as dictionaries, by label."""
        return {
            row: dict(zip(self.columns, line, strict=True))
            for row, line in zip(self.rows, self.values.tolist(), strict=True)
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a `pandas.DataFrame` indexed by row.

        Raises:
            ResultError: pandas is not installed.
        """
        pandas = require("pandas", "Summary.to_pandas")
        return pandas.DataFrame(self.values, index=list(self.rows), columns=list(self.columns))

    def __str__(self) -> str:
        cells, hidden = self._cells()
        align = "l" + "".join("r" if c.startswith("ess") else "." for c in self.columns)
        lines = [self.title, html.text_table(["", *self.columns], cells, align)]
        if hidden:
            lines.append(f"… {hidden} more rows")
        return "\n".join([*lines, *(f"! {note}" for note in self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells, hidden = self._cells()
        caption = self.title + (f", first {len(cells)} of {len(self)} rows" if hidden else "")
        out = html.table(["", *self.columns], cells, caption)
        if self.notes:
            count = len(self.notes)
            out += html.details(
                f"{count} warning{'s' * (count > 1)}", html.bullets(self.notes), open=True
            )
        return out

    def _cells(self) -> tuple[list[list[str]], int]:
        error = next((k for k, c in enumerate(self.columns) if c in ERROR_COLUMNS), None)
        cells = [
            [label, *format_row(self.columns, row, math.nan if error is None else row[error])]
            for label, row in zip(self.rows[:_MAX_ROWS], self.values.tolist(), strict=False)
        ]
        return cells, len(self.rows) - len(cells)

    def _span(self, name: str) -> tuple[int, int]:
        start = 0
        for other, shape in self.shapes.items():
            if other == name:
                return start, start + math.prod(shape)
            start += math.prod(shape)
        raise unknown_variable("Summary", name, self.shapes)

    def _positions(self) -> list[str]:
        return [
            label for name, shape in self.shapes.items() for label in element_labels(name, shape)
        ]


def summarize(
    draws: Draws,
    *,
    dims: Dims | None = None,
    coords: Coords | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    stats: Mapping[str, Num[np.ndarray, "chain draw"]] | None = None,
) -> Summary:
    """Summarise the draws of Markov chains.

    Meaning:
        Mean, sd and quantiles pool the chains as equally weighted draws; mcse_mean, ess_bulk,
        ess_tail and rhat are those of Vehtari et al. (2021).

    Args:
        draws: by variable; all with the same numbers of chains and draws.
        dims: names of leading event axes, by variable.
        coords: coordinate values by dimension; they label rows.
        quantiles: probabilities.
        stats: sampler statistics; the warnings read "diverging", "energy", "tree_depth" and
            "acceptance_rate".

    Raises:
        ArgumentError: a quantile outside [0, 1].
        ResultError: variables of different numbers of chains or draws, or of complex numbers.
    """
    draws = {name: np.asarray(x) for name, x in draws.items()}
    names = _quantile_names(quantiles)
    num_chains, num_draws = _common_shape(draws)
    columns = ("mean", "sd", *names, "mcse_mean", "ess_bulk", "ess_tail", "rhat")
    labels = {name: element_labels(name, x.shape[2:], dims, coords) for name, x in draws.items()}
    parts = []
    for x in draws.values():
        pooled = x.reshape(num_chains * num_draws, math.prod(x.shape[2:]))
        rules = (
            diagnostics.mcse(x),
            diagnostics.ess(x, "bulk"),
            diagnostics.ess(x, "tail"),
            diagnostics.rhat(x),
        )
        parts.append(np.column_stack([*_moments(pooled, quantiles), *(r.ravel() for r in rules)]))
    values = np.concatenate(parts) if parts else np.empty((0, len(columns)))
    rows = tuple(label for group in labels.values() for label in group)
    notes = _notes.of_chains(rows, draws, dict(zip(columns, values.T, strict=True)), stats or {})
    return Summary(
        rows=rows,
        columns=columns,
        values=values,
        notes=notes,
        title=f"{_notes.plural(num_chains, 'chain')} of {_notes.plural(num_draws, 'draw')}",
        shapes={name: x.shape[2:] for name, x in draws.items()},
    )


def summarize_weighted(
    draws: Particles,
    log_weights: Float[np.ndarray, " N"],
    *,
    dims: Dims | None = None,
    coords: Coords | None = None,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    families: Int[np.ndarray, " N"] | None = None,
) -> Summary:
    """Summarise weighted particles.

    Meaning:
        Mean, sd and quantiles of the normalised weighted distribution; se_mean is the error of a
        self-normalised mean, exact to first order if different families are independent.

    Args:
        draws: particles by variable.
        log_weights: unnormalised, natural logarithms.
        dims: names of leading event axes, by variable.
        coords: coordinate values by dimension; they label rows.
        quantiles: probabilities.
        families: the first ancestor of each particle; None if each is its own.

    Raises:
        ArgumentError: a quantile outside [0, 1].
        ResultError: particles and weights of different numbers, or of complex numbers.
    """
    draws = {name: np.asarray(x) for name, x in draws.items()}
    columns = ("mean", "sd", *_quantile_names(quantiles), "se_mean")
    labels = {name: element_labels(name, x.shape[1:], dims, coords) for name, x in draws.items()}
    parts = []
    for x in draws.values():
        moments = weighted.weighted_moments(x, log_weights)
        cuts = weighted.weighted_quantile(x, log_weights, np.asarray(quantiles))
        error = weighted.snis_se(x, log_weights, families)
        parts.append(np.column_stack([part.ravel() for part in (*moments, *cuts, error)]))
    values = np.concatenate(parts) if parts else np.empty((0, len(columns)))
    rows = tuple(label for group in labels.values() for label in group)
    kish = weighted.kish_ess(log_weights)
    return Summary(
        rows=rows,
        columns=columns,
        values=values,
        notes=_notes.of_particles(rows, values[:, 0], log_weights, kish, families),
        title=f"{_notes.plural(len(log_weights), 'particle')}, effective {kish:,.1f}",
        shapes={name: x.shape[1:] for name, x in draws.items()},
    )


def _common_shape(draws: Draws) -> tuple[int, int]:
    leading = {name: x.shape[:2] for name, x in draws.items()}
    if len(set(leading.values())) > 1 or any(len(shape) < 2 for shape in leading.values()):
        raise ResultError(
            message(
                f"summarize got variables of leading shapes {leading}",
                needs="the same (chain, draw) for all of them",
                fix="add a chain axis with x[None], or summarise the variables one by one",
            )
        )
    num_chains, num_draws = next(iter(leading.values()), (0, 0))
    return num_chains, num_draws


def _quantile_names(quantiles: Sequence[float]) -> tuple[str, ...]:
    if not all(0 <= q <= 1 for q in quantiles) or len(set(quantiles)) < len(quantiles):
        raise ArgumentError(
            message(
                f"quantiles={tuple(quantiles)}",
                needs="different probabilities in [0, 1]",
                fix="quantiles=(0.05, 0.5, 0.95)",
            )
        )
    return tuple(f"{100 * q:.10g}%" for q in quantiles)


def _moments(
    pooled: Num[np.ndarray, "draw column"], quantiles: Sequence[float]
) -> list[Float[np.ndarray, " column"]]:
    if not len(pooled):
        return [np.full(pooled.shape[1], np.nan)] * (2 + len(quantiles))
    with np.errstate(all="ignore"):
        pooled = pooled.astype(np.float64)
        constant = pooled.max(axis=0) == pooled.min(axis=0)
        sd = pooled.std(axis=0, ddof=1) if len(pooled) > 1 else np.full(pooled.shape[1], np.nan)
        cuts = np.quantile(pooled, quantiles, axis=0)
        return [
            np.where(constant, pooled[0], pooled.mean(axis=0)),
            np.where(constant & (len(pooled) > 1), 0.0, sd),
            *cuts,
        ]
