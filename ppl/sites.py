"""The site table of a program: what is drawn, observed and scored, where, and from what."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from ppl.context import Plate
from ppl.errors import check_addresses
from ppl.interpreter import Placed
from ppl.primitives import Kind
from ppl.results import html


@dataclasses.dataclass(frozen=True, eq=False)
class SiteInfo:
    """One row of the site table. `shape` counts every `vmap`, `scan` and plate axis."""

    address: str
    kind: Kind
    distribution: str
    support: str
    shape: tuple[int, ...]
    dtype: Any
    path: tuple[str, ...]
    plates: tuple[Plate, ...]
    depends_on: tuple[str, ...]
    discrete: bool
    improper: bool
    weighted: bool
    placed: Placed
    source: str

    @property
    def observed(self) -> bool:
        """Whether the site's value is data."""
        return self.kind == "observed"

    @property
    def conditional(self) -> bool:
        """Whether the site stands in a branch, so that it may be absent."""
        return bool(self.placed.branches)

    @property
    def axes(self) -> tuple[str | None, ...]:
        """The plate name of each axis of `shape`, or None."""
        names: list[str | None] = [None] * len(self.shape)
        site = self.placed.site
        batch_rank = len(self.shape) - site.event_dim
        for plate in self.plates:
            names[batch_rank + plate.dim] = plate.name
        return tuple(names)


class Table(Sequence[SiteInfo]):
    """The sites of a program in order; indexed by position or by address."""

    def __init__(self, name: str, rows: Sequence[SiteInfo], checks: Sequence[Check] = ()):
        self.name, self._rows, self.checks = name, tuple(rows), tuple(checks)
        self._by_address = {row.address: row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[SiteInfo]:
        return iter(self._rows)

    def __contains__(self, address: object) -> bool:
        return address in self._by_address or address in self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            check_addresses("the site table", [index], self._by_address)
            return self._by_address[index]
        return self._rows[index]

    def addresses(self, *kinds: Kind) -> tuple[str, ...]:
        """The addresses of the given kinds (of all, if none is given)."""
        return tuple(r.address for r in self._rows if not kinds or r.kind in kinds)

    def _cells(self) -> list[list[str]]:
        def shape(row: SiteInfo) -> str:
            dims = [f"{n}={s}" if n else str(s) for n, s in zip(row.axes, row.shape, strict=True)]
            return "(" + ", ".join(dims) + ")" if dims else "scalar"

        return [
            [
                row.address,
                row.kind,
                row.distribution,
                shape(row),
                row.support,
                " ".join(row.path),
                ", ".join(row.depends_on),
            ]
            for row in self._rows
        ]

    _headers = ("address", "kind", "distribution", "shape", "support", "inside", "depends on")

    def __str__(self) -> str:
        return (
            f"{self.name}\n{html.text_table(list(self._headers), self._cells(), align='lllllll')}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.table(list(self._headers), self._cells(), caption=self.name, align="lllllll")

    def render(self) -> Any:
        """Draw the dependency graph: a `graphviz.Digraph` if Graphviz is installed, else text."""
        try:
            import graphviz
        except ImportError:
            graphviz = None
        if graphviz is None or shutil.which("dot") is None:  # the package draws by that program
            lines = [f"{r.address} <- {', '.join(r.depends_on) or '(nothing)'}" for r in self]
            return "\n".join(lines)
        graph = graphviz.Digraph(self.name)
        style = {
            "latent": {"shape": "ellipse"},
            "observed": {"shape": "ellipse", "style": "filled", "fillcolor": "lightgray"},
            "deterministic": {"shape": "ellipse", "style": "dashed"},
            "factor": {"shape": "box"},
        }
        inside: dict[tuple[Plate, ...], list[SiteInfo]] = {}
        for row in self:
            inside.setdefault(row.plates, []).append(row)
        for plates, rows in inside.items():
            target = graphviz.Digraph(name="cluster_" + "_".join(p.name for p in plates))
            target.attr(label=", ".join(f"{p.name} = {p.size}" for p in plates))
            for row in rows:
                node = target if plates else graph
                node.node(row.address, f"{row.address}\n{row.distribution}", **style[row.kind])
            if plates:
                graph.subgraph(target)
        for row in self:
            for parent in row.depends_on:
                # Not `graph.edge`, which would read a colon in an address as a port.
                ends = [graphviz.quoting.quote(x) for x in (parent, row.address)]
                graph.body.append(f"\t{ends[0]} -> {ends[1]}\n")
        return graph


# --- What can be checked before a run -----------------------------------------------------------


class Unknown:
    """Stands for a parameter whose value only a run will tell."""

    def __repr__(self) -> str:
        return "·"


@dataclasses.dataclass(frozen=True)
class Input:
    """Stands for one of the program's inputs; `moved` if its elements were rearranged."""

    index: int
    moved: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """What a site's operands are, as far as they are inputs or constants.

    `parameters` are those of the distribution in flat order: inputs, numbers, or unknown.
    """

    placed: Placed
    distribution: Any
    parameters: tuple[Any, ...]
    value: Any
