"""`chees`: Hamiltonian Monte Carlo for many chains, which learn together."""

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
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import coordinates, fit, one_number, variances
from ppl.inference.lockstep import SHORTEST, Move, Place, follow, lengths, num_steps
from ppl.inference.together import SETTINGS, Learned, learn
from ppl.inference.trace_kernel import FlatKernel, Step, Time, accepted, as_addresses
from ppl.semantics.unconstrained import Unconstrained
from ppl.semantics.weighted import Trace
from ppl.statements import sample

#: The fewest chains that adapt together: of fewer, one move tells too little.
FEWEST = 8

_FIX = "ppl.kernels.chees(step_size=0.1, trajectory_length=1.5, inverse_mass=1.0)"


@named_keywords
def chees(
    *,
    step_size: ArrayLike | None = None,
    inverse_mass: ArrayLike | None = None,
    trajectory_length: ArrayLike | None = None,
    target_accept: float = 0.651,
    max_num_steps: int = 1000,
    addresses: Sequence[str] | None = None,
) -> Chees:
    """Make the kernel for hundreds of chains: Hamiltonian Monte Carlo, its chains in lock-step.

    **Meaning.** With step size, metric and trajectory length fixed, as they are after warmup, it
    leaves the program's measure on choices invariant. Positions are the coordinates of
    `ppl.unconstrain`. Discrete latents, and those not named, are held. A trajectory whose energy is
    no finite number, or off by more than 1000, is rejected, and called divergent.

    All chains make a move of the same number of leapfrog steps: no chain waits, and an accelerator
    is always full. In the warmup they learn from one another, so what a chain draws depends on all
    of them; after it on its own seed, and on the lengths of the moves, a fixed sequence.

    Args:
        step_size: of the leapfrog integrator; None adapts it in the warmup.
        inverse_mass: about the posterior's variances in unconstrained space: one number, or one for
            each coordinate; None adapts it in the warmup, and is one without.
        trajectory_length: the mean length of moves, in the time of the dynamics; a move's length
            lies between half of it and half as much again. None adapts it in the warmup.
        target_accept: the harmonic mean, over chains, of acceptance probabilities that the step
            size is tuned to. The plain mean is larger, from 0.75 to 0.95.
        max_num_steps: at most so many gradient evaluations a move.
        addresses: the latents that move; None for all continuous ones. Those named adapt nothing,
            nor does the kernel within a composition: use `Chains.kernel` of an earlier run.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range; or (when called) one is missing and there is no
            warmup, or there are fewer than 8 chains to adapt it, or the inverse mass has another
            dimension than the program.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Hoffman, Radul and Sountsov (2021), An adaptive MCMC scheme for setting trajectory
    lengths in Hamiltonian Monte Carlo; deviations in `ppl.inference.together`. Lengths are spread
    over half as wide a range, which gives more effective draws of squares a gradient.
    """
    if not 0 < target_accept < 1:
        raise ArgumentError(
            message(
                f"chees got target_accept={target_accept}",
                needs="0 < target_accept < 1",
                fix="ppl.kernels.chees(target_accept=0.651)",
            )
        )
    step = _number("step_size", step_size)
    length = _number("trajectory_length", trajectory_length)
    mass = None if inverse_mass is None else variances("chees", "inverse_mass", inverse_mass, _FIX)
    target = jnp.asarray(target_accept, jnp.result_type(float))
    most = count("chees", "max_num_steps", max_num_steps)
    return Chees(step, mass, length, target, as_addresses("chees", addresses), most)


def _number(name: str, setting: Any) -> Array | None:
    if setting is None:
        return None
    return one_number("chees", name, setting, _FIX, "inverse_mass=variances")


# --- The kernel ---------------------------------------------------------------------------------


class Noise(NamedTuple):
    """What a move needs of each chain: standard normals, and the logarithm of a uniform."""

    momentum: Float[Array, "chain size"]
    log_uniform: Float[Array, " chain"]


class State(NamedTuple):
    """Chains after some moves, and what they have learned together."""

    place: Place
    learned: Learned
    index: Any
    seed: Any


@pytree
class Chees(FlatKernel):
    """The kernel of `chees`."""

    step_size: Array | None
    inverse_mass: Array | None
    trajectory_length: Array | None
    target_accept: Array
    addresses: tuple[str, ...] | None = static()
    max_num_steps: int = static()

    operation: ClassVar[str] = "chees"

    @property
    def _missing(self) -> list[str]:
        """Name the settings without which there is no move."""
        names = "step_size", "trajectory_length"
        return [name for name in names if getattr(self, name) is None]

    # --- On traces ---

    def move(self, trace: Trace) -> Trace:
        """Follow a trajectory of random length, and accept its end or not."""
        place = sample("length", dist.Uniform(0.0, 1.0))
        return self._stepped(trace, place).trace

    def start(self, trace: Trace) -> PyTree:
        """Remember nothing: a single chain adapts nothing."""
        self._require_settings()
        return ()

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Make a move of the length that its number has."""
        return self._stepped(trace, lengths(time.index))

    def _stepped(self, trace: Trace, place: Any) -> Step:
        self._require_settings()
        space = coordinates("chees", trace, self.addresses)
        mass = 1.0 if self.inverse_mass is None else self.inverse_mass
        mass = jnp.broadcast_to(fit("chees", "inverse_mass", mass, space), (space.size,))
        num = num_steps(self.trajectory_length, self.step_size, place, self.max_num_steps)
        normal = dist.Normal(0.0, 1.0).expand([space.size]).to_event(1)
        position = space.start()
        noise = sample("momentum", normal).astype(position.dtype)
        gradient = jax.value_and_grad(space.log_density)
        density, force = gradient(position)
        begin = Place(position, force, density)
        made = follow(gradient, begin, noise, self.step_size, mass, num)
        take = accepted(made.log_ratio)
        stats = _stats(*_told(made, take, num, self.step_size, self.trajectory_length))
        return Step(space.moved(made.end.position, take), (), stats)

    def _require_settings(self) -> None:
        if self._missing:
            raise ArgumentError(
                message(
                    f"chees got no {' and no '.join(self._missing)}",
                    needs="them where a chain moves alone, in a composition or at some addresses",
                    why="they are adapted by many chains together, each at all of its latents",
                    fix=f"{_FIX}, or the kernel of an earlier run: chains.kernel",
                )
            )

    # --- As one flat loop ---
    # All chains are as far as one another, so that a step of the loop is a whole move. Inside,
    # they stand on the last axis: what they do in lock-step is then one long operation.

    def check(self, space: Unconstrained, num_warmup: int, num_chains: int) -> None:
        """Raise `ArgumentError` if settings do not fit a program, or lack what nothing adapts."""
        if self.inverse_mass is not None:
            fit("chees", "inverse_mass", self.inverse_mass, space)
        if self._missing and not num_warmup:
            raise ArgumentError(
                message(
                    f"mcmc got num_warmup=0 and a kernel without {' and '.join(self._missing)}",
                    needs="a warmup, or a kernel that needs none",
                    fix="ppl.mcmc(program, chains.kernel, num_warmup=0) with the kernel of an "
                    f"earlier run, or {_FIX}",
                )
            )
        open_ = self._missing + ["inverse_mass"] * (self.inverse_mass is None)
        if open_ and num_warmup and num_chains < FEWEST:
            raise ArgumentError(
                message(
                    f"mcmc got num_chains={num_chains} and chees, which is to adapt "
                    f"{', '.join(open_)}",
                    needs=f"at least {FEWEST} chains, or a kernel with all of its settings",
                    why="it learns from many chains, which tell of the posterior at every move",
                    fix="ppl.mcmc(program, ppl.kernels.nuts()), whose chains learn each for "
                    "itself, or num_chains=256",
                )
            )

    def flat_start(self, gradient: Any, position: Any, seed: Any) -> State:
        """Put chains at their positions."""
        density, force = _of_all(gradient)(position.T)
        settings = self.step_size, self.trajectory_length, self.inverse_mass
        learned = Learned.start(position[0], *settings)
        return State(Place(position.T, force, density), learned, jnp.zeros((), int), seed)

    def ahead(self, block: Any, count: int, size: int, seed: Any) -> Noise:
        """Make what a number of moves need, of shape (move, chain, *)."""

        def one(seed: Any) -> Any:
            key = faster(jax.random.fold_in(dist.Seed.key(seed), block))
            kind = jnp.result_type(float)
            momentum = jax.random.normal(jax.random.fold_in(key, 0), (count, size), kind)
            return momentum, jax.random.uniform(jax.random.fold_in(key, 1), (count,), kind)

        momentum, uniform = jax.vmap(one, out_axes=1)(seed)
        return Noise(momentum, jnp.log(uniform))

    def flat_step(self, gradient: Any, state: State, noise: Noise, num_warmup: int) -> Any:
        """Make a move of every chain."""
        known, index, most = state.learned, state.index, self.max_num_steps
        if num_warmup:  # steps that are much too small at first should not cost much
            most = jnp.where(index < num_warmup, jnp.minimum(most, index + 2), most)
        settings = known.step_size, known.inverse_mass
        num = num_steps(known.trajectory_length, known.step_size, lengths(index), most)
        made = follow(_of_all(gradient), state.place, noise.momentum.T, *settings, num)
        take = noise.log_uniform < made.log_ratio
        place = jax.tree.map(lambda new, old: jnp.where(take, new, old), made.end, made.begin)
        told = _told(made, take, num, known.step_size, known.trajectory_length)
        kind = place.log_density.dtype
        told = [jnp.broadcast_to(x, take.shape).astype(kind) for x in (place.log_density, *told)]
        if num_warmup:
            adapts = {name: getattr(self, name) is None for name in SETTINGS}
            known = jax.lax.cond(
                index < num_warmup,
                lambda: learn(
                    known, index, num_warmup, made, place, num, self.target_accept,
                    most / (2 - SHORTEST), adapts,
                ),
                lambda: known,
            )  # fmt: skip
        return State(place, known, index + 1, state.seed), (place.position.T, jnp.stack(told, -1))

    @staticmethod
    def flat_done(out: Any) -> Any:
        """Tell that every chain has made a move."""
        return out[1][..., 3] > 0  # it has steps

    @staticmethod
    def flat_stats(out: Any) -> tuple[Any, dict[str, Any]]:
        """Read an output of the flat loop: positions and statistics, chains first."""
        position, told = out
        log_density, *others = jnp.moveaxis(told, -1, 0)
        return position, {"lp": log_density, **_stats(*others)}

    def flat_tuned(self, state: State) -> Chees:
        """Give the kernel with what the chains have learned."""
        found = {name: getattr(state.learned, name) for name in SETTINGS}
        return dataclasses.replace(self, **found)


def _of_all(gradient: Any) -> Any:
    return jax.vmap(gradient, in_axes=-1, out_axes=(0, -1))


def _told(made: Move, take: Any, num: Any, step_size: Any, trajectory_length: Any) -> Any:
    energy = jnp.where(take, made.log_energies[1], made.log_energies[0])
    diverging = made.log_ratio == -jnp.inf
    return energy, diverging, num, made.rate, step_size, trajectory_length


def _stats(
    log_energy: Any, diverging: Any, num: Any, rate: Any, step_size: Any, trajectory_length: Any
) -> dict[str, Any]:
    return {
        "energy": -log_energy,
        "diverging": diverging > 0,
        "n_steps": num.astype(int),
        "acceptance_rate": rate,
        "step_size": step_size,
        "trajectory_length": trajectory_length,
    }
