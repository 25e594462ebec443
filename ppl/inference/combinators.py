"""Kernels made of kernels: `cycle`, `mixture`, `repeat`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ppl import distributions as dist
from ppl._types import PyTree, pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import numbers
from ppl.inference.parts import as_kernels
from ppl.inference.trace_kernel import Step, Time, TraceKernel
from ppl.semantics.kernel import Kernel
from ppl.semantics.weighted import Trace
from ppl.statements import sample, scope

# A way to move: from a kernel, a trace and what the kernel remembers.
_Way = Callable[[TraceKernel, Trace, PyTree], Step]


@named_keywords
def cycle(*kernels: Kernel) -> Cycle:
    """Make the kernel that applies kernels one after the other.

    **Meaning.** Leaves invariant what all of the kernels leave invariant. It is not reversible in
    general, even if they are.

    Args:
        *kernels: in the order in which they move; `@ppl.kernel` functions too.

    Returns:
        A `Kernel`. Statistics of the kernels keep their names where only one kernel reports them,
        and else are called "<kernel>.<name>".

    Raises:
        ArgumentError: there is no kernel, or something is not one.

    Source: Tierney (1994), section 2.4.
    """
    return Cycle(as_kernels("cycle", *kernels))


@named_keywords
def mixture(*kernels: Kernel, weights: ArrayLike | None = None) -> Mixture:
    """Make the kernel that applies one of several kernels, drawn anew for each move.

    **Meaning.** Leaves invariant what all of the kernels leave invariant, and is reversible if all
    of them are. Which kernel is drawn depends on nothing else.

    Args:
        *kernels: to choose from; `@ppl.kernel` functions too.
        weights: a positive number for each kernel; they are normalised. None for equal ones.

    Returns:
        A `Kernel`. Its statistics have the names that those of `cycle` have; those of the kernels
        that were not drawn are 0, False, or (of reals) NaN. "kernel" says which one was drawn.

    Raises:
        ArgumentError: there is no kernel, something is not one, or the weights do not fit.

    Source: Tierney (1994), section 2.4.
    """
    found = as_kernels("mixture", *kernels)
    fix = "ppl.kernels.mixture(one, other, weights=[0.9, 0.1])"
    given = numbers("mixture", "weights", jnp.ones(len(found)) if weights is None else weights, fix)
    if given.shape != (len(found),):
        raise ArgumentError(
            message(
                f"mixture got weights of shape {given.shape} for {len(found)} kernels",
                needs="one positive number for each kernel",
                fix=fix,
            )
        )
    return Mixture(found, given)


@named_keywords
def repeat(kernel: Kernel, num: int) -> Repeat:
    """Make the kernel that applies a kernel several times.

    **Meaning.** Leaves invariant what the kernel leaves invariant, and is reversible if it is.

    Args:
        kernel: what to repeat.
        num: how often.

    Returns:
        A `Kernel`. Of its statistics, integers are added up, reals averaged, and flags are true if
        they were once.

    Raises:
        ArgumentError: the kernel is none, or the number is not a positive integer.
    """
    return Repeat(as_kernels("repeat", kernel)[0], count("repeat", "num", num))


# --- A kernel as a part of another one ----------------------------------------------------------


def _moving(kernel: TraceKernel, trace: Trace, memory: PyTree) -> Step:
    return Step(kernel.move(trace), memory, {})


def _stepping(time: Time) -> _Way:
    return lambda kernel, trace, memory: kernel.step(trace, memory, time)


def _labels(kernels: Sequence[TraceKernel]) -> list[str]:
    """Give every kernel a name of its own."""
    names = [k._name for k in kernels]
    return [n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names)]


def _merged(labels: Sequence[str], stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    times = Counter(key for each in stats for key in each)
    return {
        key if times[key] == 1 else f"{label}.{key}": x
        for label, each in zip(labels, stats, strict=True)
        for key, x in each.items()
    }


class _Several(TraceKernel):
    """What kernels of several parts share: each part remembers for itself."""

    kernels: tuple[TraceKernel, ...]

    def start(self, trace: Trace) -> PyTree:
        """Make what each of the kernels remembers."""
        return tuple(k.start(trace) for k in self.kernels)

    def move(self, trace: Trace) -> Trace:
        """Move by the kernels' moves."""
        return self._go(trace, ((),) * len(self.kernels), _moving).trace

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Move by the kernels' steps."""
        return self._go(trace, memory, _stepping(time))

    def tuned(self, memory: PyTree) -> TraceKernel:
        """Give the kernel of the adapted kernels."""
        kernels = tuple(k.tuned(m) for k, m in zip(self.kernels, memory, strict=True))
        return dataclasses.replace(self, kernels=kernels)  # pyright: ignore[reportArgumentType]

    def _go(self, trace: Trace, memory: PyTree, way: _Way) -> Step:
        raise NotImplementedError


@pytree
class Cycle(_Several):
    """The kernel of `cycle`."""

    kernels: tuple[TraceKernel, ...]

    operation: ClassVar[str] = "cycle"

    def _go(self, trace: Trace, memory: PyTree, way: _Way) -> Step:
        labels, kept, stats = _labels(self.kernels), [], []
        for label, kernel, mine in zip(labels, self.kernels, memory, strict=True):
            with scope(label):
                trace, mine, found = way(kernel, trace, mine)
            kept.append(mine)
            stats.append(found)
        return Step(trace, tuple(kept), _merged(labels, stats))


@pytree
class Mixture(_Several):
    """The kernel of `mixture`."""

    kernels: tuple[TraceKernel, ...]
    weights: Array

    operation: ClassVar[str] = "mixture"

    def _go(self, trace: Trace, memory: PyTree, way: _Way) -> Step:
        labels, program = _labels(self.kernels), trace.program
        weights = jnp.asarray(self.weights, jnp.result_type(float))
        drawn = sample("kernel", dist.CategoricalProbs(weights / jnp.sum(weights)))

        def part(i: int) -> Any:
            def apply() -> Any:
                with scope(labels[i]):
                    new, mine, stats = way(self.kernels[i], trace, memory[i])
                return _without_program(new), mine, stats

            return apply

        parts = [part(i) for i in range(len(labels))]
        idle = [jax.tree.map(_idle, jax.eval_shape(p)[2]) for p in parts]

        def branch(i: int) -> Any:
            def apply() -> Any:
                new, mine, found = parts[i]()
                stats = [found if j == i else x for j, x in enumerate(idle)]
                return new, (*memory[:i], mine, *memory[i + 1 :]), _merged(labels, stats)

            return apply

        new, kept, stats = jax.lax.switch(drawn, [branch(i) for i in range(len(labels))])
        return Step(dataclasses.replace(new, program=program), kept, {**stats, "kernel": drawn})


def _idle(shape: Any) -> Any:
    real = jnp.issubdtype(shape.dtype, jnp.inexact)
    return jnp.full(shape.shape, jnp.nan if real else 0, shape.dtype)


def _without_program(trace: Trace) -> Trace:
    """Leave out what no move changes, so that no branch or loop hands it on."""
    return dataclasses.replace(trace, program=None)


@pytree
class Repeat(TraceKernel):
    """The kernel of `repeat`."""

    kernel: TraceKernel
    num: int = static()

    operation: ClassVar[str] = "repeat"

    def start(self, trace: Trace) -> PyTree:
        """Make what the kernel remembers."""
        return self.kernel.start(trace)

    def move(self, trace: Trace) -> Trace:
        """Move again and again."""
        return self._go(trace, (), lambda _: _moving).trace

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Step again and again: a kernel's time counts its own moves."""
        first, warmup = time.index * self.num, time.warmup * self.num
        return self._go(trace, memory, lambda i: _stepping(Time(first + i, warmup)))

    def tuned(self, memory: PyTree) -> TraceKernel:
        """Give the repetition of the adapted kernel."""
        return dataclasses.replace(self, kernel=self.kernel.tuned(memory))

    def _go(self, trace: Trace, memory: PyTree, way: Callable[[Any], _Way]) -> Step:
        program = trace.program

        def one(state: Any, i: Any) -> Any:
            now = dataclasses.replace(state[0], program=program)
            new, kept, stats = way(i)(self.kernel, now, state[1])
            return (_without_program(new), kept), stats

        start = _without_program(trace), memory
        (new, kept), stats = jax.lax.scan(one, start, jnp.arange(self.num))
        return Step(dataclasses.replace(new, program=program), kept, jax.tree.map(_total, stats))


def _total(x: Any) -> Any:
    if x.dtype == bool:
        return jnp.any(x, 0)
    return (jnp.mean if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.sum)(x, 0)
