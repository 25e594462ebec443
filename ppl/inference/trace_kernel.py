"""What the kernels on traces share: settings that are data, addresses, accepting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import distributions as dist
from ppl._types import PyTree
from ppl.errors import AddressError, message
from ppl.semantics.kernel import Kernel
from ppl.semantics.unconstrained import Unconstrained
from ppl.semantics.weighted import Trace
from ppl.statements import sample


class Time(NamedTuple):
    """How many moves a chain has made, and for how many it adapts: `index < warmup`."""

    index: Any
    warmup: int


class Step(NamedTuple):
    """A move of a chain: where it leads, what the kernel remembers, what it reports."""

    trace: Trace
    memory: PyTree
    stats: dict[str, Any]


class TraceKernel(Kernel):
    """A kernel with settings: a pytree, so that its arrays are data when it is an argument.

    Two of one class with equal static settings have one structure: staging, and all compiled code,
    is reused. Subclasses are made by `pytree`, and say in `move` what one move is. Those that adapt
    their settings in a chain's warmup, or remember more than the trace, define `start`, `step` and
    `tuned` too.
    """

    operation: ClassVar[str]

    def move(self, trace: Trace) -> Trace:
        """Draw the next trace; the one given knows its program and its density."""
        raise NotImplementedError

    def start(self, trace: Trace) -> PyTree:
        """Make what a chain that starts at a trace remembers."""
        return ()

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Make a chain's next move; adapt while the time is that of warmup."""
        return Step(self.move(trace), memory, {})

    def tuned(self, memory: PyTree) -> TraceKernel:
        """Give the kernel with the settings that were adapted."""
        return self

    def _moved(self, trace: Trace) -> Trace:
        # The traces of `ppl.trace` leave their density open; old and new must have one structure.
        return self.move(trace.with_choices({}) if trace._log_density is None else trace)

    @property
    def __wrapped_model__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return type(self)._moved

    @property
    def _bound(self) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self,)

    @property
    def _name(self) -> str:
        return self.operation

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self  # an object, and no method of a class that holds it


class FlatKernel(TraceKernel):
    """A kernel on unconstrained space whose moves take many steps, as a flat loop for many chains.

    What a chain draws depends on its seed alone, so that it does not
    matter what runs beside it; where chains adapt together, so it is after the warmup.
    """

    addresses: tuple[str, ...] | None

    @property
    def flat_alone(self) -> bool:
        """Whether chains never learn from one another: each may then have a loop of its own."""
        return False

    def check(self, space: Unconstrained, num_warmup: int, num_chains: int) -> None:
        """Raise `ArgumentError` if the settings do not fit a program, or lack what nothing adapts.

        Args:
            space: of the program.
            num_warmup: length of the warmup.
            num_chains: their number.
        """
        raise NotImplementedError

    def flat_start(self, gradient: Callable[[Any], Any], position: Any, seed: Any) -> Any:
        """Put chains at their positions; the state has their seeds, and what they have learned.

        Args:
            gradient: from a position to its log density and gradient.
            position: of shape (chain, size).
            seed: of shape (chain, *key).
        """
        raise NotImplementedError

    def ahead(self, block: Any, count: int, size: int, seed: Any) -> Any:
        """Make the random numbers that a block of steps needs, of shape (step, chain, *).

        Args:
            block: number of the block.
            count: its steps.
            size: the dimension.
            seed: of the chains.
        """
        raise NotImplementedError

    def flat_step(
        self, gradient: Callable[[Any], Any], state: Any, noise: Any, num_warmup: int
    ) -> tuple[Any, Any]:
        """Make a step of every chain: the state, and an output with chains first.

        Args:
            gradient: from a position to its log density and gradient.
            state: of the chains.
            noise: a row of what `ahead` gave.
            num_warmup: adapt in so many moves.
        """
        raise NotImplementedError

    @staticmethod
    def flat_done(out: Any) -> Any:
        """Tell where a step completed a move.

        Args:
            out: an output, or a stack of them.
        """
        raise NotImplementedError

    def flat_stats(self, out: Any) -> tuple[Any, dict[str, Any]]:
        """Read an output: positions and statistics, chains first.

        Args:
            out: of one step.
        """
        raise NotImplementedError

    def flat_tuned(self, state: Any) -> TraceKernel:
        """Give the kernel with the settings that were adapted.

        Args:
            state: of the chains.
        """
        raise NotImplementedError


def typical(kernel: TraceKernel, memory: PyTree) -> TraceKernel:
    """Give the kernel with the settings of one chain, the median one by its first real setting.

    Args:
        kernel: what moved the chains.
        memory: of each of them, on the first axis.
    """
    reals = [x for x in jax.tree.leaves(memory) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not reals:
        return kernel
    first = np.asarray(reals[0])
    order = np.argsort(first.reshape(len(first), -1).mean(1))
    chain = order[len(order) // 2]
    return kernel.tuned(jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chain]), memory))


def as_addresses(operation: str, addresses: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Give the addresses as a static setting; that they exist is seen when there is a program."""
    if addresses is None:
        return None
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found or not all(isinstance(a, str) for a in found) or len(set(found)) < len(found):
        raise AddressError(
            message(
                f"{operation} got addresses={addresses!r}",
                needs="one or more different addresses, or None for all",
                why="a kernel that moves nothing leaves every measure as it is",
                fix=f'ppl.kernels.{operation}(..., addresses=["x"])',
            )
        )
    return found


def accepted(log_ratio: Any) -> Any:
    """Draw whether a move is accepted: with probability min(1, ratio), and never where it is NaN.

    A ratio that is no number comes from a state without a density; staying is always right.
    """
    ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, jnp.minimum(0.0, log_ratio))
    return sample("accept", dist.Bernoulli(jnp.exp(ratio))) == 1


def over(flag: Any, x: Any) -> Any:
    """Give a flag of elements the trailing axes of their values."""
    return jnp.reshape(flag, jnp.shape(flag) + (1,) * (jnp.ndim(x) - jnp.ndim(flag)))
