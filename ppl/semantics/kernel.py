"""Kernels: programs from a trace to a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl.errors import ArgumentError, ModelError, message
from ppl.interpreter import Frame, Interpreter, Record, evaluate
from ppl.model import Model
from ppl.primitives import Site
from ppl.program import Program, require_program
from ppl.semantics.weighted import Trace, trace_of
from ppl.staging import stage


class Kernel(Model):
    """A function from a trace to a trace that may draw with `ppl.sample`, like a model.

    Called outside of a model it gives a `Program` of a trace; called inside one it becomes part of
    that program.
    """

    def __call__(self, trace: Any, *args: Any, **kwargs: Any) -> Any:
        """Give the program of one move, or make the move in the model being traced."""
        _require_trace(self, trace)
        moved = super().__call__(trace, *args, **kwargs)
        shape = moved.structure.shapes if isinstance(moved, Program) else moved
        if not isinstance(shape, Trace):
            raise ModelError(
                message(
                    f"the kernel {self._name} returned {type(shape).__name__}",
                    needs="a Trace",
                    why="a kernel moves from a trace to a trace",
                    fix="return trace.with_choices({...}), or the trace itself for staying",
                )
            )
        return moved

    @property
    def _name(self) -> str:
        return getattr(self.__wrapped_model__, "__name__", "kernel")

    def __repr__(self) -> str:
        return super().__repr__().replace("ppl.model", "ppl.kernel")


def _require_trace(kernel: Kernel, trace: Any) -> None:
    if not isinstance(trace, Trace) or trace.program is None:
        raise ArgumentError(
            message(
                f"the kernel {kernel._name} got {type(trace).__name__}"
                + (" that does not know its program" if isinstance(trace, Trace) else ""),
                needs="a trace that knows its program",
                why="the density of the new choices comes from there",
                fix="ppl.trace(program, key), or ppl.trace_of(program, choices)",
            )
        )


def kernel(fun: Callable[..., Trace]) -> Kernel:
    """Make a function from a trace to a trace a kernel.

    **Meaning.** A Markov kernel on traces. It is correct for a program if it leaves the program's
    measure on choices invariant; `ppl.check.invariant(kernel, program)` tells.

    Args:
        fun: reads `trace.choices`, `trace.log_density` and `trace.value`, draws with `ppl.sample`,
            and returns `trace.with_choices({...})` or the trace it got. Between two traces,
            `ppl.choose(flag, one, other)` chooses.

    Returns:
        A `Kernel`.
    """
    return Kernel(fun)


def choose(flag: Any, one: Any, other: Any) -> Any:
    """Choose between two values of one structure, such as a proposed trace and the old one.

    Args:
        flag: a boolean scalar.
        one: the value where the flag is true.
        other: the value elsewhere.
    """
    kinds = [jax.tree.structure(x) for x in (one, other)]
    shapes = [[jax.numpy.shape(x) for x in jax.tree.leaves(y)] for y in (one, other)]
    if kinds[0] != kinds[1] or shapes[0] != shapes[1] or jax.numpy.ndim(flag):
        raise ArgumentError(
            message(
                f"choose got a flag of shape {jax.numpy.shape(flag)} and values {kinds[0]} of "
                f"shapes {shapes[0]} and {kinds[1]} of shapes {shapes[1]}",
                needs="one flag, and two values of one structure and shape",
                why="broadcasting would mix the two values",
                fix="ppl.choose(accept, trace.with_choices({...}), trace)",
            )
        )
    # What both share (a trace's program with its data) stays as it is.
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(flag, a, b), one, other)


class _Noting(Interpreter):
    """Rebind every site, and note the choices made: the program stays what it is."""

    name = "a kernel's start"
    unbounded = False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = super().sample(frame, site, leaves)
        if site.kind == "latent":
            frame.record(site, leaves, value)
        return value


def _noted(program: Program) -> dict[str, Any]:
    s = program.structure
    found: dict[str, Record] = evaluate(_Noting(), s.jaxpr, program.consts, program.args).records
    return {a: r.value for a, r in found.items()}


def choices_of(program: Program) -> Program:
    """Make the choices of a program its value; its scores stay.

    **Meaning.** The program's measure on choices: what MCMC kernels leave invariant.

    Raises:
        UnsupportedError: a latent site stands in a `while_loop`.
    """
    require_program("choices_of", program)
    return stage(_noted, (program,), name=f"choices_of({program.name})")


def started(program: Program) -> Trace:
    """Run a program as a part of the model being traced, and give its trace; scores stay."""
    return trace_of(program, _noted(program))
