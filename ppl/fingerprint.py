"""What a function closes over, as a cache key: so that a redefined global is never stale.

`jax.jit` traces once and keeps the values of globals of that time. In a notebook that is a silent
wrong answer: edit a helper, run the model again, get the old one. A fingerprint follows every
variable the function mentions, through the user's functions, classes, modules and objects, down to
arrays (NumPy's by content, since they can change in place) and numbers. Objects of installed
libraries count by identity.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

_SCALARS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


class _Equal:
    """Hash and compare a value object by its own equality, types included."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Equal)
            and type(other.value) is type(self.value)
            and bool(other.value == self.value)
        )


def _token(value: Any) -> Hashable:
    """Stand for a value: by its own equality if it defines one, else by identity."""
    if type(value).__eq__ is not object.__eq__ and isinstance(value, Hashable):
        try:
            hash(value)
        except TypeError:  # a container of unhashable values
            return Same(value)
        return _Equal(value)
    return Same(value)


class Same:
    """Hash and compare by identity, keeping the object alive so that its id stays its own."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


def fingerprint(
    fun: Callable[..., Any], statics: Sequence[Any] = ()
) -> tuple[Hashable, Hashable, str | None]:
    """Summarise all that `fun`, called with these static arguments, would read if called now.

    Returns:
        The fingerprint; what of it differs from the first time a function of it was seen (the part
        that JAX's own caches, of scan bodies and jitted helpers, would take for unchanged); and
        the name of a NumPy array that was changed in place since it was first seen, or None.
    """
    walk = _Walk()
    walk.visit(fun, ())
    for value in statics:
        walk.visit(value, ())
    return tuple(walk.found), walk.changed(), walk.mutated


def find(fun: Callable[..., Any], statics: Sequence[Any], wanted: Callable[[Any], bool]) -> Any:
    """Name the variable through which `fun` can reach a wanted object, or give None."""
    walk = _Walk(wanted)
    walk.visit(fun, ())
    for value in statics:
        walk.visit(value, ("an argument",))
    return walk.hit


class _Walk:
    """A walk over what a function can reach, in a fixed order."""

    # What each function read when it was first seen in this process.
    _first: ClassVar[weakref.WeakKeyDictionary[Any, Hashable]] = weakref.WeakKeyDictionary()

    # What each NumPy array held when it was first seen.
    _digests: ClassVar[dict[int, tuple[Any, bytes]]] = {}

    def __init__(self, wanted: Callable[[Any], bool] | None = None):
        self.found: list[Hashable] = []
        self.hit: str | None = None
        self.mutated: str | None = None
        self._wanted = wanted
        self._seen: set[int] = set()
        self._keep: list[Any] = []
        self._read: dict[types.FunctionType, tuple[int, int]] = {}

    def changed(self) -> Hashable:
        """Give what functions read now, for those that read something else at first."""
        out = []
        for fun, (start, stop) in self._read.items():
            now = tuple(self.found[start:stop])
            if self._first.setdefault(fun, now) != now:
                out.append(now)
        return tuple(out)

    def visit(self, value: Any, path: tuple[str, ...]) -> None:
        """Add a value and what it leads to."""
        if self._wanted is not None and self._wanted(value):
            self.hit = self.hit or ".".join(path)
            return
        if isinstance(value, _SCALARS):
            self.found.append((type(value), repr(value)))
            return
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes()).digest()
            ref, old = self._digests.get(id(value), (lambda: None, digest))
            if ref() is not value:
                self._digests[id(value)] = (weakref.ref(value), digest)
            elif old != digest:
                self.mutated = ".".join(path) or "a closure variable"
            self.found.append((value.shape, str(value.dtype), digest))
            return
        self.found.append(_token(value))
        if id(value) in self._seen or isinstance(value, jax.Array):
            return
        self._seen.add(id(value))
        self._keep.append(value)
        for name, inner in self._inside(value):
            self.visit(inner, (*path, name) if name else path)

    def _inside(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from (("self", value.__self__), ("", value.__func__))
        elif isinstance(value, types.BuiltinMethodType):
            if not isinstance(value.__self__, types.ModuleType):
                yield "", value.__self__
        elif isinstance(value, functools.partial):
            yield from (("", value.func), ("", value.args), ("", value.keywords))
        elif isinstance(value, Mapping):
            yield from ((str(k), v) for k, v in list(value.items()))
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from (("", v) for v in list(value))
        elif isinstance(value, (types.ModuleType, type)):
            return  # only the names that a function mentions matter: see `_function`
        else:
            yield from self._object(value)

    def _object(self, value: Any) -> Iterator[tuple[str, Any]]:
        wrapped = getattr(value, "__wrapped_model__", None) or getattr(value, "__wrapped__", None)
        if wrapped is not None:
            yield "", wrapped
        if _is_library(type(value).__module__):
            return
        yield from vars(value).items() if hasattr(value, "__dict__") else ()
        call = _lookup(type(value), "__call__")
        if isinstance(call, types.FunctionType):
            yield "", call

    def _function(self, fun: types.FunctionType) -> Iterator[tuple[str, Any]]:
        if hasattr(fun, "__wrapped__"):
            yield "", vars(fun)["__wrapped__"]
        if _is_library(fun.__module__):
            return
        start = len(self.found)
        yield "", fun.__defaults__
        yield "", fun.__kwdefaults__
        for name, cell in zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a cell not filled yet
                continue
        names = sorted(_names(fun.__code__))
        holders = [fun.__globals__[n] for n in names if n in fun.__globals__]
        yield from ((n, fun.__globals__[n]) for n in names if n in fun.__globals__)
        # `module.name`, `Class.name` and `instance.method()`: names looked up on what was found.
        for holder in holders:
            owner = holder if isinstance(holder, (types.ModuleType, type)) else type(holder)
            module = owner.__name__ if isinstance(owner, types.ModuleType) else owner.__module__
            if not _is_library(module):
                for n in names:
                    attribute = _lookup(owner, n)
                    if attribute is not None:
                        yield n, attribute
        self._read[fun] = (start, len(self.found))


def _lookup(owner: Any, name: str) -> Any:
    """Find an attribute without running descriptors; classes are searched with their bases."""
    for place in owner.__mro__ if isinstance(owner, type) else (owner,):
        value = vars(place).get(name)
        if value is not None:
            return getattr(value, "__func__", value)
    return None


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names(const)
    return names


@functools.lru_cache(maxsize=4096)
def _is_library(module: str | None) -> bool:
    """Installed libraries do not change under a running session; user code does."""
    package = (module or "").partition(".")[0]
    if package in ("ppl", "jax", "jaxlib", "numpyro", "numpy", "builtins"):
        return True
    path = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in sys.stdlib_module_names or "site-packages" in path
