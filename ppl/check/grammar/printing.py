"""A drawn program as the source of a complete Python module."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from ppl.check.grammar.syntax import (
    Apply,
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
    walk,
)

_HEADER = """\
import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
"""
_INDENT = "    "


def source_of(text: Text) -> str:
    """Print a module that defines `model` and `program`."""
    parts = [_HEADER]
    parts += [_submodel(s) for s in walk(text.statements) if isinstance(s, Submodel)]
    body = [*_lines(text.statements), f"return {_results(text)}"]
    parts += [_definition("model", "", body), "program = model()\n"]
    return "\n\n".join(parts)


def _results(text: Text) -> str:
    shown = [_expr(e) for e in text.results]
    if text.form == "one":
        return shown[0]
    if text.form == "dict":
        return "{" + ", ".join(f'"{k}": {e}' for k, e in zip("abc", shown, strict=False)) + "}"
    return ", ".join(shown) + ("," if len(shown) == 1 else "")


def _submodel(s: Submodel) -> str:
    return _definition(s.function, s.argument.text, _body(s.body))


def _definition(name: str, arguments: str, body: list[str]) -> str:
    return "\n".join(["@ppl.model", *_function(name, arguments, body)]) + "\n"


def _function(name: str, arguments: str, body: list[str]) -> list[str]:
    return [f"def {name}({arguments}):", *[_INDENT + line for line in body]]


def _body(block: Block, *more: Expr) -> list[str]:
    returned = ", ".join(_expr(e) for e in (block.result, *more))
    return [*_lines(block.statements), f"return {returned}"]


def _lines(statements: tuple[Statement, ...]) -> list[str]:
    return list(itertools.chain.from_iterable(map(_statement, statements)))


def _statement(s: Statement) -> Iterator[str]:
    match s:
        case Draw(name, law, address):
            yield f'{name.text} = ppl.sample("{address}", {_law(law)})'
        case Observe(address, law, value):
            yield f'ppl.sample("{address}", {_law(law)}, obs={_expr(value)})'
        case Factor(address, log_weight):
            yield f'ppl.factor("{address}", {_expr(log_weight)})'
        case Record(name, value):
            yield f'{name.text} = ppl.deterministic("{name.text}", {_expr(value)})'
        case Plate(address, index, count, statements):
            body = _lines(statements)
            used = any(re.search(rf"\b{index.text}\b", line) for line in body)
            yield f'with ppl.plate("{address}", {count}){f" as {index.text}" if used else ""}:'
            yield from (_INDENT + line for line in body)
        case Vmap(name, function, argument, over, count, body):
            yield from _function(function, argument.text, _body(body))
            yield f"{name.text} = jax.vmap({function})({_over(over, count)})"
        case Scan():
            arguments = f"{s.carry.text}, {s.argument.text}"
            yield from _function(s.function, arguments, _body(s.body, s.out))
            inputs = f"{s.function}, {_expr(s.initial)}, {_over(s.over, s.count)}"
            reverse = ", reverse=True" if s.reverse else ""
            yield f"{s.carried.text}, {s.stacked.text} = jax.lax.scan({inputs}{reverse})"
        case Cond(name, functions, of, against, blocks):
            for function, block in zip(functions, blocks, strict=True):
                yield from _function(function, "", _body(block))
            test = f"{_expr(of)} {'==' if of.size else '>'} {against}"
            yield f"{name.text} = jax.lax.cond({test}, {', '.join(functions)})"
        case Switch(name, functions, of, blocks):
            for function, block in zip(functions, blocks, strict=True):
                yield from _function(function, "", _body(block))
            yield f"{name.text} = jax.lax.switch({_expr(of)}, [{', '.join(functions)}])"
        case Wrap(name, function, wrapper, body):
            yield from _function(function, "", _body(body))
            yield f"{name.text} = {wrapper}({function})()"
        case Submodel(names, scopes, function, _, inputs, _):
            for name, scope, value in zip(names, scopes, inputs, strict=True):
                yield f'with ppl.scope("{scope}"):'
                yield f"{_INDENT}{name.text} = {function}({_expr(value)})"


def _over(over: Name | None, count: int) -> str:
    return over.text if over is not None else f"jnp.arange({count})"


def _law(law: Law) -> str:
    parameters = ", ".join(_expr(e) for e in law.parameters)
    return f"dist.{law.family}({parameters})"


def _expr(e: Expr) -> str:
    match e:
        case Name(text):
            return text
        case Number(value):
            return _number(value)
        case Plus(left, right):
            return f"{_expr(left)} + {_expr(right)}"
        case Same(left, right):
            return f"jnp.where({_expr(left)} == {_expr(right)}, 1, 0)"
        case Total(of):
            return f"jnp.sum({of.text})"
        case Item(of, index):
            return f"{of.text}[{index}]"
        case Lookup(rows, None):
            return _row(rows[0])
        case Lookup(rows, index) if index is not None:
            return f"jnp.array([{', '.join(map(_bare, rows))}])[{_expr(index)}]"
        case Pick(of, equals, yes, no):
            return f"jnp.where({_expr(of)} == {equals}, {_number(yes)}, {_number(no)})"
        case Scaled(by, of):
            inner = f"({_expr(of)})" if isinstance(of, Plus) else _expr(of)
            return f"{_number(by)} * {inner}"
        case Apply(template, of):
            return template % of.text
    raise AssertionError(f"no text for {e!r}")


def _row(row: Any) -> str:
    return f"jnp.array({_bare(row)})" if isinstance(row, tuple) else _number(row)


def _bare(row: Any) -> str:
    return f"[{', '.join(map(_number, row))}]" if isinstance(row, tuple) else _number(row)


def _number(x: float) -> str:
    return repr(x) if math.isfinite(x) else "-jnp.inf"
