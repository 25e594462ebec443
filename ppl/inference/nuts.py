"""The No-U-Turn sampler: as a kernel on traces, and as one flat loop for many chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt32

from ppl import distributions as dist
from ppl._threefry import row_key, rows
from ppl._types import PyTree, pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference import warmup
from ppl.inference.coordinates import Coordinates, coordinates, fit, one_number, variances
from ppl.inference.metric import ROUNDING, ROUNDING_FAR, LowRank, Metric
from ppl.inference.trace_kernel import FlatKernel, Step, Time, TraceKernel, as_addresses, typical
from ppl.inference.trajectory import Noise, Numbers, Place, Trajectory, grow, noise, rest
from ppl.inference.warmup import Packed, Warmup
from ppl.semantics.unconstrained import Unconstrained
from ppl.semantics.weighted import Trace
from ppl.statements import sample


@named_keywords
def nuts(
    *,
    step_size: ArrayLike | None = None,
    inverse_mass: ArrayLike | None = None,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    low_rank: int = 0,
    addresses: Sequence[str] | None = None,
) -> Nuts:
    """Make the No-U-Turn kernel on the continuous latents.

    **Meaning.** With its step size and metric fixed, as they are after warmup, it leaves the
    program's measure on choices invariant. Positions are the coordinates of `ppl.unconstrain`.
    Discrete latents, and those not named, are held. An energy that is off by no more than rounding
    (four units in the last place, at first 256) counts as right, for acceptance and divergences.

    Args:
        step_size: of the leapfrog integrator; None adapts it in the warmup.
        inverse_mass: about the posterior's variances in unconstrained space: one number, or one for
            each coordinate; None adapts it in the warmup.
        target_accept: the mean acceptance statistic that the step size is tuned to.
        max_tree_depth: at most 2 ** max_tree_depth - 1 gradient evaluations a move.
        low_rank: the number of directions in which the adapted metric is more than diagonal, for
            posteriors with strong correlations.
        addresses: the latents that move; None for all continuous ones.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range; or (when called) there is no step size, or the
            inverse mass has another dimension than the program.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Hoffman and Gelman (2014), Betancourt (2017); see `ppl.inference.trajectory` and
    `ppl.inference.warmup`.
    """
    whole = isinstance(max_tree_depth, int) and not isinstance(max_tree_depth, bool)
    if not 0 < target_accept < 1 or not whole or not 1 <= max_tree_depth <= 20:
        raise ArgumentError(
            message(
                f"nuts got target_accept={target_accept}, max_tree_depth={max_tree_depth}",
                needs="0 < target_accept < 1, and an integer max_tree_depth from 1 to 20",
                fix="ppl.kernels.nuts(target_accept=0.9)",
            )
        )
    names = as_addresses("nuts", addresses)
    target = jnp.asarray(target_accept, jnp.result_type(float))
    fix = "ppl.kernels.nuts(step_size=0.1, inverse_mass=1.0)"
    step = step_size
    if step is not None:
        step = one_number("nuts", "step_size", step, fix, "inverse_mass=variances")
    rank = count("nuts", "low_rank", low_rank, 0)
    mass = None if inverse_mass is None else variances("nuts", "inverse_mass", inverse_mass, fix)
    if rank and mass is not None:
        raise ArgumentError(
            message(
                f"nuts got low_rank={rank} beside an inverse_mass",
                needs="one of them",
                why="the rank is that of a metric that warmup adapts",
                fix=f"ppl.kernels.nuts(low_rank={rank})",
            )
        )
    return Nuts(step, mass, target, names, int(max_tree_depth), rank)


class Leaves(NamedTuple):
    """What leaves need whose momentum is not drawn yet: the words of its key, and uniform numbers.

    Few leaves are the first of a trajectory. Where one chain is alone in its loop, only those draw.
    """

    momentum: UInt32[Array, "... 3"]
    coins: Float[Array, "... 4"]

    def noise(self, needed: Any, size: int) -> Noise:
        """Draw a momentum, if one leaf needs it."""
        kind = self.coins.dtype

        def draw() -> Any:
            return jax.random.normal(row_key(self.momentum), (size,), kind)

        if needed is not True:
            momentum = jax.lax.cond(needed, draw, lambda: jnp.zeros(size, kind))
        else:
            momentum = draw()
        return noise(momentum, self.coins)


class State(NamedTuple):
    """Chains under way: each within a trajectory, after some moves."""

    trajectory: Trajectory
    warmup: Packed
    index: Any
    seed: Any


@pytree
class Nuts(FlatKernel):
    """The kernel of `nuts`."""

    step_size: Array | None
    inverse_mass: Metric | None
    target_accept: Array
    addresses: tuple[str, ...] | None = static()
    max_tree_depth: int = static()
    low_rank: int = static()

    operation: ClassVar[str] = "nuts"

    # --- As a kernel on traces ---

    def move(self, trace: Trace) -> Trace:
        """Follow a trajectory until it turns, and draw one of its states."""
        if self.step_size is None:
            raise ArgumentError(
                message(
                    "nuts got no step size",
                    needs="a step size where no warmup adapts one",
                    fix="ppl.kernels.nuts(step_size=0.1), or ppl.mcmc(program, kernel)",
                )
            )
        space = coordinates("nuts", trace, self.addresses)
        mass = 1.0 if self.inverse_mass is None else self.inverse_mass
        if not isinstance(mass, LowRank):
            mass = jnp.broadcast_to(fit("nuts", "inverse_mass", mass, space), (space.size,))
        return self._moved_from(space, self.step_size, mass)[0]

    def start(self, trace: Trace) -> PyTree:
        """Start the warmup."""
        space = coordinates("nuts", trace, self.addresses)
        z = space.vector()
        return self._warmup(jnp.stack([z, jax.grad(space.log_density)(z)]))

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Make a move; adapt while the time is that of warmup."""
        self._require_step_size(time.warmup)
        space = coordinates("nuts", trace, self.addresses)
        adapts = time.index < time.warmup
        step_size = jnp.where(adapts, memory.step_size, self._settled(memory))
        units = _units(time.index, time.warmup)
        after, end = self._moved_from(space, step_size, memory.inverse_mass, units)
        n, here = end.numbers, end.here
        stats = _stats(
            here.log_energy, n.status, n.num_steps, n.depth, n.acceptance, step_size
        )  # fmt: skip
        if time.warmup:
            learned = self._learned(memory, time.index, time.warmup, n, here)
            memory = jax.tree.map(lambda a, b: jnp.where(adapts, a, b), learned, memory)
        return Step(after, memory, stats)

    def tuned(self, memory: PyTree) -> Nuts:
        """Give the kernel with the settings that were adapted."""
        step_size, mass = self._settled(memory), memory.inverse_mass
        return dataclasses.replace(self, step_size=step_size, inverse_mass=mass)

    def _settled(self, memory: Warmup) -> Any:
        """Give the step size of a chain after its warmup, whichever was its last move there."""
        return memory.step_size if self.step_size is not None else jnp.exp(memory.mean_log_step)

    def _moved_from(
        self, space: Coordinates, step_size: Any, mass: Any, units: Any = ROUNDING
    ) -> tuple[Trace, Trajectory]:
        gradient = jax.value_and_grad(space.log_density)
        z = space.start()
        density, force = gradient(z)
        normal, uniform = dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0)
        momentum = sample("momentum", normal.expand([space.size]).to_event(1)).astype(z.dtype)

        def leaf(state: Any) -> Any:
            _, old = state
            coins = sample("coins", uniform.expand([4]).to_event(1)).astype(z.dtype)
            new = grow(gradient, old, step_size, mass, noise(momentum, coins), units)
            return new.numbers.status == 0, new

        first = True, rest(z, force, density, self.max_tree_depth)
        _, end = jax.lax.while_loop(lambda state: state[0], leaf, first)
        return space.moved(end.here.position, True), end

    def check(self, space: Unconstrained, num_warmup: int, num_chains: int) -> None:
        """Raise `ArgumentError` if settings do not fit a program, or lack what nothing adapts."""
        mass = self.inverse_mass
        if mass is not None:
            mass = mass.variance if isinstance(mass, LowRank) else mass
            fit("nuts", "inverse_mass", mass, space)
        self._require_step_size(num_warmup)

    def _require_step_size(self, num_warmup: int) -> None:
        if self.step_size is None and not num_warmup:
            raise ArgumentError(
                message(
                    "mcmc got num_warmup=0 and a kernel without a step size",
                    needs="a warmup, or a kernel that needs none",
                    fix="ppl.mcmc(program, chains.kernel, num_warmup=0) with the kernel of an "
                    "earlier run, or ppl.kernels.nuts(step_size=0.1)",
                )
            )

    # --- As one flat loop, for chains in unconstrained space, on the first axis of the state ---

    @property
    def flat_alone(self) -> bool:
        """Whether chains never learn from one another: they do not."""
        return True

    def flat_start(self, gradient: Any, position: Any, seed: Any) -> State:
        """Put chains at their positions.

        Args:
            gradient: of the log density.
            position: of shape (chain, size).
            seed: of shape (chain, *key), from which each chain draws all that it needs: a chain's
                draws do not depend on what runs beside it.
        """

        def one(position: Any) -> tuple[Trajectory, Packed]:
            density, force = gradient(position)
            known = Packed.of(self._warmup(jnp.stack([position, force])))
            return rest(position, force, density, self.max_tree_depth), known

        return State(*jax.vmap(one)(position), jnp.zeros(len(position), int), seed)

    def ahead(self, block: Any, count: int, size: int, seed: Any) -> Noise | Leaves:
        """Make what a number of leaves need, of shape (leaf, chain, *)."""
        kind = jnp.result_type(float)
        number = block * count + jnp.arange(count)

        def one(seed: Any) -> Leaves:
            key = dist.Seed.key(seed)
            momentum, coins = (rows(jax.random.fold_in(key, i), number) for i in (0, 1))
            uniform = jax.vmap(lambda words: jax.random.uniform(row_key(words), (4,), kind))
            return Leaves(momentum, uniform(coins))

        leaves = jax.vmap(one, out_axes=1)(seed)
        if len(seed) == 1:
            return leaves
        return jax.vmap(jax.vmap(lambda leaf: leaf.noise(True, size)))(leaves)

    def flat_step(self, gradient: Any, state: State, noise: Noise | Leaves, num_warmup: int) -> Any:
        """Grow every chain's trajectory by a leaf."""
        known = state.warmup

        def one(
            old: Trajectory, known: Packed, drawn: Noise | Leaves, units: Any
        ) -> tuple[Trajectory, Any]:
            if isinstance(drawn, Leaves):
                drawn = drawn.noise(old.numbers.status > 0, old.sums.shape[1])
            grown = grow(gradient, old, known.step_size, known.inverse_mass, drawn, units)
            n, here = grown.numbers, grown.here
            told = (
                here.log_density, here.log_energy, n.status, n.num_steps, n.depth, n.acceptance,
                known.step_size,
            )  # fmt: skip
            return grown, (here.position, jnp.stack(told))

        units = _units(state.index, num_warmup)
        grown, out = _each(one, state.trajectory, known, noise, units)
        done = grown.numbers.status > 0
        if num_warmup:
            learning = done & (state.index < num_warmup)

            def learn() -> Packed:
                # With chains on the last axis, a metric is fitted only if one of them asks for it.
                end = grown.numbers, jax.vmap(lambda one: one.here)(grown)
                last, (n, here) = (_moved(tree, 0, -1) for tree in (known, end))
                learned = Packed.of(self._learned(last.known, state.index, num_warmup, n, here))
                learned = jax.tree.map(lambda a, b: jnp.where(learning, a, b), learned, last)
                return _moved(learned, -1, 0)

            known = jax.lax.cond(jnp.any(learning), learn, lambda: known)
        return State(grown, known, state.index + done, state.seed), out

    @staticmethod
    def flat_done(out: Any) -> Any:
        """Tell where a chain has made a move."""
        return out[1][..., 2] > 0

    def flat_stats(self, out: Any) -> tuple[Any, dict[str, Any]]:
        """Read an output of the flat loop: positions and statistics, chains first."""
        position, told = out
        log_density, *others = jnp.moveaxis(told, -1, 0)
        return position, {"lp": log_density, **_stats(*others)}

    def flat_tuned(self, state: State) -> TraceKernel:
        """Give the kernel with the settings of the median chain."""
        # Of arrays on the host: nothing is compiled for it.
        last = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 0, -1), state.warmup)
        return typical(self, jax.tree.map(lambda x: np.moveaxis(x, -1, 0), last.known))

    def _warmup(self, place: Any) -> Warmup:
        mass = self.inverse_mass
        return warmup.start(place, self.step_size, mass, 0 if mass is not None else self.low_rank)

    def _learned(
        self, known: Warmup, index: Any, num_warmup: int, n: Numbers, here: Place
    ) -> Warmup:
        return warmup.update(
            known,
            index,
            num_warmup,
            jnp.stack([here.position, here.gradient]),
            n.acceptance / n.num_steps,
            (n.status < 2) | (n.depth > 0),
            self.target_accept,
            step_size=self.step_size is None,
            inverse_mass=self.inverse_mass is None,
        )


def _units(index: Any, num_warmup: int) -> Any:
    """Give the units in the last place that are no error, at the moves of some numbers."""
    return jnp.where(index < warmup.opening(num_warmup), ROUNDING_FAR, ROUNDING)


def _each(fun: Any, *trees: Any) -> Any:
    """Map over chains. A single one needs no `vmap`, under which both sides of a branch run."""
    if len(jax.tree.leaves(trees)[0]) > 1:
        return jax.vmap(fun)(*trees)
    return jax.tree.map(lambda x: x[None], fun(*jax.tree.map(lambda x: x[0], trees)))


def _moved(tree: Any, source: int, target: int) -> Any:
    return jax.tree.map(lambda x: jnp.moveaxis(x, source, target), tree)


def _stats(
    log_energy: Any,
    status: Any,
    num_steps: Any,
    depth: Any,
    acceptance: Any,
    step_size: Any,
) -> dict[str, Any]:
    return {
        "energy": -log_energy,
        "diverging": status == 2,
        "n_steps": num_steps.astype(int),
        "tree_depth": depth.astype(int),
        "acceptance_rate": acceptance / num_steps,
        "step_size": step_size,
    }
