"""The site table of a program: what is drawn, observed and scored, where, and from what.

One pass over the jaxpr follows, for every value, which sites it depends on and whether it is (up to
reshaping) one of the program's inputs. The first gives the dependency graph; the second lets data
and parameters be checked against their domains the moment a program is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl import _jax
from ppl.context import Plate
from ppl.distributions import (
    constraints,
    describe,
    describe_support,
    refuse_parameters,
    violations,
)
from ppl.errors import AddressError, ObservationError, at, check_addresses, message
from ppl.interpreter import Placed, placed_sites
from ppl.primitives import Kind, sample_p, score_p
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

    def __init__(self, name: str, rows: Sequence[SiteInfo], checks: Sequence[_Check] = ()):
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
        """Draw the dependency graph: a `graphviz.Digraph` if installed, else text."""
        try:
            import graphviz
        except ImportError:
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
                graph.edge(parent, row.address)
        return graph


# --- Building the table -------------------------------------------------------------------------


class _Flow(NamedTuple):
    """What is known of a value: the sites it depends on, the input it is a reshaping of."""

    sites: frozenset[str] = frozenset()
    origin: Any = None


class _Unknown:
    """Stands for a parameter whose value only a run will tell."""

    def __repr__(self) -> str:
        return "·"


class _Input(NamedTuple):
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Check:
    """A site whose data or parameters are inputs: `distribution` and `value` hold `_Input`s."""

    placed: Placed
    distribution: Any
    value: Any


_SAME_ELEMENTS = frozenset(
    {"convert_element_type", "reshape", "broadcast_in_dim", "transpose", "squeeze", "copy"}
)


class _Pass:
    """The dataflow pass, with the facts gathered about each site."""

    def __init__(self) -> None:
        self.parents: dict[str, frozenset[str]] = {}
        self.operands: dict[int, tuple[Any, list[Any]]] = {}

    def run(self, jaxpr: Any, ins: Sequence[_Flow], control: frozenset[str]) -> list[_Flow]:
        jaxpr, consts = _jax.open_jaxpr(jaxpr)
        env = dict(zip(jaxpr.invars, ins, strict=True))
        for var in jaxpr.constvars:
            env.setdefault(var, _Flow())

        def read(atom: Any) -> _Flow:
            if isinstance(atom, _jax.Literal):
                return _Flow(origin=np.asarray(atom.val))
            return env[atom]

        for eqn in jaxpr.eqns:
            flows = [read(v) for v in eqn.invars]
            for var, flow in zip(eqn.outvars, self.step(eqn, flows, control), strict=True):
                env[var] = flow
        return [read(v) for v in jaxpr.outvars]

    def step(self, eqn: Any, ins: list[_Flow], control: frozenset[str]) -> list[_Flow]:
        params, name = eqn.params, eqn.primitive.name
        union = control.union(*(f.sites for f in ins))
        if eqn.primitive in (sample_p, score_p):
            site = params["site"]
            self.parents[site.address] = self.parents.get(site.address, frozenset()) | union
            self.operands[id(site)] = (site, [f.origin for f in ins])
            return [_Flow(frozenset({site.address}))] * len(eqn.outvars)
        subs = list(_jax.subjaxprs(eqn))
        if not subs:
            same = ins[0].origin if name in _SAME_ELEMENTS else None
            return [_Flow(union, same)] * len(eqn.outvars)
        if name == "scan":
            return self._scan(params, ins, control)
        if name == "cond":
            control = control | ins[0].sites
            outs = [self.run(b, ins[1:], control) for b in params["branches"]]
            return [_Flow(control.union(*(f.sites for f in fs))) for fs in zip(*outs, strict=True)]
        if name == "while":
            return self._while(params, ins, control)
        if len(subs) == 1 and len(subs[0].invars) == len(ins):
            return self.run(subs[0], ins, control)
        return [_Flow(union)] * len(eqn.outvars)

    def _scan(self, params: Any, ins: list[_Flow], control: frozenset[str]) -> list[_Flow]:
        k, c = params["num_consts"], params["num_carry"]
        consts, xs = ins[:k], ins[k + c :]
        carry = [_Flow(f.sites) for f in ins[k : k + c]]
        while True:
            outs = self.run(params["jaxpr"], [*consts, *carry, *xs], control)
            wider = [_Flow(a.sites | b.sites) for a, b in zip(carry, outs[:c], strict=True)]
            if wider == carry:
                return [*carry, *outs[c:]]
            carry = wider

    def _while(self, params: Any, ins: list[_Flow], control: frozenset[str]) -> list[_Flow]:
        n, m = params["cond_nconsts"], params["body_nconsts"]
        carry = [_Flow(f.sites) for f in ins[n + m :]]
        while True:
            (go,) = self.run(params["cond_jaxpr"], [*ins[:n], *carry], control)
            inner = control | go.sites
            outs = self.run(params["body_jaxpr"], [*ins[n : n + m], *carry], inner)
            wider = [_Flow(a.sites | b.sites | inner) for a, b in zip(carry, outs, strict=True)]
            if wider == carry:
                return carry
            carry = wider


def site_table(jaxpr: Any, name: str) -> Table:
    """Build the table; raise `AddressError` if two sites share an address."""
    placed = placed_sites(jaxpr)
    _refuse_collisions(placed)
    flow = _Pass()
    inputs = [_Flow(origin=_Input(i)) for i in range(len(jaxpr.constvars) + len(jaxpr.invars))]
    opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    flow.run(opened, inputs, frozenset())
    rows: dict[str, SiteInfo] = {}
    checks = []
    for p in placed:
        site, origins = flow.operands[id(p.site)]
        operands = site.operands([_Unknown() if o is None else o for o in origins])
        if operands.distribution is not None:
            checks.append(_Check(p, operands.distribution, operands.value))
        row = _row(p, operands, flow.parents[site.address])
        rows.setdefault(site.address, row)
    return Table(name, list(rows.values()), checks)


def _row(placed: Placed, operands: Any, parents: frozenset[str]) -> SiteInfo:
    site, d = placed.site, operands.distribution
    return SiteInfo(
        address=site.address,
        kind=site.kind,
        distribution=describe(d) if d is not None else "",
        support=site.support,
        shape=placed.shape,
        dtype=site.dtype,
        path=placed.path,
        plates=site.plates,
        depends_on=tuple(sorted(parents - {site.address})),
        discrete=site.discrete,
        improper=site.improper,
        weighted=operands.scale is not None and site.kind != "deterministic",
        placed=placed,
        source=site.source,
    )


def _refuse_collisions(placed: Sequence[Placed]) -> None:
    seen: dict[str, list[Placed]] = {}
    for p in placed:
        for q in seen.setdefault(p.site.address, []):
            mine = dict(p.branches)
            if not any(mine.get(cond, branch) != branch for cond, branch in q.branches):
                raise AddressError(
                    message(
                        f"address {at(p.site.address, p.site.source)} was already used at "
                        f"{q.site.source}",
                        needs="one address per site",
                        why="choices are looked up by address",
                        fix='rename one, or wrap a sub-model in `with ppl.scope("name"):`',
                    )
                )
        seen[p.site.address].append(p)


# --- Checking inputs ----------------------------------------------------------------------------


def check_inputs(table: Table, consts: Sequence[Any], args: Sequence[Any]) -> None:
    """Raise if an input that is an observation or a parameter lies outside its domain.

    Only what is known now is checked; what depends on a draw is -inf where it matters.
    """
    values = [*consts, *args]

    def concrete(x: Any) -> Any:
        if isinstance(x, _Input):
            x = values[x.index]
        if isinstance(x, (_Unknown, jax.ShapeDtypeStruct)) or _jax.is_tracer(x):
            return None
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return None
        return np.asarray(x)

    for check in table.checks:
        site = check.placed.site
        bad = violations(check.distribution, concrete)
        refuse_parameters(site.address, site.source, check.distribution, bad)
        value = None if check.value is None else concrete(check.value)
        if value is not None and site.kind == "observed":
            check_support(site.address, site.source, check.distribution, value, concrete)


def check_support(address: str, source: str, d: Any, value: np.ndarray, concrete: Any) -> None:
    """Raise `ObservationError` if a concrete value lies outside the distribution's support."""
    support = d.support
    leaves, tree = jax.tree.flatten(support)
    known = [concrete(x) for x in leaves]
    if any(k is None or (k.ndim and k.shape != value.shape) for k in known):
        return
    support = jax.tree.unflatten(tree, known)
    if constraints.is_dependent(support):
        return
    inside = np.asarray(support(value)) & ~np.any(
        np.isnan(value.astype(float)), axis=tuple(range(value.ndim - support.event_dim, value.ndim))
    )
    if np.all(inside):
        return
    where = tuple(int(i) for i in np.argwhere(~np.atleast_1d(inside))[0])
    worst = np.atleast_1d(value)[where] if value.ndim else value
    index = f" at index {where}" if np.ndim(inside) else ""
    raise ObservationError(
        message(
            f"sample got the observation {np.array2string(np.asarray(worst))}{index} "
            f"({int(np.sum(~inside))} such) at {at(address, source)}",
            needs=f"values in the support of {describe(d)}: {describe_support(support)}",
            why="its log density is -inf there, so the model says the data are impossible",
            fix="drop or mend the values, or choose a distribution that can produce them",
        )
    )


def observed_values(table: Table, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The observations that are inputs or constants, in the shape of their sites."""
    found = {}
    for check in table.checks:
        site, value = check.placed.site, check.value
        if site.kind != "observed":
            continue
        if isinstance(value, _Input):
            value = inputs[value.index]
        if isinstance(value, _Unknown) or _jax.is_tracer(value):
            continue
        value = np.asarray(value)
        if value.shape == check.placed.shape:
            found[site.address] = value
    return found
