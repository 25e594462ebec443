"""Numbers as text, with the digits that their Monte Carlo error supports."""

from __future__ import annotations

import math
from collections.abc import Sequence

ERROR_COLUMNS = ("mcse_mean", "se_mean")


def format_row(columns: Sequence[str], row: Sequence[float], error: float) -> list[str]:
    """Round as far as the Monte Carlo error of the mean supports, to four figures at most."""
    cells = []
    for column, value in zip(columns, row, strict=True):
        if not math.isfinite(value):
            cells.append(str(value))
        elif column.startswith("ess"):
            cells.append(f"{value:,.0f}")
        elif column == "rhat":
            cells.append(f"{value:.3f}")
        elif column in ERROR_COLUMNS:
            cells.append(format_number(value, 2))
        else:
            cells.append(format_number(value, 4, error))
    return cells


def format_number(value: float, figures: int, error: float = math.nan) -> str:
    """Write a number with so many figures, and no digit below the first one of its error."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    decimals = figures - 1 - magnitude
    if math.isfinite(error) and error > 0:
        decimals = min(decimals, -math.floor(math.log10(error)))
    if not -5 <= magnitude < 6:
        return f"{value:.{min(max(decimals + magnitude, 0), figures - 1)}e}"
    rounded = round(value, decimals)
    return f"{rounded:.{max(decimals, 0)}f}" if rounded else f"{0:.{max(decimals, 0)}f}"
