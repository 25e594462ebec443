"""The evaluation of a region over all candidates of its summed sites at once.

Every equation is evaluated over the dimensions of its own operands only; every score becomes a
factor. What is known outside of a loop is evaluated there, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.finite import MOST_VALUES, finite_values
from ppl.primitives import Site
from ppl.semantics.sums.elimination import Factor, factor_of
from ppl.semantics.sums.flat import Atom, Flat, Item
from ppl.semantics.sums.lane_rules import propagate
from ppl.semantics.sums.lanes import (
    Dim,
    Meeting,
    Value,
    candidates,
    is_literal,
    lift,
    pinned,
    union,
)
from ppl.semantics.sums.uniform import thin


class Found(NamedTuple):
    """A summed site of a region: its dimension, and the values the candidates stand for."""

    site: Site
    dim: Dim
    values: np.ndarray
    joint: bool


@dataclasses.dataclass
class Run:
    """What one evaluation has in common: sites to sum jointly, and whether to keep a tape."""

    joint: frozenset[str] = frozenset()
    taped: bool = False


class Region:
    """The state of one region while it is evaluated."""

    def __init__(
        self,
        run: Run,
        flat: Flat,
        given: Mapping[str, Any],
        protected: frozenset[Dim] = frozenset(),
        outer: Region | None = None,
        links: Mapping[int, Atom] | None = None,
    ):
        self.run, self.flat, self.given, self.protected = run, flat, dict(given), protected
        self.outer, self.links = outer, dict(links or {})
        self.env: dict[int, Value] = {}
        self.done: set[int] = set()
        self.factors: list[Factor] = []
        self.weights: list[Any] = []
        self.found: list[Any] = []
        self.tape: list[Any] | None = [] if run.taped else None
        self.facts: dict[int, Any] = {}
        self._makers = {slot: item for item in flat.items for slot in item.outs}

    def copy(self, given: Mapping[str, Any]) -> Region:
        """Give the region as it stands, to be finished with other inputs."""
        new = Region(self.run, self.flat, given, self.protected, self.outer, self.links)
        new.env, new.done = dict(self.env), set(self.done)
        new.factors, new.weights = list(self.factors), list(self.weights)
        new.found, new.facts = list(self.found), self.facts
        return new

    def read(self, atom: Atom) -> Value:
        """Give the value of an operand."""
        return Value(atom.val) if is_literal(atom) else self.env[atom]

    def outs(self) -> list[Value]:
        """Give the region's results."""
        return [self.read(a) for a in self.flat.outs]

    def knows(self, atom: Atom) -> bool:
        """Tell whether an operand has a value already."""
        return is_literal(atom) or atom in self.env

    def live(self, index: int) -> frozenset[Dim]:
        """The dimensions that values read after an item depend on, or that are not ours to sum."""
        later = [a for item in self.flat.items[index + 1 :] for a in item.ins]
        slots = [a for a in (*later, *self.flat.outs) if not is_literal(a)]
        return self.protected.union(*(self.env[a].dims for a in slots if a in self.env))

    def execute(self, *, known: bool = False) -> None:
        """Evaluate the items that are left; with `known`, only those whose operands are known."""
        for i, item in enumerate(self.flat.items):
            if i in self.done:
                continue
            ready = item.kind in ("summed", "constant") or (
                item.kind in ("equation", "score") and all(map(self.knows, item.ins))
            )
            if known and not ready:
                continue
            self.done.add(i)
            outs = self._evaluate(i, item)
            self.env.update(zip(item.outs, outs, strict=True))

    def _evaluate(self, index: int, item: Item) -> list[Value]:
        match item.kind:
            case "constant":
                return [Value(item.what)]
            case "equation":
                return apply(item, [self.read(a) for a in item.ins])
            case "summed":
                return [self._summed(item)]
            case "given":
                self._refuse_moving(item)
                return [Value(self.given[item.site.address])]
            case "score":
                self._score(item)
                return []
            case "loop":
                from ppl.semantics.sums.loops import run_loop  # the two modules call one another

                return run_loop(self, index, item)
            case _:
                return [Value(None, gone=item.what)] * len(item.outs)

    # --- Sites --------------------------------------------------------------------------------

    def _summed(self, item: Item) -> Value:
        site: Site = item.site
        values = self._candidates(item)
        joint = site.address in self.run.joint
        value = candidates(site, values, joint)
        self.found.append(Found(site, value.dims[0], value.array if joint else values, joint))
        return value

    def _candidates(self, item: Item) -> np.ndarray:
        site: Site = item.site
        facts = [self.fact(a) for a in item.ins]
        box: list[np.ndarray] = []

        def list_values(*unknown: Any) -> tuple[()]:
            fresh = iter(unknown)
            leaves = [next(fresh) if x is None else x for x in facts]
            d = site.operands(leaves).distribution
            assert d is not None
            where = {"address": site.address, "source": site.source}
            with jax.ensure_compile_time_eval():  # NumPyro computes bounds with jnp
                box.append(finite_values(d, operation="marginalize", **where))
            return ()

        shapes = []
        for i, (variable, x) in enumerate(zip(item.what, facts, strict=True)):
            if x is None:  # the shape of one lane
                lead = sum(level.mapped[i] for level in site.batch)
                shapes.append(jax.ShapeDtypeStruct(variable.aval.shape[lead:], variable.aval.dtype))
        jax.eval_shape(list_values, *shapes)
        return _together(site, box[0])

    def fact(self, atom: Atom) -> Any:
        """Give an operand's value if it follows from the program's text alone, else None."""
        if is_literal(atom):
            return atom.val
        if atom in self.facts:
            return self.facts[atom]
        if atom in self.links:
            assert self.outer is not None
            return self.outer.fact(self.links[atom])
        item, fact = self._makers.get(atom), None
        if item is not None and item.kind == "constant":
            fact = None if _jax.is_tracer(item.what) else np.asarray(item.what)
        elif item is not None and item.kind == "equation":
            ins = [self.fact(a) for a in item.ins]
            if not any(x is None for x in ins):
                with jax.ensure_compile_time_eval():
                    outs = _jax.bind_equation(item.what, ins)
                fact = outs[item.outs.index(atom)]
        self.facts[atom] = fact
        return fact

    def _refuse_moving(self, item: Item) -> None:
        """A site that stays exists, and has its support, whatever the summed sites are."""
        site: Site = item.site
        values = [self.read(a) for a in item.ins]
        present = site.operands(values).present
        if present is not None and (present.dims or present.gone):
            raise UnsupportedError(
                message(
                    f"marginalize got {at(site.address, site.source)}, which exists only for some "
                    "values of a summed site",
                    needs="sites that stay to exist for all values of the summed ones",
                    why="the values of the summed sites would have different choices beside them",
                    fix=f'sum "{site.address}" out too, or draw it outside of the branch',
                )
            )
        if not item.scored or site.domain is None:
            return
        bounds = site.domain.bounds
        moving = [i for i, v in enumerate(values) if v.dims or v.gone]
        if moving and any(b is None or (isinstance(b, int) and b in moving) for b in bounds):
            raise UnsupportedError(
                message(
                    f"marginalize got {at(site.address, site.source)}, whose support depends on a "
                    "summed site",
                    needs="a support that is the same for every value of the summed sites",
                    why="the site keeps its values, and has one set of them",
                    fix="draw it on a fixed support and compute what depends on the summed site",
                )
            )

    def _score(self, item: Item) -> None:
        weight, *flags = [self.read(a) for a in item.ins]
        site: Site = item.site
        for value in (weight, *flags):
            if value.gone:
                raise UnsupportedError(
                    message(
                        f"marginalize got {at(site.address, site.source)}, which depends on "
                        f"{value.gone}",
                        needs="scores that depend on a bounded number of summed sites at a time",
                        why="the sites of all iterations would have to be summed together",
                        fix="move the statement into the loop, or use ppl.enumerate",
                    )
                )
        if flags:
            own = next(f.dim for f in reversed(self.found) if _same(f, site))
            weight = pinned(weight, flags[0], own)
        if weight.dims:
            self.factors.append(factor_of(weight))
        else:
            self.weights.append(jnp.sum(weight.array))


def _same(found: Any, site: Site) -> bool:
    return isinstance(found, Found) and found.site is site


def apply(item: Item, values: Sequence[Value]) -> list[Value]:
    """Evaluate an equation over the dimensions of its operands."""
    eqn = item.what
    gone = next((v.gone for v in values if v.gone), "")
    if gone:
        return [Value(None, gone=gone)] * len(item.outs)
    less = thin(eqn, values)
    operands, fun = less or (values, lambda *xs: _jax.bind_equation(eqn, xs))
    labels = _labels(eqn, values)
    dims, outs = lift(fun, operands) if union(values) else ((), fun(*[v.array for v in operands]))
    if less is None:
        return [Value(x, dims, each) for x, each in zip(outs, labels, strict=True)]
    sizes = tuple(d.size for d in dims)
    full = [
        jnp.broadcast_to(x, (*sizes, *v.aval.shape)) for x, v in zip(outs, eqn.outvars, strict=True)
    ]
    return [Value(x, dims, each, core=c) for x, each, c in zip(full, labels, outs, strict=True)]


def _labels(eqn: Any, values: Sequence[Value]) -> list[Any]:
    """Follow the members through an equation; say whose they are where they meet."""
    if not union(values):
        return [()] * len(eqn.outvars)
    try:
        return propagate(eqn, [v.axes for v in values])
    except Meeting as meeting:
        roots = {g.root for g in meeting.groups}
        mixed = [d for d in union(values) if not roots or set(d.groups) & roots]
        raise Meeting(meeting.operation, mixed, meeting.groups) from None


def _together(site: Site, values: np.ndarray) -> np.ndarray:
    """List the values of an event from those of its elements, where these are independent."""
    event = site.shape[len(site.shape) - site.event_dim :]
    apart = event[: len(event) - (values.ndim - 1)]
    count = math.prod(apart)
    if not apart:
        return values
    if len(values) ** count > MOST_VALUES:
        raise UnsupportedError(
            message(
                f"marginalize got {len(values)}^{count} values of an event at "
                f"{at(site.address, site.source)}",
                needs=f"at most {MOST_VALUES}",
                why="the elements of one event are summed together",
                fix="a plate in place of to_event, whose members can be summed apart",
            )
        )
    index = np.indices((len(values),) * count).reshape(count, -1).T
    return values[index].reshape(-1, *event)
