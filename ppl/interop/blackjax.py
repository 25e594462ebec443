"""`from_blackjax`: a sampling algorithm of BlackJAX as a kernel of this library.

BlackJAX is not imported: the user builds the algorithm, and any object of its interface will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax.numpy as jnp

from ppl._types import Choices, PyTree, pytree, static
from ppl.distributions import Seed
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import Coordinates, coordinates
from ppl.inference.trace_kernel import Step, Time, TraceKernel, as_addresses
from ppl.semantics.kernel import choose
from ppl.semantics.weighted import Trace
from ppl.statements import sample, scope


class Algorithm(Protocol):
    """The interface of `blackjax.base.SamplingAlgorithm`: a pair of functions."""

    init: Callable[..., Any]
    step: Callable[..., Any]


Build = Callable[[Callable[[Any], Any]], Algorithm]

#: What the statistics that a step reports are called here (as in ArviZ), where it reports them.
_STATS = {
    "acceptance_rate": "acceptance_rate",
    "is_divergent": "diverging",
    "energy": "energy",
    "num_integration_steps": "n_steps",
    "num_trajectory_expansions": "tree_depth",
}


@named_keywords
def from_blackjax(build: Build, *, addresses: Sequence[str] | None = None) -> FromBlackJAX:
    """Make a BlackJAX algorithm a kernel on the continuous latents.

    **Meaning.** Leaves the program's measure on choices invariant if the algorithm leaves the
    density invariant that it is built with. Its position is the vector of `ppl.unconstrain`.
    Discrete latents, and those not named, are held. In a chain the algorithm's state goes on from
    move to move. Where other kernels have changed the trace in between, and in a single move, it is
    made anew, which keeps the measure if `init` draws from its law what the state has beside the
    position, as a momentum.

    Args:
        build: from a log density of the vector to the algorithm, such as
            `lambda f: blackjax.nuts(f, 0.1, jnp.ones(3))`. The algorithm has
            `init(position, key)`, which gives a state with a field `position`, and
            `step(key, state)`, which gives the next state and a report.
        addresses: the latents that move; None for all continuous ones.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: `build` is no function, or (when called) it gives no algorithm, or one that
            keeps no position.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Cabezas et al. (2024), for BlackJAX.
    """
    if not callable(build):
        raise ArgumentError(
            message(
                f"from_blackjax got {build!r}",
                needs="a function from a log density to an algorithm",
                why="an algorithm that was built already has a density of its own",
                fix="ppl.from_blackjax(lambda f: blackjax.nuts(f, 0.1, jnp.ones(3)))",
            )
        )
    return FromBlackJAX(build, as_addresses("from_blackjax", addresses))


class _Memory(NamedTuple):
    """The algorithm's state, and the choices that it belongs to."""

    state: Any
    choices: Choices


@pytree
class FromBlackJAX(TraceKernel):
    """The kernel of `from_blackjax`."""

    build: Build = static()
    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "from_blackjax"

    def move(self, trace: Trace) -> Trace:
        """Make the algorithm's state at the trace, and one step from it."""
        with scope("start"):
            memory = self.start(trace)
        return self.step(trace, memory, Time(0, 0)).trace

    def start(self, trace: Trace) -> PyTree:
        """Make the algorithm's state at a trace."""
        space = coordinates(self.operation, trace, self.addresses)
        return _Memory(_started(self._algorithm(space), space), trace.choices)

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Make one step from the algorithm's state, or from a new one if the trace has changed."""
        space = coordinates(self.operation, trace, self.addresses)
        algorithm = self._algorithm(space)
        same = [jnp.all(x == memory.choices[a]) for a, x in trace.choices.items()]
        old = choose(jnp.all(jnp.array(same)), memory.state, _started(algorithm, space))
        new, report = algorithm.step(_key(), old)
        there = trace.with_choices(space.space.unflatten(new.position))
        # State and trace go together: where rounding leaves the support, both stay.
        possible = there.log_density > -jnp.inf
        memory = choose(possible, _Memory(new, there.choices), _Memory(old, trace.choices))
        return Step(choose(possible, there, trace), memory, _reported(report))

    def _algorithm(self, space: Coordinates) -> Algorithm:
        made = self.build(space.log_density)
        if not callable(getattr(made, "init", None)) or not callable(getattr(made, "step", None)):
            raise ArgumentError(
                message(
                    f"from_blackjax got a function that built {type(made).__name__}",
                    needs="an algorithm with init(position, key) and step(key, state)",
                    fix="lambda f: blackjax.nuts(f, step_size, inverse_mass_matrix)",
                )
            )
        return made


def _key() -> Any:
    return Seed.key(sample("seed", Seed()))


def _started(algorithm: Algorithm, space: Coordinates) -> Any:
    with scope("init"):
        state = algorithm.init(space.start(), _key())
    shape = getattr(getattr(state, "position", None), "shape", None)
    if shape != (space.size,):
        raise ArgumentError(
            message(
                f"from_blackjax got an algorithm whose state {type(state).__name__} has "
                + ("no position" if shape is None else f"a position of shape {shape}"),
                needs=f"a state with a position of shape ({space.size},)",
                why="it says where the chain is",
                fix="an algorithm of blackjax.mcmc",
            )
        )
    return state


def _reported(report: Any) -> dict[str, Any]:
    """Give the numbers of a step's report that are known by name."""
    found = {name: getattr(report, field, None) for field, name in _STATS.items()}
    return {name: x for name, x in found.items() if x is not None and jnp.ndim(x) == 0}
