"""Rows of data as a user passes them: by the names of the model's arguments, and checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl.errors import ArgumentError, message, suggest
from ppl.program import Program


class Feed:
    """What a row of a program's data looks like. `sources` are the inputs that are scanned."""

    def __init__(self, program: Program, sources: Sequence[int], avals: Sequence[Any], offset: int):
        self.sources = list(sources)
        self.like = {
            s: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
            for s, a in zip(sources, avals, strict=True)
        }
        self.parameters = list(_fed(program, self.like, offset))
        self.names = list(dict.fromkeys(p.name for p in self.parameters))

    @property
    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The shape of one row of each array."""
        return [self.like[s] for s in self.sources]

    def arrays(
        self, operation: str, row: tuple[Any, ...], rows: Mapping[str, Any], many: bool
    ) -> list[np.ndarray]:
        """Give the arrays of a call, with an axis of rows in front."""
        given, fix = dict(rows), self._call(operation)
        if row and not rows and len(row) == len(self.names) == 1:
            given = {self.names[0]: row[0]}
        elif row:
            raise ArgumentError(
                message(
                    f"{operation} got {len(row)} rows without a name",
                    needs=f"the arguments {', '.join(self.names)}",
                    fix=fix,
                )
            )
        unknown = [n for n in given if n not in self.names]
        for name in [*unknown, *(n for n in self.names if n not in given)]:
            raise ArgumentError(
                message(
                    f"{operation} got {'the unknown' if unknown else 'no'} argument {name!r}",
                    needs="every argument that the model scans, and no other",
                    why=suggest(name, self.names),
                    fix=fix,
                )
            )
        found: dict[int, np.ndarray] = {}
        for name, tree, indices in self.parameters:
            leaves, got = jax.tree.flatten(given[name])
            if got != tree:
                self._refuse(operation, name, f"the structure {got}", f"{tree}, as the model has")
            for leaf, i in zip(leaves, indices, strict=True):
                assert i is not None
                found[i] = self._converted(operation, name, leaf, self.like[i], many)
        lengths = sorted({x.shape[0] for x in found.values()})
        if len(lengths) > 1:
            self._refuse(operation, self.names[0], f"{lengths} rows", "as many of each argument")
        return [found[s] for s in self.sources]

    def _converted(self, operation: str, name: str, leaf: Any, like: Any, many: bool) -> Any:
        """Make an array of a row; Python's numbers take the model's dtype, as in JAX."""
        x = np.asarray(leaf)
        kinds = {bool: "b", int: "iuf", float: "f"}
        weak = like.dtype.kind in kinds.get(type(leaf), "")
        dtype = like.dtype if weak else jax.dtypes.canonicalize_dtype(x.dtype)
        ranks = len(like.shape) + many
        if x.ndim != ranks or x.shape[int(many) :] != like.shape or dtype != like.dtype:
            sizes = ", ".join([*(["rows"] if many else []), *map(str, like.shape)])
            wanted = f"({sizes}{',' if ranks == 1 else ''})"
            self._refuse(
                operation, name, f"{dtype} of shape {x.shape}", f"{like.dtype} of shape {wanted}"
            )
        x = x.astype(dtype)
        return x if many else x[None]

    def _call(self, operation: str) -> str:
        return f"stream.{operation}({', '.join(f'{n}=...' for n in self.names)})"

    def _refuse(self, operation: str, name: str, got: str, needs: str) -> None:
        raise ArgumentError(
            message(
                f"{operation} got {got} for {name!r}",
                needs=needs,
                why="rows must be like those of the model's own data",
                fix=f"{self._call('feed')} for one row, {self._call('feed_many')} for an axis of "
                "them in front",
            )
        )


def _fed(program: Program, like: Mapping[int, Any], offset: int) -> Iterator[Parameter]:
    """Go through the arguments that are scanned; all arrays of each must be."""
    for name, tree, leaves in parameters(program):
        indices = tuple(None if i is None else i + offset for i in leaves)
        if all(i not in like for i in indices):
            continue
        if not all(i in like for i in indices):
            raise ArgumentError(
                message(
                    f"stream got {program.name}, whose scan goes through a part of the argument "
                    f"{name!r}",
                    needs="arguments that are scanned as a whole, or not at all",
                    why="a row has the structure of the argument",
                    fix="pass what is scanned as an argument of its own",
                )
            )
        yield Parameter(name, tree, indices)


class Parameter(NamedTuple):
    """An argument of the model: its tree, and the index among the program's arrays of each leaf."""

    name: str
    tree: Any
    leaves: tuple[int | None, ...]


class _Mark:
    """Stands for an array when arguments are put together."""

    def __init__(self, index: int):
        self.index = index


def parameters(program: Program, positions: Sequence[int] | None = None) -> Iterator[Parameter]:
    """Go through the arguments of a model, and of the programs among them.

    Args:
        program: any program.
        positions: the indices of its constants and arguments; None counts them.
    """
    s, count = program.structure, len(program.consts)
    if positions is None:
        positions = range(count + len(program.args))
    args, kwargs = s.arguments([_Mark(i) for i in positions[count:]])
    assert s.fun is not None
    bound = inspect.signature(s.fun).bind(*args, **kwargs)
    for name, value in bound.arguments.items():
        kind, named = bound.signature.parameters[name].kind, [(name, value)]
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named = [(f"{name}{i}", x) for i, x in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named = list(value.items())
        for key, held in named:
            if isinstance(held, Program):
                marks = [*held.consts, *held.args]
                yield from parameters(held, [m.index for m in marks])
                continue
            leaves, tree = jax.tree.flatten(held)
            indices = tuple(x.index if isinstance(x, _Mark) else None for x in leaves)
            yield Parameter(key, tree, indices)
