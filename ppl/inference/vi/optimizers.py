"""Optimizers: the default one, and how two that were made alike are known to be the same."""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable
from typing import Any

import optax

from ppl.errors import ArgumentError, message
from ppl.fingerprint import Same

#: The first optimizer of each make.
_known: dict[Hashable, Any] = {}


def default() -> Any:
    """Make Adam with a step size that suits parameters of about unit scale."""
    return optax.adam(1e-2)


def as_optimizer(operation: str, optimizer: Any) -> Any:
    """Give an optimizer, the same for all that were made alike: it is part of compiled code.

    Args:
        operation: for messages.
        optimizer: of optax, or None for the default.

    Raises:
        ArgumentError: it is none.
    """
    if optimizer is None:
        optimizer = default()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ArgumentError(
            message(
                f"{operation} got optimizer={optimizer!r}",
                needs="an optimizer of optax",
                fix=f"{operation}(..., optimizer=optax.adam(1e-2))",
            )
        )
    return _known.setdefault(_make(optimizer), optimizer)


def _make(value: Any) -> Hashable:
    """Describe how an optimizer was made: the text of its functions, and what they closed over.

    What cannot be compared by content counts as itself.
    """
    if isinstance(value, types.FunctionType) and not value.__dict__:
        cells = tuple(_content(c) for c in value.__closure__ or ())
        defaults = _make(value.__defaults__), _make(tuple((value.__kwdefaults__ or {}).items()))
        return types.FunctionType, value.__code__, id(value.__globals__), cells, defaults
    if isinstance(value, functools.partial) and type(value) is functools.partial:
        return functools.partial, _make((value.func, value.args, tuple(value.keywords.items())))
    if isinstance(value, tuple):
        return type(value), tuple(map(_make, value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return type(value), repr(value)
    return Same(value)


def _content(cell: Any) -> Hashable:
    try:
        return _make(cell.cell_contents)
    except ValueError:  # a cell not filled yet
        return Same(cell)
