"""`on`: a kernel for some of the latents, given all others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from ppl._types import PyTree, pytree, static
from ppl.errors import check_addresses, named_keywords
from ppl.inference.parts import as_kernels
from ppl.inference.trace_kernel import Step, Time, TraceKernel, as_addresses
from ppl.program import Program
from ppl.semantics.handlers import condition
from ppl.semantics.kernel import Kernel, started
from ppl.semantics.weighted import Trace, trace_of
from ppl.staging import stage
from ppl.statements import factor


@named_keywords
def on(addresses: Sequence[str] | str, kernel: Kernel) -> On:
    """Make the kernel that moves some latents only, given all others.

    **Meaning.** The kernel is applied to the program conditioned on the other latents. If it leaves
    the measure of that program invariant, then this kernel that of the program; it is reversible
    if the kernel is. A held site has no value to come into being with: the conditioned program has
    density zero where one would come or go.

    Args:
        addresses: the latents that move; the kernel sees no others.
        kernel: any kernel; `@ppl.kernel` functions too.

    Returns:
        A `Kernel`, with the kernel's statistics.

    Raises:
        ArgumentError: the kernel is none.
        AddressError: an address is not one, or (when called) no latent site of the program.
    """
    # No address at all is refused like an empty list.
    names = as_addresses("on", () if addresses is None else addresses)
    assert names is not None
    return On(as_kernels("on", kernel)[0], names)


@pytree
class On(TraceKernel):
    """The kernel of `on`."""

    kernel: TraceKernel
    addresses: tuple[str, ...] = static()

    operation: ClassVar[str] = "on"

    def start(self, trace: Trace) -> PyTree:
        """Make what the kernel remembers, of the conditioned program."""
        return self.kernel.start(self._inner(trace))

    def move(self, trace: Trace) -> Trace:
        """Move the conditioned program's trace, and take its choices."""
        return self._outer(trace, self.kernel.move(self._inner(trace)))

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Step in the conditioned program."""
        new, kept, stats = self.kernel.step(self._inner(trace), memory, time)
        return Step(self._outer(trace, new), kept, stats)

    def tuned(self, memory: PyTree) -> TraceKernel:
        """Give the adapted kernel on the same latents."""
        return dataclasses.replace(self, kernel=self.kernel.tuned(memory))

    def _inner(self, trace: Trace) -> Trace:
        program = trace._known_program("on")
        check_addresses("on", self.addresses, program.latents)
        held = [s for s in program.sites if s.kind == "latent" and s.address not in self.addresses]
        rest = {s.address: trace.choices[s.address] for s in held}
        present = {s.address: trace.present[s.address] for s in held if s.conditional}
        if present:
            program = stage(_held, (program, rest, present), name=program.name)
        elif rest:
            program = condition(program, rest)
        return trace_of(program, {a: trace.choices[a] for a in self.addresses})

    def _outer(self, trace: Trace, inner: Trace) -> Trace:
        return trace.with_choices(inner.choices)


def _held(program: Program, rest: dict[str, Any], present: dict[str, Any]) -> Any:
    """Condition a program, and give it density zero where a held site would come or go."""
    here = started(condition(program, rest))
    there = trace_of(program, {**rest, **here.choices}).present
    same = jnp.array([jnp.all(there[a] == flag) for a, flag in present.items()])
    name = "held"
    while name in program.sites:
        name += "'"
    factor(name, jnp.where(jnp.all(same), 0.0, -jnp.inf))
    return here.value
