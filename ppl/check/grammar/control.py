"""Draw the statements that contain others, and whole programs.

Every maker gives a statement, the variables that stand after it, and by how much it may multiply
the number of worlds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ppl.check.grammar import laws
from ppl.check.grammar.drawing import (
    Drawing,
    Made,
    Makes,
    Options,
    Place,
    function_body,
    latent,
    observed,
    root,
    some_statements,
    value_for,
)
from ppl.check.grammar.syntax import (
    Block,
    Cond,
    Draw,
    Expr,
    Kind,
    Name,
    Number,
    Plate,
    Scan,
    Submodel,
    Switch,
    Text,
    Vmap,
    Wrap,
)


def _inner(place: Place, worlds: int, *more: Name, lane: Name | None = None) -> Place:
    return Place((*place.env, *more), worlds, place.depth - 1, lane=lane or place.lane)


def _kind(d: Drawing) -> Kind:
    return d.pick(("int", "real")) if d.options.continuous else "int"


def _result(prefix: str, kind: Kind, size: int, length: int | None = None) -> Name:
    return Name(prefix, size if kind == "int" else 0, length, kind=kind)


def _over(d: Drawing, place: Place) -> tuple[Name | None, Name, int]:
    """Choose what a loop runs over; give that, the name of an element, and how many there are."""
    vectors = [n for n in place.env if n.length is not None and n.kind == "int"]
    vectors = [v for v in vectors if root(place.worlds, v.length or 1) >= 2]
    over = d.pick((None, *vectors * 2))
    if over is None:
        count = _count(d, place.worlds, (2, 3))
        return None, Name(d.fresh("i"), count), count
    return over, Name(d.fresh("e"), over.size), over.length or 1


def _count(d: Drawing, worlds: int, counts: Sequence[int]) -> int:
    return d.pick([n for n in counts if n == counts[0] or root(worlds, n) >= 2])


def _plate(d: Drawing, place: Place) -> Made:
    count = _count(d, place.worlds, (2, 3))
    index = Name(d.fresh("i"), count, None, True)
    address = d.fresh("p")
    # Scalars, and vectors of the plate's length member by member, can be used inside.
    seen = [n for n in place.env if n.length in (None, count)]
    env = tuple(dataclasses.replace(n, length=None, lane=n.length is not None) for n in seen)
    inner = Place((*env, index), place.worlds, place.depth - 1, in_plate=count, lane=index)
    statements, after, left = some_statements(d, inner, 1)
    new = (dataclasses.replace(n, length=count, lane=False) for n in after[len(inner.env) :])
    used = place.worlds // max(left, 1)
    return Plate(address, index, count, statements), (*place.env, *new), used


def _vmap(d: Drawing, place: Place) -> Made:
    kind, (over, argument, count) = _kind(d), _over(d, place)
    function = d.fresh("lane")
    lane = argument if over is None else None
    inner = _inner(place, root(place.worlds, count), argument, lane=lane)
    body, _, used = function_body(d, inner, kind)
    name = _result(d.fresh("v"), kind, body.result.size, count)
    vmap = Vmap(name, function, argument, over, count, body)
    return vmap, (*place.env, name), used**count


def _scan(d: Drawing, place: Place) -> Made:
    kind, (over, argument, count) = _kind(d), _over(d, place)
    function = d.fresh("step")
    initial = laws.integer(d, place.env, most=3) if kind == "int" else Number(0.0)
    size = max(initial.size, d.pick((2, 3)))
    carry = _result(d.fresh("c"), kind, size)
    lane = argument if over is None else None
    inner = _inner(place, root(place.worlds, count), carry, argument, lane=lane)
    statements, env, left = some_statements(d, inner, 1)
    local = env[len(inner.env) :]
    result = value_for(d, local, inner.env, kind, size)
    out = value_for(d, local, inner.env, "int")
    carried = _result(d.fresh("x" if kind == "int" else "r"), kind, size)
    stacked = Name(d.fresh("v"), out.size, count)
    scan = Scan(
        carried,
        stacked,
        function,
        carry,
        argument,
        over,
        count,
        d.pick((False, False, True)),
        initial,
        Block(statements, result),
        out,
    )
    used = inner.worlds // max(left, 1)
    return scan, (*place.env, carried, stacked), used**count


def _branches(
    d: Drawing, place: Place, count: int, kind: Kind
) -> tuple[tuple[Block, ...], int, int]:
    """Draw exclusive blocks; a later one may use addresses of an earlier one again."""
    blocks: list[Block] = []
    used, shared = 1, place.shared
    for i in range(count):
        inner = dataclasses.replace(_inner(place, place.worlds), shared=shared)
        block, _, one = function_body(d, inner, kind, least=i == 0)
        blocks.append(block)
        used = max(used, one)
        own = (s for s in block.statements if isinstance(s, Draw) and s.name.kind == "int")
        shared = shared or tuple(s.address for s in own if s.address == s.name.text)[:1]
    return tuple(blocks), used, max(b.result.size for b in blocks)


def _cond(d: Drawing, place: Place) -> Made:
    kind, functions = _kind(d), (d.fresh("then"), d.fresh("otherwise"))
    of, against = laws.test(d, place.env)
    blocks, used, size = _branches(d, place, 2, kind)
    name = _result(d.fresh("x" if kind == "int" else "r"), kind, size)
    cond = Cond(name, functions, of, against, (blocks[0], blocks[1]))
    return cond, (*place.env, name), used


def _switch(d: Drawing, place: Place) -> Made:
    indices = [n for n in place.env if n.length is None and n.kind == "int" and n.size in (2, 3)]
    of, kind = d.pick(sorted(indices, key=lambda n: -n.size)), _kind(d)
    functions = tuple(d.fresh("case") for _ in range(of.size))
    blocks, used, size = _branches(d, place, of.size, kind)
    name = _result(d.fresh("x" if kind == "int" else "r"), kind, size)
    return Switch(name, functions, of, blocks), (*place.env, name), used


def _wrap(wrapper: str) -> Makes:
    def make(d: Drawing, place: Place) -> Made:
        kind, function = _kind(d), d.fresh("part")
        inner = dataclasses.replace(_inner(place, place.worlds), shared=place.shared)
        body, _, used = function_body(d, inner, kind)
        name = _result(d.fresh("x" if kind == "int" else "r"), kind, body.result.size)
        return Wrap(name, function, wrapper, body), (*place.env, name), used

    return make


def _submodel(d: Drawing, place: Place) -> Made:
    function, kind = d.fresh("shared"), _kind(d)
    first = laws.integer(d, place.env, most=3)
    argument = Name(d.fresh("a"), max(first.size, d.pick((2, 3))))
    d.copies *= 2
    inner = Place((argument,), root(place.worlds, 2), place.depth - 1)
    body, _, used = function_body(d, inner, kind)
    d.copies //= 2
    prefix = "x" if kind == "int" else "r"
    one, two = (_result(d.fresh(prefix), kind, body.result.size) for _ in range(2))
    inputs = (first, laws.integer(d, (one, *place.env), most=argument.size))
    scopes = (d.fresh("s"), d.fresh("s"))
    call = Submodel((one, two), scopes, function, argument, inputs, body)
    return call, (*place.env, one, two), used**2


# For each: the worlds it needs to be worth while, how often it is offered, and its maker.
_CONTROL: dict[str, tuple[int, int, Makes]] = {
    "cond": (2, 4, _cond),
    "plate": (1, 2, _plate),
    "vmap": (4, 3, _vmap),
    "scan": (4, 3, _scan),
    "switch": (2, 2, _switch),
    "jit": (2, 1, _wrap("jax.jit")),
    "checkpoint": (2, 1, _wrap("jax.checkpoint")),
    "submodel": (4, 2, _submodel),
}


def text(pick: Callable[[Sequence[Any]], Any], options: Options) -> Text:
    """Draw a whole model."""
    d = Drawing(pick, options, _CONTROL)
    place = Place((), options.max_worlds, options.depth)
    statements, env, worlds = some_statements(d, place)
    while d.owed():
        place = dataclasses.replace(place, env=env, worlds=worlds)
        if d.owed() > 1 or options.observations is not True or d.scored:
            s, env, used = latent(d, place, real=options.continuous and not d.real)
        else:
            s, env, used = observed(d, place)
        statements, worlds = (*statements, s), worlds // used
    form = d.pick(("one", "tuple", "tuple", "dict"))
    count = 1 if form == "one" else d.pick((1, 2, 3))
    results: list[Expr] = []
    for _ in range(count):
        results.append(laws.returned(d, [n for n in env if n not in results]))
    return Text(statements, tuple(results), form)
