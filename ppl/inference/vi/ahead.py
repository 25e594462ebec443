"""Split a computation into what depends on random numbers alone, and the rest.

The first part of many steps is made at once, as one computation over arrays: random numbers cost a
loop of small operations more than all else.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ppl import _jax
from ppl.program import Program, Structure

#: The most numbers that are made ahead for one step; more of them are left to the step.
MOST = 2**14
#: The most numbers of a constant that random numbers are made with: others are data.
SMALL = 256


class _Equation(NamedTuple):
    """An equation whose inputs are names, or literals, and whose outputs are names."""

    eqn: Any
    ins: list[Any]
    outs: list[int]


class Split:
    """The two parts of a program without sites, whose first input is random words.

    `early(words, program)` gives the values that depend on the words alone and that the rest reads,
    and `late(values, program)` the program's flat outputs.
    """

    def __init__(self, structure: Structure):
        jaxpr = structure.jaxpr
        consts, (words, *inputs) = jaxpr.constvars, jaxpr.invars
        inputs = [*consts, *inputs]
        self._names = itertools.count()
        self.words, self.inputs = self._name(), [self._name() for _ in inputs]
        self._sizes = {self.words: math.prod(words.aval.shape)}  # of what is known early
        # What is known to both parts.
        small = [math.prod(v.aval.shape) <= SMALL for v in consts]
        self._free = {n for n, free in zip(self.inputs, small, strict=False) if free}
        self._first: list[_Equation] = []
        self._second: list[_Equation] = []
        names = [self.words, *self.inputs]
        self.outs = self._walk(jaxpr, dict(zip([words, *inputs], names, strict=True)))
        self._second = _needed(self._second, self.outs)
        read = {n for e in self._second for n in e.ins} | set(self.outs)
        self.kept = [n for n in self._sizes if n in read]
        self._first = _needed(self._first, self.kept)
        if sum(self._sizes[n] for n in self.kept) > MOST:
            self._second = _needed([*self._first, *self._second], self.outs)
            self._first, self.kept = [], [self.words]

    def _name(self) -> int:
        return next(self._names)

    def _walk(self, jaxpr: Any, env: dict[Any, Any]) -> list[Any]:
        """Sort the equations into early and late ones; a jitted part that is both is opened."""

        def read(atom: Any) -> Any:
            return _Literal(atom.val) if isinstance(atom, _jax.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            named = [n for n in ins if not isinstance(n, _Literal)]
            some = any(n in self._sizes for n in named)
            known = all(n in self._sizes or n in self._free for n in named)
            if some and not known and eqn.primitive.name in ("jit", "pjit"):
                inner, consts = _jax.open_jaxpr(eqn.params["jaxpr"])
                given = dict(zip(inner.constvars, map(_Literal, consts), strict=True))
                given |= dict(zip(inner.invars, ins, strict=True))
                env.update(zip(eqn.outvars, self._walk(inner, given), strict=True))
                continue
            outs = [self._name() for _ in eqn.outvars]
            env.update(zip(eqn.outvars, outs, strict=True))
            made = _Equation(eqn, ins, outs)
            if known and not eqn.effects and not (some and _spreads(eqn)):
                self._first.append(made)
                if some:
                    sizes = (math.prod(v.aval.shape) for v in eqn.outvars)
                    self._sizes.update(zip(outs, sizes, strict=True))
                    continue
                self._free.update(outs)  # of constants: whoever needs it makes it
            self._second.append(made)
        return [read(v) for v in jaxpr.outvars]

    def early(self, words: Any, program: Program) -> list[Any]:
        """Give what the rest reads.

        Args:
            words: the random words, as the program takes them.
            program: the program, of which only constants are read.
        """
        env = {self.words: words, **dict(zip(self.inputs, program.consts, strict=False))}
        env = _run(self._first, env)
        return [env[n] for n in self.kept]

    def late(self, values: Sequence[Any], program: Program) -> list[Any]:
        """Give the program's flat outputs.

        Args:
            values: those that `early` gave.
            program: the program, whose own words are not read.
        """
        env = dict(zip(self.kept, values, strict=True))
        env |= dict(zip(self.inputs, [*program.consts, *program.args[1:]], strict=True))
        env = _run(self._second, env)
        return [_read(env, n) for n in self.outs]


class _Literal:
    """A value in the text of a computation."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


def _read(env: Mapping[int, Any], name: Any) -> Any:
    return name.value if isinstance(name, _Literal) else env[name]


def _run(equations: Sequence[_Equation], env: dict[int, Any]) -> dict[int, Any]:
    for e in equations:
        values = _jax.bind_equation(e.eqn, [_read(env, n) for n in e.ins])
        env.update(zip(e.outs, values, strict=True))
    return env


def _needed(equations: list[_Equation], names: Sequence[Any]) -> list[_Equation]:
    """Leave out what nobody reads."""
    read, kept = set(names), []
    for e in reversed(equations):
        if e.eqn.effects or not read.isdisjoint(e.outs):
            read.update(e.ins)
            kept.append(e)
    return kept[::-1]


def _spreads(eqn: Any) -> bool:
    """Tell whether an equation only repeats its input: it costs the rest less to do so itself."""
    sizes = [math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
    return eqn.primitive.name == "broadcast_in_dim" and sizes[-1] > sizes[0]


_known: weakref.WeakKeyDictionary[Structure, Split] = weakref.WeakKeyDictionary()


def split(program: Program) -> Split:
    """Split a program without sites, whose first input is random words.

    Args:
        program: such as `stage` makes of a function of JAX.
    """
    found = _known.get(program.structure)
    if found is None:
        found = _known[program.structure] = Split(program.structure)
    return found
