"""Staging: from a Python function and its arguments to a `Program`.

The staged structure is kept and reused as long as the function, its static arguments, the types of
its arrays, and all that it closes over are the same.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from numpyro.distributions.distribution import validation_enabled
from numpyro.primitives import Messenger

from ppl import _jax
from ppl._types import PyTree
from ppl.checks import check_inputs
from ppl.context import Context, context, current_context
from ppl.errors import ArgumentError, ModelError, TracerLeakError, message
from ppl.fingerprint import find, fingerprint
from ppl.program import Loop, Program, Structure

_CACHE_SIZE = 1024
_cache: OrderedDict[Hashable, tuple[Structure, tuple[Any, ...]]] = OrderedDict()


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)) or (
        hasattr(x, "__array__") and not isinstance(x, (str, bytes, type))
    )


def stage(
    fun: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    loop: Loop | None = None,
    operation: str = "sample",
) -> Program:
    """Stage `fun(*args, **kwargs)` into a program whose inputs are the arrays among the arguments.

    Arrays are data; everything else is part of the structure and must be hashable. The structure
    is reused for a later call that differs in data only, as long as what the function closes over
    is still the same. `operation` is what error messages say gave the observations.
    """
    name = str(name or getattr(fun, "__name__", "model"))
    leaves, in_tree = jax.tree.flatten((args, kwargs or {}))
    arrays = [_as_array(name, x) for x in leaves if _is_array(x)]
    statics = tuple(None if _is_array(x) else _Static(x) for x in leaves)
    avals = tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in arrays)
    try:
        held = [x.value for x in statics if x is not None]
        read, changed, mutated = fingerprint(fun, held)
        key = (
            fun,
            loop,
            in_tree,
            statics,
            avals,
            read,
            jax.config.jax_enable_x64,  # pyright: ignore[reportAttributeAccessIssue]
        )
        found = _cache.get(key)
    except TypeError as error:
        bad = next((x.value for x in statics if x is not None and not x.hashable), None)
        raise ArgumentError(
            message(
                f"{name} got an argument of type {type(bad).__name__}",
                needs="arrays, pytrees of arrays, or hashable values",
                why="what is not an array becomes part of the program's structure",
                fix="pass it as jnp.asarray(...) or as a tuple",
            )
        ) from error
    if found is None:
        if mutated:
            raise ModelError(
                message(
                    f'{name} reads the NumPy array "{mutated}", which was changed in place',
                    needs="data as arguments, or arrays that do not change",
                    why="JAX remembers a constant by the array it came from, and would go on with "
                    "the old numbers",
                    fix=f'make "{mutated}" an argument of the model, or assign a new array to it',
                )
            )
        found = _stage(fun, in_tree, statics, avals, name, loop, changed)
        if not any(_jax.is_tracer(c) for c in found[1]):
            _cache[key] = found
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
    else:
        _cache.move_to_end(key)
    structure, consts = found
    if loop is None:
        check_inputs(structure.sites, consts, arrays, operation)
    return Program(structure, consts, arrays)


class _Static:
    """A static argument, compared by type and value (so that 1, 1.0 and True differ)."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    @property
    def hashable(self) -> bool:
        try:
            hash(self.value)
        except TypeError:
            return False
        return True

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Static)
            and type(other.value) is type(self.value)
            and bool(other.value == self.value)
        )


def _as_array(name: str, x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if isinstance(x, np.ndarray) and x.dtype.kind not in "biufcV":
        raise ArgumentError(
            message(
                f"{name} got an array of dtype {x.dtype}",
                needs="numbers or booleans",
                why="JAX computes with numeric arrays only",
                fix="encode it first, for example with numpy.unique(x, return_inverse=True)",
            )
        )
    # Store data in the width JAX will compute in, so that equal programs have equal types.
    if isinstance(x, np.ndarray):
        # A copy: a program must not change when the caller's array does.
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=True)
    return x


def _stage(
    fun: Callable[..., Any],
    in_tree: Any,
    statics: tuple[Any, ...],
    avals: tuple[Any, ...],
    name: str,
    loop: Loop | None,
    changed: Hashable,
) -> tuple[Structure, tuple[Any, ...]]:
    def trace() -> tuple[Any, Any, tuple[Any, ...]]:
        outside = _jax.enclosing_traces()
        trees: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            args, kwargs = structure.arguments(arrays)
            value = _call(name, fun, args, kwargs)
            if inspect.isgenerator(value) or inspect.iscoroutine(value):
                raise ModelError(
                    message(
                        f"{name} returned a {type(value).__name__}",
                        needs="a function that runs its statements and returns a value",
                        why="the body of a generator or coroutine has not run yet",
                        fix="write the model with def and return, without yield or async",
                    )
                )
            outs, out_tree = jax.tree.flatten(value)
            kinds = [None if _is_output(x) else _Static(x) for x in outs]
            trees.append((out_tree, kinds))
            return [x for x, k in zip(outs, kinds, strict=True) if k is None]

        with context(Context(inside=True, changed=changed)):
            closed = jax.make_jaxpr(flat)(
                *[jax.ShapeDtypeStruct(s, d, weak_type=w) for s, d, w in avals]
            )
        held = [x.value for x in statics if x is not None]
        leak = find(fun, held, lambda x: _jax.is_tracer(x) and not _jax.belongs_to(x, outside))
        if leak is not None:
            raise TracerLeakError(
                message(
                    f'{name} left a traced value behind in the variable "{leak}"',
                    needs="values to leave a model only through its return value or its sites",
                    why="a model is traced once and run many times; what it stores elsewhere (a "
                    "global, a list, an attribute) is a placeholder, not a number",
                    fix='return the value, or record it with ppl.deterministic("name", value)',
                )
            )
        jaxpr, found = _jax.open_jaxpr(closed)
        out_tree, kinds = trees[-1]

        def rebuild(outs: Sequence[Any]) -> PyTree:
            fresh = iter(outs)
            leaves = [next(fresh) if k is None else k.value for k in kinds]
            return jax.tree.unflatten(out_tree, leaves)

        return jaxpr, rebuild, tuple(found)

    structure = Structure(name, trace, loop, (in_tree, statics), fun)
    if loop is not None:
        return structure, ()
    _ = structure.sites
    return structure, structure.consts


def _call(name: str, fun: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call the model function; say in our words what JAX and NumPyro say in theirs."""
    try:
        # Parameters are checked where the site is made, which can say which site it is.
        with validation_enabled(False), _Refusing():
            return fun(*args, **kwargs)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise ModelError(
            message(
                f"{name} needs the value of an array while it is being traced",
                needs="Python control flow and shapes that depend on static values only",
                why="array arguments and draws are placeholders then: "
                + str(error).partition("\n")[0],
                fix="use jax.lax.cond, jnp.where or jnp instead of if and numpy; fix an array that "
                "shapes depend on with functools.partial(function, array)",
            )
        ) from error


class _Refusing(Messenger):
    """Refuse NumPyro's statements in a model of this language."""

    def __init__(self) -> None:
        super().__init__(None)

    def process_message(self, msg: Any) -> None:
        if not current_context().inside:
            return
        raise ModelError(
            message(
                f'numpyro.{msg["type"]} was called at "{msg.get("name") or ""}" in a ppl model',
                needs="statements of this language",
                fix="ppl.sample and its kin, or ppl.from_numpyro(model) for a NumPyro model",
            )
        )


def _is_output(x: Any) -> bool:
    return _is_array(x) or isinstance(x, (bool, int, float, complex)) or _jax.is_tracer(x)
