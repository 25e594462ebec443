"""`Program`: a staged model. Its denotation is an unnormalised measure on its return value.

A program is a `Structure` (jaxpr, trees, site table; compared by identity) and the arrays that
flow into it. As a pytree it has the arrays for leaves, so programs pass through `jax.jit`,
`jax.vmap` and into other programs, and compiled code is reused for all data of one structure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ppl._types import PyTree
from ppl.context import current_context
from ppl.dataflow import site_table
from ppl.errors import ArgumentError, ModelError, message
from ppl.interpreter import Renaming, evaluate
from ppl.sites import SiteInfo, Table


@dataclasses.dataclass(frozen=True)
class Loop:
    """A long computation in pieces, so that a host can run it in blocks.

    `init(*args)` gives a state, `step(state, *args)` a state and an output, `emit(out, *args)`
    what is kept of an output, `finish(state, kept, *args)` the value. All but `finish` are model
    functions; `finish` only rearranges arrays. The first `skip` outputs are not kept, and of the
    others every `thin`-th. `check(state, *args)` sees the concrete state after `init`, and
    again after the first block, and raises if the loop should not go on.

    With `ahead`, a loop is flat: after `init` nothing is drawn, `ahead(block, count, state, *args)`
    makes what `count` steps need of random numbers from seeds in the state, of which
    `step(state, drawn, *args)` gets a row, and `done(out)` tells for each lane whether the step
    completed one of its outputs. The loop ends when every lane has `length`. With `ahead` and no
    `done`, there are no lanes: every step has an output, as in a loop that is not flat, and the
    loop ends after exactly `length`. Without `emit` an output is kept as it is.

    `lean(*args)` gives the arguments without what only `init`, `check` and `finish` read.
    `hand(value, underway, *args)` gives the value of a run on the host the means to go on.
    `alone` tells that the lanes of a flat loop know nothing of one another, and that they stand on
    the first axis of all arrays of the state: each may have a loop of its own.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    emit: Callable[..., Any] | None
    finish: Callable[..., Any]
    length: int
    skip: int = 0
    thin: int = 1
    label: str = "steps"
    check: Callable[..., None] = lambda state, *args: None
    ahead: Callable[..., Any] | None = None
    done: Callable[..., Any] | None = None
    lean: Callable[..., Any] = lambda *args: args
    hand: Callable[..., Any] | None = None
    alone: bool = False


class Structure:
    """All of a program but its data. Two programs of one structure share compiled code."""

    def __init__(
        self,
        name: str,
        stage: Callable[[], tuple[Any, Any, tuple[Any, ...]]],
        loop: Loop | None = None,
        in_tree: Any = None,
        fun: Callable[..., Any] | None = None,
    ):
        self.name, self.loop, self.in_tree, self.fun = name, loop, in_tree, fun
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

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Program is immutable; cannot delete {name}")

    def tree_flatten(self) -> tuple[tuple[Any, Any], Structure]:
        """Split into arrays and structure, for JAX."""
        return (self._consts, self.args), self.structure

    @classmethod
    def tree_unflatten(cls, structure: Structure, children: tuple[Any, Any]) -> Program:
        """Put arrays and structure together, for JAX.

        Args:
            structure: the static part.
            children: constants and arguments.
        """
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


def require_program(operation: str, program: Any) -> Program:
    """Give the program, or say how to make one."""
    if not isinstance(program, Program):
        inside = current_context().inside
        why = "a Model becomes a program when it is called with its arguments"
        raise ArgumentError(
            message(
                f"{operation} got {type(program).__name__}",
                needs="a Program",
                why="inside a model a call of a Model makes it part of that model"
                if inside
                else why,
                fix=f"ppl.{operation}({'model.program' if inside else 'model'}(data), ...)",
            )
        )
    return program


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
    if here.plates:
        raise ModelError(
            message(
                f'the program {program.name} was called inside the plate "{here.plates[-1].name}"',
                needs="a call outside of plates",
                why="a program's sites have their shapes already and cannot be expanded",
                fix="call the model function inside the plate instead of the program",
            )
        )
    s = program.structure
    outs = evaluate(Renaming(here.prefix), s.jaxpr, program.consts, program.args).outs
    return s.rebuild(outs)
