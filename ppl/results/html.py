"""Tables in HTML and in plain text, from rows of strings.

Colours are inherited or translucent, so that the HTML reads on light and dark pages alike.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

_STYLE = """<style>
.ppl-table {border-collapse: collapse; color: inherit; font-variant-numeric: tabular-nums;}
.ppl-table caption {caption-side: top; text-align: left; padding: 2px 8px; opacity: .7;}
.ppl-table th, .ppl-table td {padding: 2px 8px; border: 0; background: transparent;}
.ppl-table thead th {border-bottom: 1px solid rgba(128, 128, 128, .6); font-weight: 600;}
.ppl-table tbody tr:nth-child(even) {background: rgba(128, 128, 128, .08);}
.ppl-table tbody tr:hover {background: rgba(128, 128, 128, .18);}
.ppl-table .ppl-left {text-align: left;}
.ppl-table .ppl-right {text-align: right;}
.ppl-bar {height: 10px; background: rgba(70, 130, 180, .75);}
.ppl-details {margin: 4px 0; color: inherit;}
.ppl-details summary {cursor: pointer;}
</style>"""


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str | None = None,
    align: str | None = None,
    bars: Sequence[float] | None = None,
) -> str:
    """Build an HTML table; every header and cell is escaped.

    Args:
        headers: one header for each column.
        rows: cells by row.
        caption: a line above the table.
        align: one letter for each column, "l" for left, "r" for right; by default the first column
            is left and the others right. "." (see `text_table`) counts as right.
        bars: a length between 0 and 1 for each row, drawn as a bar in a last column.
    """
    classes = ["ppl-left" if a == "l" else "ppl-right" for a in _alignment(headers, align)]

    def line(tag: str, cells: Sequence[str], bar: str = "") -> str:
        parts = (
            f'<{tag} class="{css}">{html.escape(cell)}</{tag}>'
            for css, cell in zip(classes, cells, strict=True)
        )
        return f"<tr>{''.join(parts)}{bar}</tr>"

    drawn = [""] * len(rows) if bars is None else [_bar(b) for b in bars]

    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "\n".join(line("td", row, bar) for row, bar in zip(rows, drawn, strict=True))
    head = line("th", headers, "" if bars is None else "<th></th>")
    return (
        f'{_STYLE}\n<table class="ppl-table">{title}\n<thead>{head}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )


def _bar(length: float) -> str:
    return (
        '<td class="ppl-left"><div class="ppl-bar" '
        f'style="width: {120 * min(max(length, 0.0), 1.0):.1f}px"></div></td>'
    )


def details(summary: str, body: str, *, open: bool = False) -> str:
    """Build a section that folds away; `summary` is escaped, `body` is HTML already."""
    state = " open" if open else ""
    return (
        f'<details class="ppl-details"{state}><summary>{html.escape(summary)}</summary>\n'
        f"{body}\n</details>"
    )


def bullets(items: Sequence[str]) -> str:
    """Build a list; every item is escaped."""
    return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in items)}</ul>"


def text_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], align: str | None = None
) -> str:
    """Build a table in plain text, columns two spaces apart and no trailing spaces.

    Args:
        headers: one header for each column.
        rows: cells by row.
        align: one letter for each column: "l" left, "r" right, "." with decimal points under one
            another; by default the first column is left and the others right.
    """
    letters = _alignment(headers, align)
    columns = [[row[k] for row in rows] for k in range(len(headers))]
    padded = []
    for header, cells, letter in zip(headers, columns, letters, strict=True):
        cells = _align_points(cells) if letter == "." else cells
        width = max(map(len, [header, *cells]))
        pad = str.ljust if letter == "l" else str.rjust
        padded.append([pad(cell, width) for cell in [header, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def _align_points(cells: Sequence[str]) -> list[str]:
    """Pad numbers on the right until their decimal points, or their ends, meet."""
    after = [len(cell) - cell.find(".") if "." in cell else 0 for cell in cells]
    widest = max(after, default=0)
    return [cell + " " * (widest - count) for cell, count in zip(cells, after, strict=True)]


def _alignment(headers: Sequence[str], align: str | None) -> str:
    return "l" + "r" * (len(headers) - 1) if align is None else align
