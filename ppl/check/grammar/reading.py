"""What a drawn program without continuous sites means, read off its grammar in plain Python.

Nothing here touches JAX, so it can judge what does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ppl.check.grammar.syntax import (
    Block,
    Cond,
    Draw,
    Expr,
    Factor,
    Item,
    Law,
    Lookup,
    Name,
    Number,
    Observe,
    Pick,
    Plate,
    Plus,
    Record,
    Same,
    Scaled,
    Scan,
    Statement,
    Submodel,
    Switch,
    Text,
    Total,
    Vmap,
    Wrap,
)

Env = dict[str, Any]


class _Run:
    """One run: the first draws are prescribed, later ones take their first possible value."""

    def __init__(self, prescribed: Sequence[int]):
        self.taken, self.mass = list(prescribed), 1.0
        self.alternatives: list[list[int]] = []
        self._read = 0

    def choose(self, masses: Sequence[float]) -> int:
        """Draw from the values of positive mass."""
        if self._read == len(self.taken):
            first, *others = [v for v, mass in enumerate(masses) if mass > 0]
            self.alternatives += [[*self.taken, v] for v in others]
            self.taken.append(first)
        value = self.taken[self._read]
        self._read += 1
        self.mass *= masses[value]
        return value


def runs(text: Text) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Give the results and the mass of each run of positive prior mass, one after the other."""
    pending: list[list[int]] = [[]]
    while pending:
        run, env = _Run(pending.pop()), {}
        _block(run, text.statements, env)
        pending += run.alternatives
        yield tuple(_value(e, env) for e in text.results), run.mass


def masses(text: Text) -> dict[tuple[Any, ...], float]:
    """Give the unnormalised mass of every result that has any."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for value, mass in runs(text):
        if mass > 0:
            found.setdefault(value, []).append(mass)
    return {value: math.fsum(parts) for value, parts in found.items()}


def possible(text: Text) -> bool:
    """Tell whether some run has positive mass."""
    return any(mass > 0 for _, mass in runs(text))


def _call(run: _Run, block: Block, env: Mapping[str, Any], *more: Expr) -> tuple[Any, ...]:
    inner = dict(env)
    _block(run, block.statements, inner)
    return tuple(_value(e, inner) for e in (block.result, *more))


def _block(run: _Run, statements: Sequence[Statement], env: Env) -> None:
    for s in statements:
        _statement(s, run, env)


@functools.singledispatch
def _statement(s: Any, run: _Run, env: Env) -> None:
    raise AssertionError(f"no meaning for {s!r}")


@_statement.register
def _(s: Draw, run: _Run, env: Env) -> None:
    env[s.name.text] = run.choose(_masses(s.law, env))


@_statement.register
def _(s: Observe, run: _Run, env: Env) -> None:
    value = _value(s.value, env)
    if s.law.family == "Normal":
        mean, sd = (_value(e, env) for e in s.law.parameters)
        run.mass *= math.exp(-0.5 * ((value - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        return
    table = _masses(s.law, env)
    run.mass *= table[value] if value < len(table) else 0.0


@_statement.register
def _(s: Factor, run: _Run, env: Env) -> None:
    run.mass *= math.exp(_value(s.log_weight, env))


@_statement.register
def _(s: Record, run: _Run, env: Env) -> None:
    env[s.name.text] = _value(s.value, env)


@_statement.register
def _(s: Plate, run: _Run, env: Env) -> None:
    members = []
    for i in range(s.count):
        member = {k: v[i] if isinstance(v, tuple) and i < len(v) else v for k, v in env.items()}
        member[s.index.text] = i
        _block(run, s.statements, member)
        members.append(member)
    for name in members[0].keys() - env.keys():
        env[name] = tuple(member[name] for member in members)


@_statement.register
def _(s: Vmap, run: _Run, env: Env) -> None:
    lanes = range(s.count) if s.over is None else env[s.over.text]
    env[s.name.text] = tuple(_call(run, s.body, {**env, s.argument.text: x})[0] for x in lanes)


@_statement.register
def _(s: Scan, run: _Run, env: Env) -> None:
    steps = list(range(s.count) if s.over is None else env[s.over.text])
    carry, outs = _value(s.initial, env), []
    for x in reversed(steps) if s.reverse else steps:
        inner = {**env, s.carry.text: carry, s.argument.text: x}
        carry, out = _call(run, s.body, inner, s.out)
        outs.append(out)
    env[s.carried.text] = carry
    env[s.stacked.text] = tuple(reversed(outs) if s.reverse else outs)


@_statement.register
def _(s: Cond, run: _Run, env: Env) -> None:
    block = s.blocks[0 if _value(s.of, env) == s.against else 1]
    env[s.name.text] = _call(run, block, env)[0]


@_statement.register
def _(s: Switch, run: _Run, env: Env) -> None:
    env[s.name.text] = _call(run, s.blocks[_value(s.of, env)], env)[0]


@_statement.register
def _(s: Wrap, run: _Run, env: Env) -> None:
    env[s.name.text] = _call(run, s.body, env)[0]


@_statement.register
def _(s: Submodel, run: _Run, env: Env) -> None:
    for name, given in zip(s.names, s.inputs, strict=True):
        env[name.text] = _call(run, s.body, {s.argument.text: _value(given, env)})[0]


def _masses(law: Law, env: Env) -> Sequence[float]:
    match law.family:
        case "Bernoulli":
            p = _value(law.parameters[0], env)
            return 1 - p, p
        case "Categorical":
            return _value(law.parameters[0], env)
        case "DiscreteUniform":
            high = _value(law.parameters[1], env)
            return [1 / (high + 1)] * (high + 1)
        case "Binomial":
            n, p = (_value(e, env) for e in law.parameters)
            return [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    raise AssertionError(f"{law.family} is not finite")


def _value(e: Expr, env: Env) -> Any:
    match e:
        case Name(text):
            return env[text]
        case Number(value):
            return value
        case Plus(left, right):
            return _value(left, env) + _value(right, env)
        case Same(left, right):
            return int(_value(left, env) == _value(right, env))
        case Total(of):
            return sum(env[of.text])
        case Item(of, index):
            return env[of.text][index]
        case Lookup(rows, index):
            return rows[0 if index is None else _value(index, env)]
        case Pick(of, equals, yes, no):
            return yes if _value(of, env) == equals else no
        case Scaled(by, of):
            return by * _value(of, env)
    raise AssertionError(f"{e!r} is not finite")
