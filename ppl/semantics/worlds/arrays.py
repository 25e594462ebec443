"""JAX's operations in NumPy, over many worlds at once.

Exact enumeration runs each effect-free equation once for all worlds, on arrays that hardly ever are
large. Compiling them would take a hundred times longer than running them, so the usual operations
have a rule here and the rest go to JAX, one compiled call for each operation and number of worlds.

Every array has an axis of worlds in front, of the number of worlds or of size one if all share it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ppl import _jax
from ppl.semantics.worlds.rules import RULES


class Code:
    """Equations without effects as a list of NumPy calls, for all worlds.

    Operations that only wrap others are inlined, what follows from constants is computed once, what
    is computed twice or for nobody is left out. Called with arrays for the variables `ins` it gives
    those of `outs`.
    """

    def __init__(
        self,
        eqns: Sequence[Any],
        ins: Sequence[Any],
        outs: Sequence[Any],
        known: Mapping[Any, Any] | None = None,
    ):
        self._template: list[Any] = []
        self._calls: list[_Call] = []
        self._seen: dict[Hashable, list[int]] = {}
        slots = {v: self._slot() for v in ins}
        self._ins = len(slots)
        slots.update((v, self._constant(lifted(c))) for v, c in (known or {}).items())
        self._emit(eqns, slots)
        self._outs = [self._place(v, slots) for v in outs]
        self._free = self._prune()

    def _slot(self, value: Any = None) -> int:
        self._template.append(value)
        return len(self._template) - 1

    def _constant(self, value: Any) -> int:
        if not isinstance(value, np.ndarray) or value.nbytes > _SMALL:
            return self._slot(value)
        key = (value.dtype, value.shape, value.tobytes())
        if key not in self._seen:
            self._seen[key] = [self._slot(value)]
        return self._seen[key][0]

    def _place(self, atom: Any, slots: dict[Any, int]) -> int:
        return self._constant(lifted(atom.val)) if isinstance(atom, _jax.Literal) else slots[atom]

    def _emit(self, eqns: Sequence[Any], slots: dict[Any, int]) -> None:
        for eqn in eqns:
            args = [self._place(v, slots) for v in eqn.invars]
            inner = inlined(eqn)
            if inner is None:
                outs = self._outputs(eqn, args)
            else:
                jaxpr, consts = _jax.open_jaxpr(inner)
                below = dict(zip(jaxpr.invars, args, strict=True))
                held = zip(jaxpr.constvars, consts, strict=True)
                below.update((v, self._constant(lifted(c))) for v, c in held)
                self._emit(jaxpr.eqns, below)
                outs = [self._place(v, below) for v in jaxpr.outvars]
            slots.update(zip(eqn.outvars, outs, strict=True))

    def _outputs(self, eqn: Any, args: list[int]) -> list[int]:
        """Give the slots of an equation's results, which may be there already."""
        key = _key(eqn, args)
        if key is not None and key in self._seen:
            return self._seen[key]
        native, fun = _call(eqn)
        values = [self._template[k] for k in args]
        small = sum(math.prod(v.aval.shape) for v in eqn.outvars) <= _SMALL
        if native and small and not any(x is None for x in values):
            with np.errstate(all="ignore"):
                outs = [self._constant(x) for x in fun(values, 1)]
        else:
            outs = [self._slot() for _ in eqn.outvars]
            self._calls.append((fun, args, outs))
        if key is not None:
            self._seen[key] = outs
        return outs

    def _prune(self) -> list[list[int]]:
        """Drop calls that nobody needs; list, for each call, what no later one needs."""
        constant = {k for k, x in enumerate(self._template) if x is not None}
        needed = set(self._outs)
        calls, free = [], []
        for fun, args, outs in reversed(self._calls):
            if not needed & set(outs):
                continue
            last = {k for k in (*args, *outs) if k not in needed and k not in constant}
            calls.append((fun, args, outs))
            free.append(sorted(last))
            needed.update(args, outs)
        self._calls = calls[::-1]
        return free[::-1]

    def __call__(self, arrays: Sequence[np.ndarray], worlds: int) -> list[np.ndarray]:
        """Run for all worlds; outputs have an axis of worlds, or of size one."""
        env = self._template.copy()
        env[: self._ins] = arrays
        for (fun, args, outs), free in zip(self._calls, self._free, strict=True):
            results = fun([env[k] for k in args], worlds)
            for k, x in zip(outs, results, strict=True):
                env[k] = x
            for k in free:
                env[k] = None
        return [env[k] for k in self._outs]


_Call = tuple[Callable[[list[Any], int], list[Any]], list[int], list[int]]

#: Constants up to so many bytes, or numbers, are compared and computed ahead.
_SMALL = 4096

_codes: weakref.WeakKeyDictionary[Any, Code] = weakref.WeakKeyDictionary()


def evaluate_jaxpr(
    jaxpr: Any, consts: Sequence[Any], arrays: Sequence[np.ndarray], worlds: int
) -> list[np.ndarray]:
    """Run a whole jaxpr without effects; it always comes with the same constants."""
    if jaxpr not in _codes:
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        _codes[jaxpr] = Code(jaxpr.eqns, jaxpr.invars, jaxpr.outvars, known)
    return _codes[jaxpr](arrays, worlds)


def _key(eqn: Any, args: list[int]) -> Hashable:
    """Tell equations that compute the same apart from others; None where that is not known."""
    key = (eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda p: p[0])), tuple(args))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _call(eqn: Any) -> tuple[bool, Callable[[list[Any], int], list[Any]]]:
    """Give an equation as a function of arrays and the number of worlds; tell if it has a rule."""
    rule, params = RULES.get(eqn.primitive.name), eqn.params
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    if rule is None or not eqn.outvars or not all(map(_native, avals)):
        return False, lambda arrays, worlds: _by_jax(eqn, arrays, worlds)
    out = eqn.outvars[0].aval
    dtypes = [v.aval.dtype for v in eqn.outvars]

    def run(arrays: list[Any], worlds: int) -> list[Any]:
        result = rule(params, out, *arrays)
        if result is NotImplemented:
            return _by_jax(eqn, arrays, worlds)
        results = result if isinstance(result, list) else [result]
        return [x if x.dtype == d else x.astype(d) for x, d in zip(results, dtypes, strict=True)]

    return True, run


def lifted(x: Any) -> np.ndarray:
    """Give a value that all worlds share its axis of worlds."""
    if isinstance(x, jax.Array) and not _native(x):
        return x[None]  # pyright: ignore[reportReturnType]
    return np.asarray(x)[None]


def _native(x: Any) -> bool:
    return isinstance(x.dtype, np.dtype) and x.dtype.kind in "biuf" and x.dtype.isbuiltin == 1


_WRAPPERS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
        *("custom_jvp_call", "custom_vjp_call"),
    }
)


def inlined(eqn: Any) -> Any:
    """Give the jaxpr of an operation that only wraps it; None for others."""
    if eqn.primitive.name in _WRAPPERS:
        return eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None


# --- What has no rule ---------------------------------------------------------------------------


def padded(count: int) -> int:
    """Round a number of worlds up, so that few sizes are ever compiled."""
    return 1 if count <= 1 else 1 << max(3, 2 * -(-(count - 1).bit_length() // 2))


def _by_jax(eqn: Any, arrays: Sequence[Any], worlds: int) -> list[np.ndarray]:
    flags = tuple(x.shape[0] > 1 for x in arrays)
    if not any(flags):
        outs = _compiled(_Whole(eqn), flags)(*[x[0] for x in arrays])
        return [_back(x)[None] for x in outs]
    size = padded(worlds)
    rows = np.minimum(np.arange(size), worlds - 1)
    grown = [x[rows] if flag else x[0] for x, flag in zip(arrays, flags, strict=True)]
    return [_back(x)[:worlds] for x in _compiled(_Whole(eqn), flags)(*grown)]


def _back(x: Any) -> Any:
    return np.asarray(x) if _native(x) else x


class _Whole:
    """An equation as a key: equal to those of the same operation with the same parameters."""

    __slots__ = ("eqn", "key")

    def __init__(self, eqn: Any):
        self.eqn = eqn
        self.key: Any = (eqn.primitive, eqn.ctx, *sorted(eqn.params.items()))
        try:
            hash(self.key)
        except TypeError:  # then the same object only
            self.key = id(eqn)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Whole) and other.key == self.key


@functools.lru_cache(maxsize=512)
def _compiled(whole: _Whole, flags: tuple[bool, ...]) -> Callable[..., Any]:
    def run(*args: Any) -> list[Any]:
        return _jax.bind_equation(whole.eqn, args)

    if any(flags):
        run = jax.vmap(run, in_axes=tuple(0 if f else None for f in flags))
    return jax.jit(run)


# --- Control flow ---------------------------------------------------------------------------------

# Loops and branches without sites: what a program's density has where the program draws.

#: A longer loop is worth compiling.
_MOST_STEPS = 64


def _cond(params: Any, out: Any, index: Any, *args: Any) -> Any:
    branches = params["branches"]
    which = np.clip(index.astype(int), 0, len(branches) - 1)
    worlds = max(x.shape[0] for x in (index, *args))
    parts, places = [], []
    for b in np.unique(which):
        rows = np.flatnonzero(which == b)
        some = [x[rows] if x.shape[0] > 1 and len(which) > 1 else x for x in args]
        count = len(rows) if len(which) > 1 else worlds
        jaxpr, consts = _jax.open_jaxpr(branches[b])
        parts.append(evaluate_jaxpr(jaxpr, consts, some, count))
        places.append(rows)
    if len(parts) == 1:
        return list(parts[0])
    return [_placed(outs, places, worlds) for outs in zip(*parts, strict=True)]


def _placed(parts: Sequence[np.ndarray], places: Sequence[np.ndarray], worlds: int) -> np.ndarray:
    whole = np.empty((worlds, *parts[0].shape[1:]), parts[0].dtype)
    for part, rows in zip(parts, places, strict=True):
        whole[rows] = part
    return whole


def _scan(params: Any, out: Any, *args: Any) -> Any:
    length, (n, m) = params["length"], _jax.scan_sizes_of(params)
    if not 0 < length <= _MOST_STEPS:
        return NotImplemented
    consts, carry, xs = args[:n], list(args[n : n + m]), args[n + m :]
    worlds = max((x.shape[0] for x in args), default=1)
    jaxpr, held = _jax.open_jaxpr(params["jaxpr"])
    rows = []
    for t in reversed(range(length)) if params["reverse"] else range(length):
        outs = evaluate_jaxpr(jaxpr, held, [*consts, *carry, *(x[:, t] for x in xs)], worlds)
        carry = outs[:m]
        rows.append(outs[m:])
    rows = rows[::-1] if params["reverse"] else rows
    stacked = [np.stack(np.broadcast_arrays(*column), axis=1) for column in zip(*rows, strict=True)]
    return [*carry, *stacked]


RULES.update({"cond": _cond, "scan": _scan})
