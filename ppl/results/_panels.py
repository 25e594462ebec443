"""The kinds of plots: each fills a figure with panels for the elements it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from ppl.results import diagnostics, weighted
from ppl.results._density import density

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHAINS = ("#3b6fb6", "#e07b39", "#3f9b76", "#b0508e", "#8c6d31", "#5aa9c7", "#c44e52", "#7f7f7f")
MAIN, ALERT, FAINT = CHAINS[0], "#d62728", "#808080"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b0b0b0",
    "axes.formatter.limits": (-4, 5),
    "xtick.color": "#505050",
    "ytick.color": "#505050",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


class Column(NamedTuple):
    """One element of a variable: its label and its draws by chain, or its particles."""

    label: str
    x: Num[np.ndarray, "*sample"]


def trace(
    figure: Figure, columns: Sequence[Column], diverging: Bool[np.ndarray, "chain draw"]
) -> None:
    """Show, for each element, the density of each chain and its path."""
    figure.set_size_inches(9, 0.5 + 1.5 * len(columns))
    axes = figure.subplots(len(columns), 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), column in zip(axes, columns, strict=True):
        for chain, path in enumerate(column.x):
            color = CHAINS[chain % len(CHAINS)]
            _draw_density(left, path, color, fill=False)
            right.plot(path.astype(np.float64), color=color, lw=0.5, alpha=0.8)
        _draw_density_title(left, column)
        right.margins(x=0)
        right.tick_params(labelbottom=right is axes[-1, 1])
        if diverging.any():
            where = np.nonzero(diverging.any(axis=0))[0]
            right.plot(
                where,
                np.zeros(len(where)),
                "|",
                color=ALERT,
                ms=7,
                clip_on=False,
                transform=right.get_xaxis_transform(),
            )
    axes[-1, 1].set_xlabel("draw" + (" (red: divergences)" if diverging.any() else ""))


def posterior(
    figure: Figure,
    columns: Sequence[Column],
    *,
    probability: float = 0.9,
) -> None:
    """Show, for each element, its density with the mean and the central interval."""
    for axis, column in zip(_grid(figure, len(columns)), columns, strict=True):
        pooled = column.x.ravel()
        _draw_density(axis, pooled, MAIN)
        _draw_density_title(axis, column)
        values = pooled.astype(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            tail = (1 - probability) / 2
            low, high = np.quantile(values, [tail, 1 - tail])
            _draw_interval(axis, values.mean(), low, high, f"{100 * probability:.4g}%")


def forest(
    figure: Figure,
    columns: Sequence[Column],
    *,
    probability: float = 0.9,
) -> None:
    """Show the median, the central half and the central interval of each element, and R-hat."""
    figure.set_size_inches(7, 1.0 + 0.24 * len(columns))
    main, side = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    tail = (1 - probability) / 2
    x = np.stack([column.x for column in columns], axis=-1).astype(np.float64)
    rhat = diagnostics.rhat(x)
    pooled = np.where(np.isfinite(x), x, np.nan).reshape(-1, len(columns))
    defined = np.flatnonzero(~np.isnan(pooled).all(axis=0))
    cuts = np.nanquantile(pooled[:, defined], [tail, 0.25, 0.5, 0.75, 1 - tail], axis=0)
    main.hlines(defined, cuts[0], cuts[4], color=MAIN, lw=1.2)
    main.hlines(defined, cuts[1], cuts[3], color=MAIN, lw=4)
    main.plot(cuts[2], defined, "o", color="white", mec=MAIN, ms=5)
    main.set_yticks(range(len(columns)), [column.label for column in columns])
    main.set_ylim(len(columns) - 0.4, -0.6)
    main.grid(axis="x", color="#e6e6e6", lw=0.6)
    main.set_axisbelow(True)
    main.tick_params(axis="y", length=0)
    main.set_title(f"median, 50% and {100 * probability:.4g}% intervals")
    side.axvline(1.01, color=ALERT, lw=0.8, ls=":")
    known = np.isfinite(rhat)
    side.scatter(
        rhat[known], np.flatnonzero(known), s=14, c=np.where(rhat[known] > 1.01, ALERT, MAIN)
    )
    side.set_xlim(
        min(0.995, rhat[known].min(initial=1)), max(1.02, rhat[known].max(initial=1)) * 1.005
    )
    side.tick_params(axis="y", length=0, labelleft=False)
    side.set_title("R-hat")


def pair(
    figure: Figure, columns: Sequence[Column], diverging: Bool[np.ndarray, "chain draw"]
) -> None:
    """Show the joint draws of every two elements, with divergences, and densities between."""
    size = len(columns)
    figure.set_size_inches(1.2 + 1.7 * size, 1.0 + 1.6 * size)
    axes = figure.subplots(size, size, squeeze=False, sharex="col")
    marked = diverging.ravel()
    for row, below in enumerate(columns):
        for col, left in enumerate(columns):
            axis = axes[row, col]
            if col > row:
                axis.axis("off")
            elif col == row:
                _draw_density(axis, below.x.ravel(), MAIN)
                axis.set_yticks([])
                axis.spines["left"].set_visible(False)
            else:
                x, y = left.x.ravel().astype(np.float64), below.x.ravel().astype(np.float64)
                alpha = min(0.6, max(0.08, 800 / max(1, len(x))))
                axis.plot(x, y, ".", color=MAIN, ms=3, mew=0, alpha=alpha, rasterized=True)
                if marked.any():
                    axis.plot(x[marked], y[marked], ".", color=ALERT, ms=4, mew=0)
            if row == size - 1:
                axis.set_xlabel(left.label)
            if col == 0 and row > 0:
                axis.set_ylabel(below.label)
    for k, column in enumerate(columns):
        found = density(column.x.ravel())
        if found is not None and found.cut:  # let the bulk be seen, and say so
            span = found.grid[0], found.grid[-1]
            axes[k, k].set_xlim(span)
            axes[k, k].set_xlabel("")
            for axis in axes[k, :k]:
                axis.set_ylim(span)
            axes[-1, k].set_xlabel(f"{column.label}\n(without the long tail)")
    axes[0, 0].set_title(columns[0].label)
    if marked.any():
        corner = axes[0, -1]
        text = f"red: {marked.sum():,} divergences"
        place = {"transform": corner.transAxes, "ha": "right", "va": "top"}
        corner.text(1, 1, text, color=ALERT, **place)


def rank(
    figure: Figure,
    columns: Sequence[Column],
    *,
    bins: int = 20,
) -> None:
    """Show how the pooled ranks of each chain are spread; well-mixed chains stay in the band.

    Source: Vehtari et al. (2021), section 5.3, with lines in place of stacked histograms.
    """
    axes = _grid(figure, len(columns))
    for axis, column in zip(axes, columns, strict=True):
        num_chains, num_draws = column.x.shape
        ranks = _fractional_ranks(column.x)
        edges = np.linspace(0, 1, bins + 1)
        share = 1 / bins
        sd = math.sqrt(share * (1 - share) * (1 - 1 / max(num_chains, 2)) / max(1, num_draws))
        band = ((share - 3 * sd) / share, (share + 3 * sd) / share)
        axis.axhspan(*band, color=FAINT, alpha=0.15, lw=0)
        for chain, own in enumerate(ranks):
            height = np.histogram(own, edges)[0] * bins / max(1, num_draws)
            axis.stairs(height, edges, color=CHAINS[chain % len(CHAINS)], lw=1.2, baseline=None)
        axis.axhline(1, color=FAINT, lw=0.8)
        axis.set_ylim(bottom=0)
        axis.set_xlim(0, 1)
        axis.set_title(column.label)
    figure.supxlabel("rank among all draws, as a fraction; band: 3 sd", fontsize=9)


def _fractional_ranks(x: Num[np.ndarray, "chain draw"]) -> Float[np.ndarray, "chain draw"]:
    """Rank all draws, evenly spread over (0, 1), ties in random but repeatable order."""
    ties = np.random.default_rng(0).random(x.size)
    ranks = np.empty(x.size)
    ranks[np.lexsort((ties, x.ravel()))] = (np.arange(x.size) + 0.5) / x.size
    return ranks.reshape(x.shape)


def energy(figure: Figure, values: Float[np.ndarray, "chain draw"]) -> None:
    """Compare the energies with their changes: a much narrower change means slow exploration."""
    figure.set_size_inches(6.5, 3.2)
    axis = figure.subplots()
    _draw_density(axis, (values - values.mean()).ravel(), MAIN, label="energy, centred")
    _draw_density(axis, np.diff(values, axis=1).ravel(), CHAINS[1], label="change of energy")
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    fractions = diagnostics.bfmi(values)
    lines = [f"chain {k}: {f:.2f}" for k, f in enumerate(fractions)]
    axis.legend(title="BFMI\n" + "\n".join(lines[:8]), loc="upper right", title_fontsize=8)


def histograms(
    figure: Figure, columns: Sequence[Column], log_weights: Float[np.ndarray, " N"], *, bins: int
) -> None:
    """Show, for each element, the weighted histogram with the mean and the central 90%."""
    weights = np.exp(log_weights - log_weights.max())
    weights = weights / weights.sum()
    for axis, column in zip(_grid(figure, len(columns)), columns, strict=True):
        mean, _ = weighted.weighted_moments(column.x, log_weights)
        low, high = weighted.weighted_quantile(column.x, log_weights, np.array([0.05, 0.95]))
        axis.set_title(column.label)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        kept = (weights > 0) & np.isfinite(column.x.astype(np.float64))
        if not kept.any():
            continue
        if column.x.dtype.kind in "biu":
            _draw_density(axis, column.x[kept], MAIN, weights=weights[kept])
        else:
            axis.hist(
                column.x[kept].astype(np.float64),
                bins=bins,
                weights=weights[kept],
                color=MAIN,
                alpha=0.55,
            )
        if np.isfinite(mean):
            _draw_interval(axis, float(mean), float(low), float(high), "90%")


def _grid(figure: Figure, count: int) -> list[Axes]:
    """Lay out as many panels as asked for, up to four in a row."""
    across = min(count, 4 if count > 4 else max(count, 1))
    down = math.ceil(count / across)
    figure.set_size_inches(1.2 + 2.5 * across, 0.6 + 1.9 * down)
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def _draw_density(
    axis: Axes,
    values: np.ndarray,
    color: str,
    *,
    fill: bool = True,
    label: str = "",
    weights: np.ndarray | None = None,
) -> None:
    found = density(values, weights)
    if found is None:
        axis.text(0.5, 0.5, "no finite draws", ha="center", color=FAINT, transform=axis.transAxes)
        return
    if found.discrete:
        axis.vlines(found.grid, 0, found.height, color=color, lw=3, alpha=0.6, label=label)
    else:
        axis.plot(found.grid, found.height, color=color, lw=1.2, label=label)
        if fill:
            axis.fill_between(found.grid, found.height, color=color, alpha=0.18, lw=0)
    axis.set_ylim(bottom=0)
    if found.cut:
        axis.set_xlabel("without the long tail")


def _draw_density_title(axis: Axes, column: Column) -> None:
    axis.set_title(column.label)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def _draw_interval(axis: Axes, mean: float, low: float, high: float, name: str) -> None:
    """Draw a bar on the axis for an interval and a dot for the mean, with the numbers."""
    line = {"transform": axis.get_xaxis_transform(), "clip_on": False}
    axis.plot([low, high], [0, 0], color="#303030", lw=3, solid_capstyle="butt", **line)
    axis.plot([mean], [0], "o", color="white", mec="#303030", ms=5, **line)
    text = f"mean {mean:.3g}\n{name} [{low:.3g}, {high:.3g}]"
    axis.set_title(text, loc="right", fontsize=7, color="#505050")
