"""The picture of a sequence of noisy numbers, such as the estimates that an optimizer saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ppl.errors import ResultError, message
from ppl.results import _panels, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def history(values: Float[np.ndarray, " step"], window: int, label: str = "estimate") -> Figure:
    """Plot numbers by step, with their running mean.

    Args:
        values: by step; those that are not finite are left out.
        window: steps of the running mean.
        label: of the vertical axis.

    Raises:
        ResultError: no number is finite.
    """
    steps = np.flatnonzero(np.isfinite(values)) + 1
    if not len(steps):
        raise ResultError(
            message("plot got no finite value", needs="at least one", fix="fit.summary()")
        )
    finite = values[steps - 1]

    def fill(figure: Figure) -> None:
        axis = figure.add_subplot()
        axis.plot(steps, finite, ".", markersize=2, color=_panels.FAINT, rasterized=True)
        sums = np.cumsum(np.concatenate([[0.0], finite - finite[0]]))
        width = min(window, len(finite))
        mean = finite[0] + (sums[width:] - sums[:-width]) / width
        axis.plot(steps[width - 1 :], mean, label=f"mean of {width:,} steps")
        low, high = np.quantile(finite[len(finite) // 20 :], [0.01, 0.99])
        slack = 0.2 * (high - low) or 1.0
        axis.set_ylim(low - slack, high + slack)  # the first steps may be far off
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.legend(loc="best", frameon=False)

    return plots._figure(fill)
