"""Which part of a cost depends on which draws: a score counts with the cost that comes of its draw.

A cost that is a sum is split into its terms, arrays whose elements are added up. Where the
program's operations show that element i of a term depends on element i of a site alone (a plate, a
`vmap`), the score of a draw meets the costs of its own lane only, and none that was fixed before
it: the Rao-Blackwellisation of Ranganath, Gerrish & Blei (2014) and Schulman et al. (2015). What
the operations do not show counts as dependent.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.interpreter import placed_sites
from ppl.primitives import log_prob, sample_p, value_of
from ppl.program import Program, Structure
from ppl.semantics.cuts import sites_in
from ppl.semantics.sums.lane_rules import propagate, through
from ppl.semantics.sums.lanes import Group, Labels, Meeting, member_axes

Sites = frozenset[str]
_SCALES = {
    "mul": lambda x, number: x * number,
    "div": lambda x, number: x / number,
    "stop_gradient": lambda x, _: jax.lax.stop_gradient(x),
}
#: For every axis of a site's log density, the axis of a term with the same elements; None if none.
Along = tuple[int | None, ...]


class Term(NamedTuple):
    """An array whose elements are added to the cost, times and over numbers that no draw moves.

    The scales are in the order in which they apply.
    """

    atom: Any
    scales: tuple[tuple[str, Any], ...]
    sites: Sites


class Split:
    """A program's terms, what they depend on, and a jaxpr that gives them."""

    def __init__(self, structure: Structure):
        jaxpr = structure.jaxpr
        self._jaxpr, self._along = jaxpr, {}
        self._reads = _reads(jaxpr)
        placed = placed_sites(jaxpr)
        places = Counter(p.site.address for p in placed)
        #: The sites that stand once, outside of loops and branches.
        self.apart = frozenset(
            p.site.address
            for p in placed
            if places[p.site.address] == 1 and not (p.scans or p.whiles or p.branches)
        )
        self.terms = self._terms(jaxpr.outvars[0])
        outs = [a for t in self.terms for a in (t.atom, *_atoms(t))]
        inputs = [*jaxpr.constvars, *jaxpr.invars]
        self.jaxpr = _jax.part_of_jaxpr(jaxpr, jaxpr.eqns, inputs, outs)

    def values(self, outs: Sequence[Any]) -> list[Any]:
        """Give the terms from the outputs of the jaxpr."""
        rest, found = iter(outs), []
        for term in self.terms:
            value = jnp.asarray(next(rest), jnp.result_type(float))
            for name, x in term.scales:
                value = _SCALES[name](value, next(rest) if isinstance(x, _jax.Var) else x)
            found.append(value)
        return found

    def _terms(self, out: Any) -> list[Term]:
        """Go back from the output through sums and what is linear.

        What is read twice is a term: opened on every way to it, terms could be more than equations.
        """
        made = {v: e for e in self._jaxpr.eqns for v in e.outvars}
        reads = Counter(v for e in self._jaxpr.eqns for v in _jax.variables(e.invars))
        found: list[Term] = []
        todo: list[tuple[Any, tuple[tuple[str, Any], ...]]] = [(out, ())]
        while todo:
            atom, scales = todo.pop()
            known = isinstance(atom, _jax.Literal) or reads[atom] > 1
            eqn = None if known else made.get(atom)
            opened = None if eqn is None else self._linear(eqn)
            if opened is None:
                found.append(Term(atom, scales, self._sites(atom)))
                continue
            todo += [(a, (*more, *scales)) for a, more in reversed(opened)]
        return found

    def _linear(self, eqn: Any) -> list[tuple[Any, tuple[tuple[str, Any], ...]]] | None:
        """Write an equation as a sum of scaled operands; None if it is none."""
        name, ins, out = eqn.primitive.name, eqn.invars, eqn.outvars[0].aval
        if not jnp.issubdtype(out.dtype, jnp.floating) or len(eqn.outvars) > 1:
            return None
        minus = (("mul", -1.0),)
        if name == "reduce_sum" or (name in ("copy", "convert_element_type") and _real(ins[0])):
            return [(ins[0], ())]
        if name == "neg":
            return [(ins[0], minus)]
        if name == "stop_gradient":
            return [(ins[0], ((name, None),))]
        if name in ("add", "add_any", "sub"):
            # An operand that is repeated along some axes is added as often.
            one, other = (
                () if a.aval.size == out.size else (("mul", out.size / a.aval.size),) for a in ins
            )
            return [(ins[0], one), (ins[1], (*other, *(minus if name == "sub" else ())))]
        if name in ("mul", "div"):
            for one, other in [(0, 1), (1, 0)][: 2 if name == "mul" else 1]:
                number = ins[other].aval.shape == () and not self._sites(ins[other])
                if number and ins[one].aval.shape == out.shape and _real(ins[one]):
                    scale = ins[other]
                    known = scale if isinstance(scale, _jax.Var) else scale.val
                    return [(ins[one], ((name, known),))]
        return None

    def _sites(self, atom: Any) -> Sites:
        return frozenset() if isinstance(atom, _jax.Literal) else self._reads.get(atom, frozenset())

    def along(self, address: str) -> list[Along]:
        """Say, for every term, along which of its axes the elements of a site lie."""
        if address not in self._along:
            self._along[address] = _Following(self._jaxpr, self._reads, address).of(self.terms)
        return self._along[address]


_known: weakref.WeakKeyDictionary[Structure, Split] = weakref.WeakKeyDictionary()


def split(program: Program) -> Split:
    """Split the cost of a program whose value is one number."""
    found = _known.get(program.structure)
    if found is None:
        found = _known[program.structure] = Split(program.structure)
    return found


def laid_along(x: Any, along: Along, rank: int) -> Any:
    """Lay the elements of a site along the axes of a term, added up where they have none."""
    kept = sorted((k, j) for j, k in enumerate(along) if k is not None)
    x = jnp.sum(x, axis=tuple(j for j in range(x.ndim) if j >= len(along) or along[j] is None))
    rest = [j for j, k in enumerate(along) if k is not None]
    x = jnp.transpose(x, [rest.index(j) for _, j in kept])
    shape = [1] * rank
    for (k, _), size in zip(kept, x.shape, strict=True):
        shape[k] = size
    return x.reshape(shape)


def gathered(term: Any, along: Along, sizes: tuple[int, ...]) -> Any:
    """Add up a term for every element of a site that it depends on, along some of its axes."""
    axes = [k for k in along[: len(sizes)] if k is not None]
    x = jnp.sum(term, axis=tuple(k for k in range(term.ndim) if k not in axes))
    x = jnp.transpose(x, [sorted(axes).index(k) for k in axes])
    shape = [n if k is not None else 1 for n, k in zip(sizes, along, strict=False)]
    return jnp.broadcast_to(x.reshape(shape), sizes)


def _atoms(term: Term) -> list[Any]:
    return [x for _, x in term.scales if isinstance(x, _jax.Var)]


# --- What depends on what -----------------------------------------------------------------------


def _real(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _reads(jaxpr: Any) -> dict[Any, Sites]:
    """Give the sites that every variable depends on."""
    found: dict[Any, Sites] = {}
    for eqn in jaxpr.eqns:
        own = frozenset(s.address for s in sites_in(eqn))
        reads = own.union(*(found.get(v, frozenset()) for v in _jax.variables(eqn.invars)))
        found.update(dict.fromkeys(eqn.outvars, reads))
    return found


class _Following:
    """Follow the elements of one site through a jaxpr.

    A value that depends on the site, and has none of a group's labels, depends on all its members.
    """

    def __init__(self, jaxpr: Any, reads: Mapping[Any, Sites], address: str):
        self.address, self.reads = address, reads
        self.groups: list[Group | None] = []
        self.labels: dict[Any, Labels] = {}
        for eqn in jaxpr.eqns:
            ins = [self._of(a) for a in eqn.invars]
            if eqn.primitive is sample_p:
                outs = [self._drawn(eqn, ins)]
            elif any(self._touched(a) for a in eqn.invars) and not sites_in(eqn):
                outs = self._safely(eqn.invars, ins, functools.partial(propagate, eqn))
            else:
                outs = [(None,) * len(v.aval.shape) for v in eqn.outvars]
            for var, each in zip(eqn.outvars, outs, strict=True):
                twice = {g for g in each if g is not None and each.count(g) > 1}
                self.labels[var] = tuple(None if g in twice else g for g in each)

    def of(self, terms: Sequence[Term]) -> list[Along]:
        """Say where the site's axes are in every term."""
        roots = [None if g is None else g.root for g in self.groups]
        if len({g for g in roots if g is not None}) < sum(g is not None for g in roots):
            roots = [None] * len(roots)  # an operation paired the site with itself, transposed
        found = []
        for term in terms:
            each = [None if g is None else g.root for g in self._of(term.atom)]
            found.append(
                tuple(each.index(g) if g is not None and g in each else None for g in roots)
            )
        return found

    def _of(self, atom: Any) -> Labels:
        nothing = (None,) * len(atom.aval.shape)
        return nothing if isinstance(atom, _jax.Literal) else self.labels.get(atom, nothing)

    def _touched(self, atom: Any) -> bool:
        return not isinstance(atom, _jax.Literal) and self.address in self.reads.get(atom, ())

    def _safely(self, atoms: Sequence[Any], ins: Sequence[Labels], rule: Any) -> list[Labels]:
        """Apply a rule; groups whose members meet in it are followed no further."""
        lost = {
            g
            for atom, each in zip(atoms, ins, strict=True)
            if self._touched(atom)
            for g in self.groups
            if g is not None and g not in each
        }
        while True:
            kept = [tuple(None if g in lost else g for g in each) for each in ins]
            try:
                return rule(kept)
            except Meeting as meeting:
                new = {g for g in meeting.groups if g is not None} - lost
                lost |= new or {g for g in self.groups if g is not None}

    def _drawn(self, eqn: Any, ins: Sequence[Labels]) -> Labels:
        """Follow through a site: an element of the draw depends on what its density depends on."""
        site = eqn.params["site"]
        value = jax.ShapeDtypeStruct((*site.sizes, *site.shape), site.dtype)
        axes = member_axes(site)
        if site.address == self.address:
            self.groups = [Group(n) if n > 1 else None for n in axes]
            return (*self.groups, *(None,) * (len(value.shape) - len(axes)))
        if not any(self._touched(a) for a in eqn.invars):
            return (None,) * len(value.shape)

        def read(leaves: Any, value: Any) -> Any:
            if site.kind == "deterministic":
                return value_of(site, leaves)
            return log_prob(site, leaves, value, guard=False)

        leaves = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in eqn.invars]
        inner = jax.make_jaxpr(read)(leaves, value).jaxpr
        rest = (None,) * len(value.shape)

        def rule(kept: list[Labels]) -> list[Labels]:
            return through(inner, [*kept, rest])

        (found,) = self._safely(eqn.invars, ins, rule)
        return (*found, *(None,) * (len(value.shape) - len(found)))
