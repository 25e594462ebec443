"""The contract between `mcmc` and a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from ppl._types import PyTree
from ppl.semantics.unconstrained import Unconstrained


class Move(NamedTuple):
    """One step of a chain: where it is, and what the kernel reports of the step."""

    position: Float[Array, " size"]
    stats: dict[str, Any]


@runtime_checkable
class GradientKernel(Protocol):
    """A Markov kernel on the unconstrained space of a program.

    Implementations are frozen dataclasses of static settings. `init` and `step` are model
    functions: they may draw with `ppl.sample`. `step` adapts during the first `num_warmup` steps
    and leaves `space.log_density` invariant after them.
    """

    def init(self, space: Unconstrained, position: Any, num_warmup: int) -> PyTree:
        """Make the kernel's state at a position."""
        ...

    def step(self, space: Unconstrained, state: PyTree, num_warmup: int) -> tuple[PyTree, Move]:
        """Advance the chain by one step."""
        ...
