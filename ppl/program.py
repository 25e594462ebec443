"""`Program`: a staged model. Its denotation is an unnormalised measure on its return value.

A program is a `Structure` (jaxpr, trees, site table; compared by identity) and the arrays that
flow into it. As a pytree it has the arrays for leaves, so programs pass through `jax.jit`,
`jax.vmap` and into other programs, and compiled code is reused for all data of one structure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from ppl import _jax
from ppl._types import PyTree
from ppl.context import Context, context, current_context
from ppl.errors import ArgumentError, ModelError, TracerLeakError, message
from ppl.fingerprint import find, fingerprint
from ppl.interpreter import Renaming, evaluate
from ppl.sites import SiteInfo, Table, check_inputs, site_table


@dataclasses.dataclass(frozen=True)
class Loop:
    """A long computation in pieces, so that a host can run it in blocks.

    `init(*args)` gives a state, `step(state, *args)` a state and an output, `emit(out, *args)` what
    is kept of an output, `finish(state, kept, *args)` the value. All but `finish` are model
    functions; `finish` only rearranges arrays. The first `skip` outputs are not kept. `check(state)`
    looks at the concrete state after `init` and raises if the loop should not start.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    emit: Callable[..., Any]
    finish: Callable[..., Any]
    length: int
    skip: int = 0
    label: str = "steps"
    check: Callable[..., None] = lambda state, *args: None


class Structure:
    """All of a program but its data. Two programs of one structure share compiled code."""

    def __init__(
        self,
        name: str,
        stage: Callable[[], tuple[Any, Any, tuple[Any, ...]]],
        loop: Loop | None = None,
        in_tree: Any = None,
    ):
        self.name, self.loop, self.in_tree = name, loop, in_tree
        self._stage = stage

    @functools.cached_property
    def _staged(self) -> tuple[Any, Any, tuple[Any, ...]]:
        return self._stage()

    @property
    def consts(self) -> tuple[Any, ...]:
        """Arrays found in the function's closure when it was staged."""
        return self._staged[2]

    @property
    def jaxpr(self) -> Any:
        """The staged program: its inputs are the constants, then the arguments."""
        return self._staged[0]

    def rebuild(self, outs: Sequence[Any]) -> PyTree:
        """Put flat outputs back into the shape the model returned."""
        return self._staged[1](outs)

    @property
    def shapes(self) -> PyTree:
        """The return value with shapes and dtypes in place of arrays."""
        avals = [v.aval for v in self.jaxpr.outvars]
        return self.rebuild([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])

    def arguments(self, arrays: Sequence[Any]) -> tuple[Any, Any]:
        """The positional and keyword arguments the program was made with."""
        in_tree, statics = self.in_tree
        fresh = iter(arrays)
        return jax.tree.unflatten(in_tree, [next(fresh) if s is None else s.value for s in statics])

    @functools.cached_property
    def sites(self) -> Table:
        """The site table."""
        return site_table(self.jaxpr, self.name)

    @property
    def open_scores(self) -> tuple[SiteInfo, ...]:
        """The sites that score: observations and factors."""
        return tuple(s for s in self.sites if s.kind in ("observed", "factor") or s.weighted)


@jax.tree_util.register_pytree_node_class
class Program:
    """An immutable program of the language; make one by calling a `Model`.

    **Meaning.** The measure that weighs each run by the product of its scores, pushed forward to
    the return value. Printing shows the site table; `render()` the dependencies.
    """

    def __init__(self, structure: Structure, consts: Sequence[Any], args: Sequence[Any]):
        object.__setattr__(self, "structure", structure)
        object.__setattr__(self, "_consts", tuple(consts))
        object.__setattr__(self, "args", tuple(args))

    structure: Structure
    args: tuple[Any, ...]
    _consts: tuple[Any, ...]

    @property
    def consts(self) -> tuple[Any, ...]:
        """Arrays the model closed over: inputs of the jaxpr before the arguments."""
        if self.structure.loop is not None:  # staged when first needed, after the program was made
            return self.structure.consts
        return self._consts

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Program is immutable; cannot set {name}")

    def tree_flatten(self) -> tuple[tuple[Any, Any], Structure]:
        return (self._consts, self.args), self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, children: tuple[Any, Any]) -> Program:
        return cls(structure, *children)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.structure.name

    @property
    def sites(self) -> Table:
        """The site table: a sequence of `SiteInfo`, also indexed by address."""
        return self.structure.sites

    @property
    def latents(self) -> tuple[str, ...]:
        """Addresses of the unobserved random choices."""
        return tuple(s.address for s in self.sites if s.kind == "latent")

    @property
    def observed(self) -> tuple[str, ...]:
        """Addresses of the observations."""
        return tuple(s.address for s in self.sites if s.kind == "observed")

    def __call__(self) -> PyTree:
        """Run the program as a part of the model being traced: its sites become the model's."""
        return inline(self)

    def __repr__(self) -> str:
        return str(self.sites)

    def _repr_html_(self) -> str:
        return self.sites._repr_html_()

    def render(self) -> Any:
        """Draw the dependency graph: a `graphviz.Digraph` if installed, else text."""
        return self.sites.render()


def inline(program: Program) -> PyTree:
    """Stage a program's equations into the model being traced, under its scope."""
    here = current_context()
    if not here.inside:
        raise ModelError(
            message(
                f"the program {program.name} was called outside of a model",
                needs="a model around the call",
                why="a call makes the program part of a larger one",
                fix="ppl.run(program, key) to draw from it, or ppl.trace, ppl.log_density",
            )
        )
    s = program.structure
    outs = evaluate(Renaming(here.prefix), s.jaxpr, program.consts, program.args).outs
    return s.rebuild(outs)


# --- Staging ------------------------------------------------------------------------------------

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
) -> Program:
    """Stage `fun(*args, **kwargs)` into a program whose inputs are the arrays among the arguments.

    Arrays are data; everything else is part of the structure and must be hashable. The structure
    is reused for a later call that differs in data only, as long as what the function closes over
    is still the same.
    """
    name = name or getattr(fun, "__name__", "model")
    leaves, in_tree = jax.tree.flatten((args, kwargs or {}))
    arrays = [_as_array(name, x) for x in leaves if _is_array(x)]
    statics = tuple(None if _is_array(x) else _Static(x) for x in leaves)
    avals = tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in arrays)
    try:
        key = (
            fun,
            loop,
            in_tree,
            statics,
            avals,
            fingerprint(fun),
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
        found = _stage(fun, in_tree, statics, avals, name, loop)
        if not any(_jax.is_tracer(c) for c in found[1]):
            _cache[key] = found
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
    else:
        _cache.move_to_end(key)
    structure, consts = found
    if loop is None:
        check_inputs(structure.sites, consts, arrays)
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
        return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
    return x


def _stage(
    fun: Callable[..., Any],
    in_tree: Any,
    statics: tuple[Any, ...],
    avals: tuple[Any, ...],
    name: str,
    loop: Loop | None,
) -> tuple[Structure, tuple[Any, ...]]:
    def trace() -> tuple[Any, Any, tuple[Any, ...]]:
        guard = _jax.leak_guard()
        trees: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            guard.watch()
            args, kwargs = structure.arguments(arrays)
            outs, out_tree = jax.tree.flatten(fun(*args, **kwargs))
            kinds = [None if _is_output(x) else _Static(x) for x in outs]
            trees.append((out_tree, kinds))
            return [x for x, k in zip(outs, kinds, strict=True) if k is None]

        with context(Context(inside=True)):
            closed = jax.make_jaxpr(flat)(
                *[jax.ShapeDtypeStruct(s, d, weak_type=w) for s, d, w in avals]
            )
        leak = find(fun, guard.holds) if guard.suspicious() else None
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

    structure = Structure(name, trace, loop, (in_tree, statics))
    if loop is not None:
        return structure, ()
    _ = structure.sites
    return structure, structure.consts


def _is_output(x: Any) -> bool:
    return _is_array(x) or isinstance(x, (bool, int, float, complex)) or _jax.is_tracer(x)
