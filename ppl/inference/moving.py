"""Moving particles by a kernel: what resample-move methods share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl._types import Choices
from ppl.errors import ArgumentError, message
from ppl.program import Program
from ppl.semantics.kernel import Kernel
from ppl.semantics.population import Population
from ppl.semantics.weighted import Trace, trace_of


def require_kernel(operation: str, kernel: Any, fine: bool) -> None:
    """Raise `ArgumentError` if what should be a kernel is none."""
    if not fine:
        raise ArgumentError(
            message(
                f"{operation} got the kernel {kernel!r}",
                needs="a Kernel, or a function that gives one for a population",
                why="particles are moved from trace to trace",
                fix="write @ppl.kernel above a function from a trace to a trace",
            )
        )


def traces_of(program: Program, choices: Choices, count: int) -> Trace:
    """Give the traces of `count` particles."""
    return jax.vmap(lambda c: trace_of(program, c), axis_size=count)(choices)


def fitted(operation: str, kernel: Any, particles: Population) -> Kernel:
    """Give the kernel; a function of a population is called with these particles."""
    if isinstance(kernel, Kernel):
        return kernel
    assert particles.program is not None
    traces = traces_of(particles.program, particles.choices, particles.num_particles)
    found = kernel(dataclasses.replace(particles, values=traces.value, present=traces.present))
    require_kernel(operation, found, isinstance(found, Kernel))
    return found


def chains(
    kernel: Kernel, program: Program, choices: Choices, count: int, num_moves: int, length: int
) -> tuple[Trace, Any]:
    """Move particles, as a part of the model being traced.

    Args:
        kernel: leaves the program's measure invariant.
        program: the program.
        choices: where the particles are.
        count: their number.
        num_moves: how often the kernel is applied between two states of a chain.
        length: how many states of its chain each particle leaves, the first among them; with one
            it leaves the state after one link.

    Returns:
        The traces, of shape (count * length,), those of one chain together; and the fraction of
        links that changed a choice.
    """

    def link(before: Trace, _: Any) -> Any:
        after = _repeated(kernel, program, before, num_moves)
        pairs = zip(*map(jax.tree.leaves, (before.canonical, after.canonical)), strict=True)
        changed = [jnp.any(old != new) for old, new in pairs]
        return after, (after, jnp.any(jnp.array(changed, bool)))

    def chain(choices: Choices) -> Any:
        start = dataclasses.replace(trace_of(program, choices), program=None)
        _, (states, changed) = jax.lax.scan(link, start, length=max(length - 1, 1))
        if length > 1:
            first = jax.tree.map(lambda x: jnp.asarray(x)[None], start)  # a value may be constant
            states = jax.tree.map(lambda x, xs: jnp.concatenate([x, xs]), first, states)
        return states, changed

    states, changed = jax.vmap(chain, axis_size=count)(choices)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
    return flat, jnp.mean(changed, dtype=jnp.result_type(float))


def moved_trace(kernel: Kernel, program: Program, choices: Choices, num_moves: int) -> Trace:
    """Move one particle, as a part of the model being traced; the trace forgets its program."""
    start = dataclasses.replace(trace_of(program, choices), program=None)
    return _repeated(kernel, program, start, num_moves)


def _repeated(kernel: Kernel, program: Program, trace: Trace, num_moves: int) -> Trace:
    def once(trace: Trace, _: Any) -> tuple[Trace, None]:
        after = kernel(dataclasses.replace(trace, program=program))
        after = dataclasses.replace(after, program=None)
        return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), trace, after), None

    return jax.lax.scan(once, trace, length=num_moves)[0]


class Lineage(NamedTuple):
    """From which first chain each particle descends, and what that tells of the evidence.

    Descendants of different first chains stand for independent particles. `correction` is how much
    more often a pair of particles would descend from two chains if resampling had added no noise.
    """

    eve: Any
    correction: Any

    @classmethod
    def start(cls, count: int, length: int) -> Lineage:
        """Group independent particles into chains; a single one tells nothing."""
        correction = count / (count - 1) if count > 1 else math.nan
        eve = jnp.repeat(jnp.arange(count), length)
        return cls(eve, jnp.full((), correction, jnp.result_type(float)))

    def variance(self, weights: Any) -> Any:
        """Estimate the relative variance of the evidence; NaN if the particles cannot tell.

        Args:
            weights: normalised.
        """
        shares = jax.ops.segment_sum(weights, self.eve, weights.shape[0])
        variance = 1 - self.correction * (1 - jnp.sum(shares**2))
        known = (variance >= 0) & jnp.any(self.eve != self.eve[0])
        return jnp.where(known, variance, jnp.nan)

    def resampled(self, weights: Any, ancestors: Any) -> Lineage:
        """Follow the particles that were resampled, each of which leaves a chain.

        Args:
            weights: normalised, of all particles.
            ancestors: one for each new chain.
        """
        count = ancestors.shape[0]
        length = weights.shape[0] // count
        shares = jnp.sum(weights.reshape(count, length), axis=1)
        copies = jnp.zeros_like(shares).at[ancestors // length].add(1 / count)
        noise = (1 - jnp.sum(shares**2)) / (1 - jnp.sum(copies**2))
        return Lineage(jnp.repeat(self.eve[ancestors], length), self.correction * noise)
