"""Names of variables, of their axes and of their elements; optional packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ppl.errors import ArgumentError, ResultError, message, suggest

Dims = Mapping[str, Sequence[str]]
Coords = Mapping[str, Sequence[Any]]


def require(module: str, operation: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    Raises:
        ResultError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResultError(
            message(
                f"{operation} found no package {module}",
                needs="it installed",
                why=f"The import failed: {error}",
                fix=f"pip install {module.partition('.')[0]}",
            )
        ) from error


def check_choice(operation: str, what: str, got: str, choices: Iterable[str]) -> None:
    """Refuse a setting that is not one of the choices, naming the closest.

    Raises:
        ArgumentError: it is not one of them.
    """
    choices = list(choices)
    if got not in choices:
        raise ArgumentError(
            message(
                f"{operation} got unknown {what} {got!r}",
                needs=f"one of {', '.join(map(repr, choices))}" if choices else "none of that",
                why=suggest(got, choices),
            )
        )


def unknown_variable(operation: str, got: object, known: Iterable[str]) -> ResultError:
    """Build the error for a name that is no variable, element or row."""
    return ResultError(
        message(
            f"{operation} got unknown name {got!r}",
            needs="the name of a variable or of one element",
            why=suggest(str(got), dict.fromkeys(known)),
        )
    )


def dimension_names(
    name: str, shape: tuple[int, ...], dims: Dims | None, *, trim: bool = False
) -> list[str]:
    """Name every axis of a variable; axes without a name get `<name>_dim_<k>`.

    Args:
        name: the variable.
        shape: its event shape.
        dims: names of leading axes, by variable.
        trim: ignore names beyond the last axis instead of refusing them.

    Raises:
        ResultError: more names than axes, or one name for two axes.
    """
    named = list(dims.get(name, ())) if dims else []
    if trim:
        named = named[: len(shape)]
    if len(named) > len(shape):
        raise ResultError(
            message(
                f"dims got {tuple(named)} for {name!r} of event shape {shape}",
                needs="at most one name for each axis",
                fix=f"dims={{{name!r}: {tuple(named[: len(shape)])}}}",
            )
        )
    if len(set(named)) < len(named):
        raise ResultError(
            message(
                f"dims got {tuple(named)} for {name!r}",
                needs="different names for different axes",
                fix="rename the repeated dimension",
            )
        )
    return named + [f"{name}_dim_{k}" for k in range(len(named), len(shape))]


def check_coords(name: str, names: Sequence[str], shape: tuple[int, ...], coords: Coords) -> None:
    """Refuse coordinate values whose number differs from the length of their axis.

    Raises:
        ResultError: too few or too many values.
    """
    for dim, size in zip(names, shape, strict=True):
        if dim in coords and len(coords[dim]) != size:
            raise ResultError(
                message(
                    f"coords got {len(coords[dim])} values for {dim!r}",
                    needs=f"{size} of them, one for each index of that axis of {name!r}",
                    fix=f"coords={{{dim!r}: range({size})}}",
                )
            )


def element_labels(
    name: str, shape: tuple[int, ...], dims: Dims | None = None, coords: Coords | None = None
) -> list[str]:
    """Label the elements of a variable in C order: `mu`, `theta[0]`, `Sigma[1,2]`.

    An axis whose dimension has coordinate values shows these: `theta[Choate]`.

    Raises:
        ResultError: coordinate values that do not fit the axis or that repeat.
    """
    names = dimension_names(name, shape, dims)
    if not shape:
        return [name]
    coords = coords or {}
    check_coords(name, names, shape, coords)
    axes = [
        [str(value) for value in coords.get(dim, range(size))]
        for dim, size in zip(names, shape, strict=True)
    ]
    for dim, axis in zip(names, axes, strict=True):
        if len(set(axis)) < len(axis):
            raise ResultError(
                message(
                    f"coords got repeated values for {dim!r}",
                    needs="a different value for each index",
                    why=f"Elements of {name!r} could not be told apart",
                    fix=f"coords={{{dim!r}: range({len(axis)})}}",
                )
            )
    return [
        f"{name}[{','.join(axis[i] for axis, i in zip(axes, index, strict=True))}]"
        for index in np.ndindex(*shape)
    ]
