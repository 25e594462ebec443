"""What a function closes over, as a cache key: so that a redefined global is never stale.

`jax.jit` traces once and keeps the values of globals of that time. In a notebook that is a silent
wrong answer: edit a helper, run the model again, get the old one. A fingerprint names every global
and closure variable the function mentions, through the functions it calls, by identity (and NumPy
arrays by content, since they can change in place).
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np


class _Same:
    """Hash and compare by identity, keeping the object alive so that its id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def fingerprint(fun: Callable[..., Any]) -> Hashable:
    """Summarise the values that `fun` and the functions it mentions would read if called now."""
    found: list[Hashable] = []
    _visit(fun, found, set())
    return tuple(found)


def _visit(value: Any, found: list[Hashable], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, types.MethodType):
        found.append(_Same(value.__self__))
        value = value.__func__
    value = getattr(value, "__wrapped_model__", value)
    if isinstance(value, functools.partial):
        for part in (value.args, tuple(value.keywords.values())):
            _leaf(part, found, seen)
        _visit(value.func, found, seen)
        return
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        _visit(wrapped, found, seen)
    if isinstance(value, types.FunctionType):
        if _is_library(value):
            return
        found.append(_Same(value.__code__))
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            _leaf(default, found, seen)
        for _, held in _mentioned(value):
            _leaf(held, found, seen)


def _leaf(value: Any, found: list[Hashable], seen: set[int]) -> None:
    if isinstance(value, types.ModuleType):
        return
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        digest = "" if data.dtype.hasobject else hashlib.blake2b(data.tobytes()).hexdigest()
        found.append((_Same(value), data.shape, str(data.dtype), digest))
    elif isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        found.append((type(value), repr(value)))
    elif isinstance(value, (list, dict, set)):
        items = [*value.items()] if isinstance(value, dict) else [*value]
        found.append((_Same(value), len(items)))
        if id(value) not in seen:
            seen.add(id(value))
            for item in items[:1000]:
                _leaf(item, found, seen)
    elif isinstance(value, tuple):
        for item in value[:1000]:
            _leaf(item, found, seen)
    else:
        if not isinstance(value, types.FunctionType):
            found.append(_Same(value))
        _visit(value, found, seen)


def _mentioned(fun: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell not filled yet
            continue
    for name in sorted(_names(fun.__code__)):
        if name in fun.__globals__ and not hasattr(builtins, name):
            yield name, fun.__globals__[name]


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names(const)
    return names


def _is_library(fun: types.FunctionType) -> bool:
    """Installed libraries do not change under a running session; user code does."""
    package = (fun.__module__ or "").partition(".")[0]
    path = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in ("ppl", "jax", "numpyro", "numpy") or "site-packages" in path


def find(fun: Callable[..., Any], wanted: Callable[[Any], bool]) -> str | None:
    """Name the variable that `fun` mentions and through which a wanted object can be reached."""
    if not isinstance(fun, types.FunctionType):
        fun = getattr(fun, "func", getattr(fun, "__func__", fun))
    seen: set[int] = set()

    def reach(value: Any, depth: int) -> bool:
        if wanted(value):
            return True
        if depth == 0 or id(value) in seen or isinstance(value, (types.ModuleType, type)):
            return False
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            if _is_library(value):
                return False
            return any(reach(held, depth - 1) for _, held in _mentioned(value))
        if isinstance(value, dict):
            inner = [*value.values()]
        elif isinstance(value, (list, tuple, set)):
            inner = [*value]
        else:
            inner = [*getattr(value, "__dict__", {}).values()]
        return any(reach(item, depth - 1) for item in inner[:10_000])

    if not isinstance(fun, types.FunctionType):
        return None
    return next((name for name, held in _mentioned(fun) if reach(held, 5)), None)
