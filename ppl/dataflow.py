"""The dataflow pass that builds the site table.

One pass over the jaxpr follows, for every value, which sites it depends on and whether it is (up to
reshaping) one of the program's inputs. The first gives the dependency graph; the second lets data
and parameters be checked against their domains the moment a program is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl import _jax
from ppl.distributions import describe
from ppl.errors import AddressError, at, message
from ppl.interpreter import Placed, address_hash, placed_sites
from ppl.primitives import sample_p, score_p
from ppl.sites import Check, Input, SiteInfo, Table, Unknown


class _Flow(NamedTuple):
    """What is known of a value: the sites it depends on, the input it is a reshaping of."""

    sites: frozenset[str] = frozenset()
    origin: Any = None


_REARRANGING = frozenset({"reshape", "broadcast_in_dim", "transpose", "squeeze"})


def _followed(eqn: Any, origin: Any) -> Any:
    """Say of what input an equation's result has the elements; None if it computes."""
    if not isinstance(origin, Input):
        return None
    if eqn.primitive.name == "copy":
        return origin
    if eqn.primitive.name == "convert_element_type":
        old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
        return origin if np.issubdtype(new, np.floating) or old == new else None
    if eqn.primitive.name in _REARRANGING:
        return Input(origin.index, moved=True)
    return None


class _Pass:
    """The dataflow pass, with the facts gathered about each site."""

    def __init__(self) -> None:
        self.parents: dict[str, frozenset[str]] = {}
        self.operands: dict[int, tuple[Any, list[Any]]] = {}

    def run(self, jaxpr: Any, ins: Sequence[_Flow], control: frozenset[str]) -> list[_Flow]:
        jaxpr, _ = _jax.open_jaxpr(jaxpr)
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
            origin = _followed(eqn, ins[0].origin) if ins else None
            return [_Flow(union, origin)] * len(eqn.outvars)
        if name == "scan":
            return self._scan(eqn, ins, control)
        if name == "cond":
            control = control | ins[0].sites
            outs = [self.run(b, ins[1:], control) for b in params["branches"]]
            return [_Flow(control.union(*(f.sites for f in fs))) for fs in zip(*outs, strict=True)]
        if name == "while":
            return self._while(params, ins, control)
        if len(subs) == 1 and len(subs[0].invars) == len(ins):
            return self.run(subs[0], ins, control)
        return [_Flow(union)] * len(eqn.outvars)

    def _scan(self, eqn: Any, ins: list[_Flow], control: frozenset[str]) -> list[_Flow]:
        k, c = _jax.scan_sizes(eqn)
        consts, xs = ins[:k], ins[k + c :]
        carry = [_Flow(f.sites) for f in ins[k : k + c]]
        while True:
            outs = self.run(eqn.params["jaxpr"], [*consts, *carry, *xs], control)
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
    inputs = [_Flow(origin=Input(i)) for i in range(len(jaxpr.constvars) + len(jaxpr.invars))]
    opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    flow.run(opened, inputs, frozenset())
    rows: dict[str, SiteInfo] = {}
    checks = []
    for p in placed:
        site, origins = flow.operands[id(p.site)]
        operands = site.operands([Unknown() if o is None else o for o in origins])
        if operands.distribution is not None:
            parameters = tuple(jax.tree.leaves(operands.distribution, is_leaf=_is_origin))
            checks.append(Check(p, operands.distribution, parameters, operands.value))
        row = _row(p, operands, flow.parents[site.address])
        rows.setdefault(site.address, row)
    return Table(name, list(rows.values()), checks)


def _is_origin(x: Any) -> bool:
    return isinstance(x, (Input, Unknown))


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
    """Raise unless every address names one array, and every latent address has a key of its own."""
    seen: dict[str, list[Placed]] = {}
    keys: dict[int, str] = {}
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
            _refuse_mismatch(p, q)
        seen[p.site.address].append(p)
        other = keys.setdefault(address_hash(p.site.address), p.site.address)
        if other != p.site.address:
            raise AddressError(
                message(
                    f'the addresses "{other}" and {at(p.site.address, p.site.source)} have the '
                    "same 32-bit hash",
                    needs="addresses with different hashes",
                    why="the hash selects a site's random numbers, which must not be shared",
                    fix="rename one",
                )
            )


def _refuse_mismatch(p: Placed, q: Placed) -> None:
    """Raise unless two alternatives of one address in exclusive branches are alike."""
    one, two = (
        (x.site.kind, x.shape, x.prefix, np.dtype(x.site.dtype).name, x.site.event_dim)
        for x in (p, q)
    )
    if one != two:
        raise AddressError(
            message(
                f"{at(p.site.address, p.site.source)} is {p.site.kind} of shape {p.shape} and "
                f"dtype {one[3]} in one branch, {q.site.kind} of shape {q.shape} and dtype "
                f"{two[3]} in another ({q.site.source})",
                needs="the same kind, shape, nesting and dtype in every branch that uses it",
                why="an address names one array, whichever branch is taken",
                fix="use different addresses in the branches",
            )
        )


def ancestors(jaxpr: Any) -> dict[str, frozenset[str]]:
    """Give, for every site, all that its distribution or presence can depend on.

    A site of a loop whose later draws depend on its earlier ones is among its own ancestors.
    """
    flow = _Pass()
    inputs = [_Flow()] * (len(jaxpr.constvars) + len(jaxpr.invars))
    opened = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    flow.run(opened, inputs, frozenset())
    found = dict(flow.parents)
    while True:
        wider = {a: p.union(*(found.get(x, frozenset()) for x in p)) for a, p in found.items()}
        if wider == found:
            return found
        found = wider
