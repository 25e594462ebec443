"""A program as one list of plain equations, in which sites are markers and scores are sums.

Nested calls are inlined, and so is the density of every site that is to be scored: its operations
are then equations like all others. Branches with sites inside are computed side by side, as `vmap`
does it, each site present only where its branch is taken. Loops stay loops.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.errors import UnsupportedError, at, message
from ppl.interpreter import batching, placed_sites
from ppl.primitives import Site, factor, log_prob, presence, sample_p, score_p, value_of
from ppl.semantics.sums.lanes import is_literal

#: A slot number, or a literal.
Atom = Any
Kind = Literal["equation", "constant", "loop", "summed", "given", "score", "lost"]

_slots, _choices = itertools.count(), itertools.count()
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")


class Roles(NamedTuple):
    """Which addresses are summed out, and which sites are scored together with them."""

    summed: frozenset[str]
    scored: frozenset[str]


class Item(NamedTuple):
    """One equation, marker, or score; `what` is the equation, the constant or the reason."""

    kind: Kind
    what: Any
    ins: tuple[Atom, ...] = ()
    outs: tuple[int, ...] = ()
    site: Any = None
    body: Any = None
    scored: bool = False


class Flat(NamedTuple):
    """A region: its inputs, its items in order, its outputs."""

    ins: tuple[int, ...]
    items: tuple[Item, ...]
    outs: tuple[Atom, ...]


def flatten(jaxpr: Any, roles: Roles, *, whole: bool = False) -> Flat:
    """Flatten a jaxpr. The constants of a `whole` program come first among the inputs."""
    jaxpr, consts = _jax.open_jaxpr(jaxpr)
    consts = [] if whole else consts  # newer releases keep them with every jaxpr
    items: list[Item] = []
    ins = [next(_slots) for _ in (*jaxpr.constvars, *jaxpr.invars)]
    if consts:
        for slot, c in zip(ins, consts, strict=False):
            items.append(Item("constant", c, outs=(slot,)))
    outs = _inline(jaxpr, ins, roles, items)
    return Flat(tuple(ins[len(consts) :]), tuple(items), tuple(outs))


def _inline(jaxpr: Any, ins: Sequence[Atom], roles: Roles, items: list[Item]) -> list[Atom]:
    env: dict[Any, Atom] = dict(zip((*jaxpr.constvars, *jaxpr.invars), ins, strict=True))
    for eqn in jaxpr.eqns:
        atoms = [v if is_literal(v) else env[v] for v in eqn.invars]
        env.update(zip(eqn.outvars, _add(eqn, atoms, roles, items), strict=True))
    return [v if is_literal(v) else env[v] for v in jaxpr.outvars]


def _call(closed: Any, ins: Sequence[Atom], roles: Roles, items: list[Item]) -> list[Atom]:
    jaxpr, consts = _jax.open_jaxpr(closed)
    slots = [next(_slots) for _ in consts]
    items += [Item("constant", c, outs=(s,)) for s, c in zip(slots, consts, strict=True)]
    return _inline(jaxpr, [*slots, *ins], roles, items)


def _add(eqn: Any, atoms: list[Atom], roles: Roles, items: list[Item]) -> list[Atom]:
    name, effectful = eqn.primitive.name, _jax.contains_effect(eqn)
    if eqn.primitive in (sample_p, score_p):
        return _add_site(eqn, atoms, roles, items)
    if name in ("jit", "pjit", "closed_call", "core_call") or (name in _CALLS and effectful):
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        return _call(inner, atoms, roles, items)
    outs = tuple(next(_slots) for _ in eqn.outvars)
    if not effectful:
        items.append(Item("equation", eqn, tuple(atoms), outs))
    elif name == "scan":
        body = flatten(eqn.params["jaxpr"], roles)
        items.append(Item("loop", eqn, tuple(atoms), outs, body=body))
    elif name == "cond":
        chosen = _choice(eqn.params["branches"])
        return _call(_traced(chosen, eqn.invars), atoms, roles, items)
    else:
        _refuse_roles(eqn, roles)
        why = f"values that come out of a '{name}' with sites inside"
        items.append(Item("lost", why, tuple(atoms), outs))
    return list(outs)


def _choice(branches: Sequence[Any]) -> Any:
    """Compute every branch, its sites present where it is taken, and select the outputs."""
    choice = next(_choices)

    def select(index: Any, *operands: Any) -> list[Any]:
        outs = []
        for b, branch in enumerate(branches):
            taken = index == b
            # Gradients of a branch not taken must not reach the operands.
            safe = [jnp.where(taken, x, jax.lax.stop_gradient(x)) for x in operands]
            outs.append(batching.masked(branch, taken, safe, (choice, b)))
        return [jax.lax.select_n(index, *alternatives) for alternatives in zip(*outs, strict=True)]

    return select


def _refuse_roles(eqn: Any, roles: Roles) -> None:
    for sub in _jax.subjaxprs(eqn):
        for placed in placed_sites(sub):
            site = placed.site
            if site.address in roles.summed | roles.scored:
                name = eqn.primitive.name
                raise UnsupportedError(
                    message(
                        f"marginalize got {at(site.address, site.source)} inside a '{name}'",
                        needs="summed sites, and what depends on them, to stand only in scan, "
                        "cond, vmap, jit and checkpoint",
                        why="a while_loop has no fixed number of sites to sum over, and a custom "
                        "derivative says nothing of a sum",
                        fix=f"move the statement out of the '{name}', or use jax.lax.scan",
                    )
                )


def _traced(fun: Any, variables: Sequence[Any]) -> Any:
    """Stage a function of an equation's operands; NumPy scalars become arrays."""
    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
        for v in variables
    ]
    return jax.make_jaxpr(fun)(*shapes)


def _add_site(eqn: Any, atoms: list[Atom], roles: Roles, items: list[Item]) -> list[Atom]:
    site: Site = eqn.params["site"]
    leaves, variables = atoms, eqn.invars
    scored = site.address in roles.scored

    def concrete(a: Any) -> Any:  # literals stay numbers: bounds of supports are among them
        return jnp.asarray(a.val) if isinstance(a.val, np.generic | np.ndarray) else a.val

    def filled(traced: Sequence[Any]) -> list[Any]:
        fresh = iter(traced)
        return [concrete(a) if is_literal(a) else next(fresh) for a in leaves]

    open_atoms = [a for a in leaves if not is_literal(a)]
    open_vars = [v for a, v in zip(leaves, variables, strict=True) if not is_literal(a)]

    def call(fun: Any, extra: Sequence[Atom] = ()) -> Atom:
        shapes = [_Shaped(site.sizes + site.shape, site.dtype) for _ in extra]
        closed = _traced(
            lambda *xs: fun(filled(xs[: len(open_vars)]), *xs[len(open_vars) :]),
            [*open_vars, *shapes],
        )
        return _call(closed, [*open_atoms, *extra], roles, items)[0]

    if site.kind == "factor":
        if scored:
            weight = call(lambda ls: factor(site, ls))
            items.append(Item("score", None, (weight,), site=site))
        return []
    out = next(_slots)
    if site.kind == "latent":
        kind: Kind = "summed" if site.address in roles.summed else "given"
        items.append(Item(kind, variables, tuple(leaves), (out,), site, scored=scored))
        value: Atom = out
    else:
        value = call(lambda ls: value_of(site, ls))
    if site.kind != "deterministic" and (scored or site.address in roles.summed):
        weight = call(lambda ls, x: log_prob(site, ls, x), [value])
        flags: tuple[Atom, ...] = ()
        if site.address in roles.summed and site.operands(leaves).present is not None:
            flags = (call(lambda ls: presence(site, ls)),)
        items.append(Item("score", out, (weight, *flags), site=site))
    return [value]


class _Shaped:
    """What `_traced` asks of a variable."""

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.aval = jax.ShapeDtypeStruct(shape, dtype)
