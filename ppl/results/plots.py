"""Plots of draws and of weighted particles, on matplotlib alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Num

from ppl.errors import ResultError, message
from ppl.results import _panels, weighted
from ppl.results._dtypes import widened
from ppl.results._names import (
    Coords,
    Dims,
    check_choice,
    element_labels,
    require,
    unknown_variable,
)
from ppl.results._panels import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draws = Mapping[str, Num[np.ndarray, "chain draw *event"]]
Particles = Mapping[str, Num[np.ndarray, "N *event"]]

_KINDS: dict[str, Callable[..., None]] = {
    "trace": _panels.trace,
    "posterior": _panels.posterior,
    "forest": _panels.forest,
    "pair": _panels.pair,
    "rank": _panels.rank,
    "energy": _panels.energy,
}
_MAX_ELEMENTS = {"trace": 12, "posterior": 24, "forest": 80, "pair": 6, "rank": 24}


def plot(
    kind: str,
    draws: Draws,
    *,
    stats: Mapping[str, Num[np.ndarray, "chain draw"]] | None = None,
    dims: Dims | None = None,
    coords: Coords | None = None,
    var_names: Sequence[str] | None = None,
    max_elements: int | None = None,
    **options: Any,
) -> Figure:
    """Plot the draws of Markov chains.

    Args:
        kind: "trace" (densities and paths by chain), "posterior" (density, mean, interval),
            "forest" (intervals and R-hat), "pair" (joint draws), "rank" (rank histograms by chain)
            or "energy" (of Hamiltonian samplers).
        draws: by variable.
        stats: sampler statistics: "diverging" marks draws in trace and pair; energy needs "energy".
        dims: names of leading event axes, by variable.
        coords: coordinate values by dimension; they label elements.
        var_names: variables, or elements such as "theta[0]"; all by default.
        max_elements: how many elements to show at most; a title says so if some are left out.
        options: of the kind: `probability` of the interval for posterior and forest, `bins` for
            rank.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ArgumentError: unknown kind or option.
        ResultError: unknown variable, no finite draws, or no statistics where they are needed.
    """
    check_choice("plot", "kind", kind, _KINDS)
    draw = _KINDS[kind]
    parameters = inspect.signature(draw).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        check_choice(f"plot({kind!r})", "option", option, known)
    if kind == "energy":
        if not stats or "energy" not in stats:
            raise ResultError(
                message(
                    "plot('energy') got no statistic 'energy'",
                    needs="stats={'energy': (chain, draw)}",
                    why="Only Hamiltonian kernels have an energy",
                    fix="plot('trace', ...)",
                )
            )
        return _figure(lambda figure: draw(figure, np.asarray(stats["energy"]), **options))
    columns = _columns(draws, 2, dims, coords, var_names)
    limit = _MAX_ELEMENTS[kind] if max_elements is None else max_elements
    marks = [_diverging(stats, columns)] if kind in ("trace", "pair") else []

    def fill(figure: Figure) -> None:
        draw(figure, columns[:limit], *marks, **options)
        _say_cut(figure, len(columns), limit)

    return _figure(fill)


def plot_weighted(
    draws: Particles,
    log_weights: Float[np.ndarray, " N"],
    *,
    dims: Dims | None = None,
    coords: Coords | None = None,
    var_names: Sequence[str] | None = None,
    max_elements: int = 24,
    bins: int = 40,
) -> Figure:
    """Plot weighted histograms of particles, with the mean and the central 90%.

    Args:
        draws: particles by variable.
        log_weights: unnormalised.
        dims: names of leading event axes, by variable.
        coords: coordinate values by dimension; they label elements.
        var_names: variables, or elements such as "theta[0]"; all by default.
        max_elements: how many elements to show at most; a title says so if some are left out.
        bins: number of bins.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ResultError: unknown variable, shapes that do not fit, or no particle with weight.
    """
    log_weights = np.asarray(log_weights)
    columns = _columns(draws, 1, dims, coords, var_names)
    kish = weighted.kish_ess(log_weights)
    if not kish > 0:
        raise ResultError(
            message(
                "plot_weighted got no particle of positive, finite weight",
                needs="at least one",
                fix="summarize_weighted(...).notes says what to try",
            )
        )

    def fill(figure: Figure) -> None:
        _panels.histograms(figure, columns[:max_elements], log_weights, bins=bins)
        figure.supxlabel(f"{len(log_weights):,} particles, effective {kish:,.1f}", fontsize=9)
        _say_cut(figure, len(columns), max_elements)

    return _figure(fill)


def _figure(fill: Callable[[Figure], None]) -> Figure:
    """Make a figure in the house style that pyplot knows, and fill it."""
    matplotlib = require("matplotlib", "plot")
    pyplot = require("matplotlib.pyplot", "plot")
    # The first use loads the backend, which in a notebook turns the interactive mode on: outside of
    # the context, whose end would turn it off for good.
    pyplot.draw_if_interactive()
    with matplotlib.rc_context(_panels.STYLE):
        figure = pyplot.figure(layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
        try:
            fill(figure)
        except BaseException:
            pyplot.close(figure)
            raise
    if "inline" in matplotlib.get_backend():
        pyplot.close(figure)  # the notebook shows the value of the cell: once is enough
    return figure


def _columns(
    draws: Mapping[str, np.ndarray],
    sample_axes: int,
    dims: Dims | None,
    coords: Coords | None,
    var_names: Sequence[str] | None,
) -> list[Column]:
    """Take the draws apart into elements, and choose those that are asked for."""
    groups: dict[str, list[Column]] = {}
    for name, x in draws.items():
        x = widened(np.asarray(x))
        labels = element_labels(name, x.shape[sample_axes:], dims, coords)
        flat = x.reshape(*x.shape[:sample_axes], len(labels))
        groups[name] = [Column(label, flat[..., k]) for k, label in enumerate(labels)]
    by_label = {column.label: column for group in groups.values() for column in group}
    chosen: list[Column] = []
    var_names = (var_names,) if isinstance(var_names, str) else var_names
    for name in draws if var_names is None else var_names:
        if name not in groups and name not in by_label:
            raise unknown_variable("plot", name, [*groups, *by_label])
        chosen += groups[name] if name in groups else [by_label[name]]
    if not chosen:
        raise ResultError(
            message("plot got nothing to show", needs="at least one element", fix="var_names=None")
        )
    return chosen


def _diverging(stats: Mapping[str, np.ndarray] | None, columns: Sequence[Column]) -> np.ndarray:
    shape = columns[0].x.shape
    found = np.asarray((stats or {}).get("diverging", np.zeros(shape, bool))).astype(bool)
    if found.shape != shape:
        raise ResultError(
            message(
                f"plot got stats['diverging'] of shape {found.shape}",
                needs=f"the shape (chain, draw) of the draws, {shape}",
                fix="take draws and stats from the same run",
            )
        )
    return found


def _say_cut(figure: Figure, total: int, shown: int) -> None:
    if total > shown:
        text = f"first {shown} of {total} elements; choose others with var_names, or max_elements"
        figure.suptitle(text, fontsize=9, color=_panels.FAINT)
