"""The No-U-Turn sampler: as a kernel on traces, and as one flat loop for many chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ppl import distributions as dist
from ppl._threefry import faster
from ppl._types import PyTree, pytree, static
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference import warmup
from ppl.inference.coordinates import Coordinates, coordinates, fit, numbers
from ppl.inference.trace_kernel import Step, Time, TraceKernel, as_addresses
from ppl.inference.trajectory import Numbers, Trajectory, begin, grow
from ppl.inference.warmup import Warmup
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
    addresses: Sequence[str] | None = None,
) -> Nuts:
    """Make the No-U-Turn kernel on the continuous latents.

    **Meaning.** With its step size and metric fixed, as they are after warmup, it leaves the
    program's measure on choices invariant. Positions are the coordinates of `ppl.unconstrain`.
    Discrete latents, and those not named, are held.

    Args:
        step_size: of the leapfrog integrator; None adapts it in the warmup.
        inverse_mass: about the posterior's variances in unconstrained space: one number, or one for
            each coordinate; None adapts it in the warmup.
        target_accept: the mean acceptance statistic that the step size is tuned to.
        max_tree_depth: at most 2 ** max_tree_depth - 1 gradient evaluations a move.
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
    names, target = as_addresses("nuts", addresses), float(target_accept)
    step = None if step_size is None else _setting("step_size", step_size, 0)
    mass = None if inverse_mass is None else _setting("inverse_mass", inverse_mass, 1)
    return Nuts(step, mass, names, target, int(max_tree_depth))


def _setting(name: str, setting: Any, most: int) -> Array:
    fix = "ppl.kernels.nuts(step_size=0.1, inverse_mass=1.0)"
    array = numbers("nuts", name, setting, fix)
    if array.ndim > most:
        raise ArgumentError(
            message(
                f"nuts got {name} of shape {array.shape}",
                needs="one number" + (", or one for each coordinate" if most else ""),
                fix=fix,
            )
        )
    return array


#: The block of random numbers from which chains start; no run has so many.
_FIRST = 2**31 - 1


class State(NamedTuple):
    """Chains under way: each within a trajectory, after some moves."""

    trajectory: Trajectory
    warmup: Warmup
    index: Any
    seed: Any


@pytree
class Nuts(TraceKernel):
    """The kernel of `nuts`."""

    step_size: Array | None
    inverse_mass: Array | None
    addresses: tuple[str, ...] | None = static()
    target_accept: float = static()
    max_tree_depth: int = static()

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
        mass = jnp.broadcast_to(fit("nuts", "inverse_mass", mass, space), (space.size,))
        return self._moved_from(space, self.step_size, mass)[0]

    def start(self, trace: Trace) -> PyTree:
        """Start the warmup."""
        space = coordinates("nuts", trace, self.addresses)
        z = space.vector()
        return self._warmup(jnp.stack([z, jax.grad(space.log_density)(z)]))

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Make a move; adapt while the time is that of warmup."""
        space = coordinates("nuts", trace, self.addresses)
        after, end = self._moved_from(space, memory.step_size, memory.inverse_mass)
        n = Numbers(*end.numbers)
        if time.warmup:
            learned = self._learned(memory, time.index, time.warmup, end)
            adapts = time.index < time.warmup
            memory = jax.tree.map(lambda a, b: jnp.where(adapts, a, b), learned, memory)
        return Step(after, memory, _stats(n, memory.step_size))

    def tuned(self, memory: PyTree) -> Nuts:
        """Give the kernel with the settings that were adapted."""
        return dataclasses.replace(
            self, step_size=memory.step_size, inverse_mass=memory.inverse_mass
        )

    def _moved_from(
        self, space: Coordinates, step_size: Any, mass: Any
    ) -> tuple[Trace, Trajectory]:
        gradient = jax.value_and_grad(space.log_density)
        z = space.start()
        density, force = gradient(z)
        noise = sample("momentum", dist.Normal(0.0, 1.0).expand([space.size]).to_event(1))
        noise = noise.astype(z.dtype) / jnp.sqrt(mass)
        coin = sample("direction", dist.Uniform(0.0, 1.0))
        first = begin(z, force, density, noise, mass, self.max_tree_depth, coin)

        def leaf(trajectory: Trajectory) -> Trajectory:
            coins = sample("coins", dist.Uniform(0.0, 1.0).expand([3]).to_event(1))
            return grow(gradient, trajectory, step_size, mass, coins)

        end = jax.lax.while_loop(lambda t: Numbers(*t.numbers).finished == 0, leaf, first)
        return space.moved(end.chosen[0], True), end

    def check(self, space: Unconstrained, num_warmup: int) -> None:
        """Raise `ArgumentError` if settings do not fit a program, or lack what nothing adapts."""
        if self.inverse_mass is not None:
            fit("nuts", "inverse_mass", self.inverse_mass, space)
        if self.step_size is None and not num_warmup:
            raise ArgumentError(
                message(
                    "mcmc got num_warmup=0 and a kernel without a step size",
                    needs="a warmup, or a kernel that needs none",
                    fix="ppl.mcmc(program, chains.kernel, num_warmup=0) with the kernel of an "
                    "earlier run, or ppl.kernels.nuts(step_size=0.1)",
                )
            )

    # --- As one flat loop, for chains in unconstrained space that stand on the last axis ---

    def flat_start(self, gradient: Any, position: Any, seed: Any) -> State:
        """Put chains at their positions.

        Args:
            gradient: of the log density.
            position: of shape (size, chain).
            seed: of shape (chain, *key), from which each chain draws all that it needs: a chain's
                draws do not depend on what runs beside it.
        """
        density, force = gradient(position)
        known = self._warmup(jnp.stack([position, force]))
        noise = self.ahead(_FIRST, 1, position.shape[0], seed)
        trajectory = begin(
            position,
            force,
            density,
            noise.momentum[0].astype(position.dtype) / jnp.sqrt(known.inverse_mass),
            known.inverse_mass,
            self.max_tree_depth,
            noise.coins[0][0],
        )
        return State(trajectory, known, jnp.zeros(position.shape[-1], int), seed)

    def ahead(self, block: Any, count: int, size: int, seed: Any) -> Noise:
        """Make what a number of leaves need of normal and uniform numbers."""

        def one(seed: Any) -> Any:
            key = faster(jax.random.fold_in(jax.random.wrap_key_data(seed), block))
            kind = jnp.result_type(float)
            momentum = jax.random.normal(jax.random.fold_in(key, 0), (count, size), kind)
            return momentum, jax.random.uniform(jax.random.fold_in(key, 1), (count, 3), kind)

        return Noise(*jax.vmap(one, out_axes=-1)(seed))

    def flat_step(self, gradient: Any, state: State, noise: Noise, num_warmup: int) -> Any:
        """Grow every chain's trajectory by a leaf; where it is finished, begin the next."""
        known = state.warmup
        grown = grow(gradient, state.trajectory, known.step_size, known.inverse_mass, noise.coins)
        n = Numbers(*grown.numbers)
        done = n.finished > 0
        out = grown.chosen[0].T, grown.numbers.T, known.step_size
        if num_warmup:
            learning = done & (state.index < num_warmup)

            def learn() -> Warmup:
                learned = self._learned(known, state.index, num_warmup, grown)
                return jax.tree.map(lambda a, b: jnp.where(learning, a, b), learned, known)

            known = jax.lax.cond(jnp.any(learning), learn, lambda: known)
        mass = known.inverse_mass
        position, force = grown.chosen
        fresh = begin(
            position, force, n.log_density, noise.momentum / jnp.sqrt(mass), mass,
            self.max_tree_depth, noise.coins[0],
        )  # fmt: skip
        trajectory = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, grown)
        return State(trajectory, known, state.index + done, state.seed), (done, out)

    def flat_stats(self, out: Any) -> tuple[Any, dict[str, Any]]:
        """Read an output of the flat loop: positions and statistics, chains first."""
        position, values, step_size = out
        return position, _stats(Numbers(*values.T), step_size)

    def _warmup(self, place: Any) -> Warmup:
        mass = self.inverse_mass
        if mass is not None and mass.ndim:
            mass = mass.reshape(-1, *[1] * (place.ndim - 2))
        return warmup.start(place, self.step_size, mass)

    def _learned(self, known: Warmup, index: Any, num_warmup: int, end: Trajectory) -> Warmup:
        n = Numbers(*end.numbers)
        return warmup.update(
            known,
            index,
            num_warmup,
            end.chosen,
            n.acceptance / n.num_steps,
            (n.diverging == 0) | (n.depth > 0),
            self.target_accept,
            step_size=self.step_size is None,
            inverse_mass=self.inverse_mass is None,
        )


class Noise(NamedTuple):
    """What leaves need: a momentum each, should one begin a trajectory, and three uniforms."""

    momentum: Float[Array, "leaf size chain"]
    coins: Float[Array, "leaf 3 chain"]


def _stats(n: Numbers, step_size: Any) -> dict[str, Any]:
    return {
        "lp": n.log_density,
        "energy": -n.chosen_energy,
        "diverging": n.diverging > 0,
        "n_steps": n.num_steps.astype(int),
        "tree_depth": n.depth.astype(int),
        "acceptance_rate": n.acceptance / n.num_steps,
        "step_size": step_size,
    }
