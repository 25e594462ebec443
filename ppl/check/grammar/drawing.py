"""Draw a random program: which choices there are, and in which order a shrinker prefers them.

Hypothesis shrinks towards fewer choices and towards the first of several. So plain draws come
before observations, these before control flow, Bernoulli before the rest, and one half before all
other probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ppl.check.grammar import laws
from ppl.check.grammar.syntax import (
    Block,
    Draw,
    Expr,
    Factor,
    Kind,
    Name,
    Observe,
    Record,
    Statement,
)

T = TypeVar("T")
Env = tuple[Name, ...]

CONTROL_FLOW = ("cond", "plate", "vmap", "scan", "switch", "jit", "checkpoint", "submodel")
FINITE = ("Bernoulli", "Categorical", "DiscreteUniform", "Binomial")
CONTINUOUS = ("Uniform", "Normal", "Beta", "Gamma")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a program may contain; `latents` bounds the number of latent addresses."""

    continuous: bool
    size: int
    latents: tuple[int, int]
    observations: bool | None
    control_flow: tuple[str, ...]
    distributions: tuple[str, ...]
    max_worlds: int
    depth: int
    positive: bool

    @property
    def smallest(self) -> int:
        """How many worlds a latent site needs at the least; a continuous one does not count."""
        sizes = [laws.SIZES.get(f, 1) for f in self.distributions]
        return min(sizes, default=1)


class Drawing:
    """The state of drawing one program: the source of choices, and what has been drawn so far."""

    def __init__(
        self,
        pick: Callable[[Sequence[Any]], Any],
        options: Options,
        control: Mapping[str, tuple[int, int, Any]],
    ):
        self.options, self.control, self._pick = options, control, pick
        self.left, self.latents, self.copies = options.size, 0, 1
        self.scored = self.real = False
        self.reused: set[str] = set()
        self._counts: dict[str, int] = {}

    def pick(self, choices: Sequence[T]) -> T:
        """Choose one; the first is the simplest."""
        return self._pick(choices) if len(choices) > 1 else choices[0]

    def fresh(self, prefix: str) -> str:
        """Give a name that no other thing of the program has."""
        self._counts[prefix] = self._counts.get(prefix, 0) + 1
        return f"{prefix}{self._counts[prefix]}"

    def owed(self) -> int:
        """Count the statements without which the program would not be what was asked for."""
        latents = max(self.options.latents[0] - self.latents, 0)
        if self.options.continuous and not self.real:
            latents = max(latents, 1)
        return latents + (self.options.observations is True and not self.scored)

    def may_draw(self, most: int) -> bool:
        """Tell whether there is room for one more latent site, of at most so many values."""
        room = self.latents + self.copies <= self.options.latents[1]
        return room and most >= self.options.smallest


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a statement is to stand: what it sees, its budget, how deep it is, what is local."""

    env: Env
    worlds: int
    depth: int
    in_plate: int | None = None
    lane: Name | None = None
    shared: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """How many values a site may have here."""
        return root(self.worlds, self.in_plate or 1)


def root(worlds: int, times: int) -> int:
    """Give the largest whole number whose power is at most `worlds`."""
    found = round(worlds ** (1 / times))
    return found if found**times <= worlds else found - 1


Made = tuple[Statement, Env, int]
Makes = Callable[[Drawing, Place], Made]


def some_statements(
    d: Drawing, place: Place, least: int = 0
) -> tuple[tuple[Statement, ...], Env, int]:
    """Draw statements until there is no budget or, after the first few, no wish for more."""
    out: list[Statement] = []
    env, worlds = place.env, place.worlds
    top = place.depth == d.options.depth  # where what is owed has to find room
    more = (False, *[True] * (7 if top else 3))
    while d.left > d.owed() and (len(out) < least or d.pick(more)):
        free = worlds // d.options.smallest ** d.owed() if top else worlds
        here = dataclasses.replace(place, env=env, worlds=free)
        makes = _possible(d, here)
        if not makes:
            break
        d.left -= 1
        statement, env, used = d.pick(makes)(d, here)
        out.append(statement)
        worlds //= used
    return tuple(out), env, worlds


def _possible(d: Drawing, place: Place) -> list[Makes]:
    """List the makers of statements that fit here, simple ones or those with others inside.

    Each kind has its own places in a list whose length is always the same. So a shrinker that moves
    a statement to elsewhere in a program finds it to be of the same kind there.
    """
    o, ints = d.options, [n for n in place.env if n.kind == "int"]
    recordable = any(n.lane for n in ints) or bool(ints and place.in_plate is None)
    simple: list[tuple[int, bool, Makes]] = [
        (4, d.may_draw(place.most), latent),
        (2, o.observations is not False, observed),
        (1, o.observations is not False, _factor),
        (1, recordable, _record),
    ]
    control: list[tuple[int, bool, Makes]] = []
    if place.depth > 0 and place.in_plate is None and d.left - d.owed() >= 2:
        control = [(d.control[name][1], *_ready(d, place, name)) for name in o.control_flow]
    groups = [slots for slots in map(_slots, (simple, control)) if slots]
    return d.pick(groups) if groups else []


def _slots(kinds: Sequence[tuple[int, bool, Makes]]) -> list[Makes]:
    """Repeat each kind as often as it is wanted; one that does not fit gives way to the first."""
    fitting = [make for _, fits, make in kinds if fits]
    return [make if fits else fitting[0] for n, fits, make in kinds for _ in range(n) if fitting]


def _ready(d: Drawing, place: Place, name: str) -> tuple[bool, Makes]:
    """Tell whether a kind of control flow fits here and is worth while."""
    low, _, make = d.control[name]
    ready = place.worlds >= low
    if name == "cond":
        ready = any(n.kind == "int" or n.length is None for n in place.env)
    if name == "plate":
        ready = d.options.observations is not False or d.may_draw(root(place.worlds, 2))
    if name == "switch":
        ints = [n for n in place.env if n.kind == "int" and n.length is None]
        ready = any(n.size in (2, 3) for n in ints)
    if name == "submodel":
        ready = ready and d.latents + 2 * d.copies <= d.options.latents[1]
    return ready, make


# --- Simple statements --------------------------------------------------------------------------


def latent(d: Drawing, place: Place, *, real: bool = False) -> Made:
    """Draw a latent site, at a new address or at one of an exclusive branch."""
    law = laws.law(d, place, real=real)
    name = d.fresh("r" if law.kind != "int" else "x")
    free = [a for a in place.shared if law.kind == "int" and a not in d.reused]
    address = d.pick((name, *free * 3))
    lane = place.in_plate is not None
    variable = Name(name, law.size, None, lane, law.kind)
    if address == name:
        d.latents += d.copies
    else:
        d.reused.add(address)
    d.real = d.real or law.kind != "int"
    return Draw(variable, law, address), (*place.env, variable), _power(law.size, place.in_plate)


def _power(size: int, exponent: int | None) -> int:
    return max(size, 1) ** (exponent or 1)


def observed(d: Drawing, place: Place) -> Made:
    """Draw an observation."""
    law, value = laws.observation(d, place)
    d.scored = True
    return Observe(d.fresh("y"), law, value), place.env, 1


def _factor(d: Drawing, place: Place) -> Made:
    d.scored = True
    return Factor(d.fresh("f"), laws.log_weight(d, place.env)), place.env, 1


def _record(d: Drawing, place: Place) -> Made:
    value = laws.integer(d, place.env, local=place.in_plate is not None, computed=True)
    name = Name(d.fresh("d"), value.size, None, place.in_plate is not None)
    return Record(name, value), (*place.env, name), 1


# --- Bodies of functions ------------------------------------------------------------------------


def value_for(d: Drawing, local: Env, outer: Env, kind: Kind, most: int = 9) -> Expr:
    """Draw what a function returns, more often than not from what it names itself."""
    named = [n for n in local if n.size <= most and (n.kind == "int") == (kind == "int")]
    env = d.pick((local, local, local, (*local, *outer))) if named else (*local, *outer)
    if kind == "int":
        return laws.integer(d, env, most=most, numbers=False)
    return laws.real(d, env, named=True)


def function_body(
    d: Drawing, place: Place, kind: Kind = "int", least: int = 1
) -> tuple[Block, Env, int]:
    """Draw a function's body; what it names last is what its result is likeliest to use."""
    statements, env, left = some_statements(d, place, least)
    local = env[len(place.env) :]
    result = value_for(d, local, place.env, kind)
    return Block(statements, result), (*local, *place.env), place.worlds // max(left, 1)
