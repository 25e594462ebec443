"""Kernels for many chains in lock-step, which learn together: all but their dynamics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ppl import distributions as dist
from ppl._threefry import faster
from ppl._types import PyTree, pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference import warmup
from ppl.inference.coordinates import Coordinates, coordinates, fit, one_number, variances
from ppl.inference.lockstep import (
    HAMILTONIAN,
    SHORTEST,
    Dynamics,
    Move,
    Place,
    either,
    follow,
    lengths,
    num_steps,
)
from ppl.inference.together import SETTINGS, Learned, begin, learn
from ppl.inference.trace_kernel import FlatKernel, Step, Time, accepted, as_addresses
from ppl.inference.warmup import Steps, stepped
from ppl.semantics.unconstrained import Unconstrained
from ppl.semantics.weighted import Trace
from ppl.statements import sample

#: The fewest chains that adapt together: of fewer, one move tells too little.
FEWEST = 8
#: The part of a gain of density that the energy may be off by in the opening, lest chains creep.
_SLACK = 0.5
#: The most leapfrog steps of a move of the opening; and the step that no chain starts below.
_OPENING_STEPS, _LEAST_STEP = 4, 1e-25
#: The last of these moves, to which a first metric is fitted.
_FIRST_DRAWS = 3

K = TypeVar("K", bound="LockStep")


def configured(
    kind: type[K],
    step_size: ArrayLike | None,
    inverse_mass: ArrayLike | None,
    trajectory_length: ArrayLike | None,
    target_accept: float,
    max_num_steps: int,
    addresses: Sequence[str] | None,
) -> K:
    """Make a kernel of settings that are checked."""
    name, fix = kind.operation, _fix(kind.operation)
    if not 0 < target_accept < 1:
        raise ArgumentError(
            message(
                f"{name} got target_accept={target_accept}",
                needs="0 < target_accept < 1",
                fix=f"ppl.kernels.{name}(target_accept=0.651)",
            )
        )

    def number(label: str, setting: Any) -> Array | None:
        if setting is None:
            return None
        return one_number(name, label, setting, fix, "inverse_mass=variances")

    step = number("step_size", step_size)
    length = number("trajectory_length", trajectory_length)
    mass = None if inverse_mass is None else variances(name, "inverse_mass", inverse_mass, fix)
    target = jnp.asarray(target_accept, jnp.result_type(float))
    most = count(name, "max_num_steps", max_num_steps)
    return kind(step, mass, length, target, as_addresses(name, addresses), most)


def _fix(name: str) -> str:
    return f"ppl.kernels.{name}(step_size=0.1, trajectory_length=1.5, inverse_mass=1.0)"


# --- The kernel ---------------------------------------------------------------------------------


class Noise(NamedTuple):
    """What a move needs of each chain: standard normals, and the logarithm of a uniform."""

    momentum: Float[Array, "chain size"]
    log_uniform: Float[Array, " chain"]


class State(NamedTuple):
    """Chains after some moves, and what they have learned together."""

    place: Place
    alone: Steps
    learned: Learned
    index: Any
    seed: Any


@pytree
class LockStep(FlatKernel):
    """Moves of one length for all chains. Subclasses are final; they name themselves and a law.

    Attributes of a subclass:
        dynamics: what a trajectory follows.
        energetic: whether there is an energy whose fluctuations tell of the sampler.
        fewest: the fewest coordinates that the dynamics moves.
    """

    step_size: Array | None
    inverse_mass: Array | None
    trajectory_length: Array | None
    target_accept: Array
    addresses: tuple[str, ...] | None = static()
    max_num_steps: int = static()

    dynamics: ClassVar[Dynamics]
    energetic: ClassVar[bool]
    fewest: ClassVar[int]

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
        space = coordinates(self.operation, trace, self.addresses)
        self._require_size(space)
        mass = 1.0 if self.inverse_mass is None else self.inverse_mass
        mass = jnp.broadcast_to(fit(self.operation, "inverse_mass", mass, space), (space.size,))
        num = num_steps(self.trajectory_length, self.step_size, place, self.max_num_steps)
        normal = dist.Normal(0.0, 1.0).expand([space.size]).to_event(1)
        position = space.start()
        noise = sample("momentum", normal).astype(position.dtype)
        gradient = jax.value_and_grad(space.log_density)
        density, force = gradient(position)
        begin = Place(position, force, density)
        made = follow(gradient, begin, noise, self.step_size, mass, num, self.dynamics)
        take = accepted(made.log_ratio)
        stats = self._stats(*_told(made, take, num, self.step_size, self.trajectory_length))
        return Step(space.moved(made.end.position, take), (), stats)

    def _require_settings(self) -> None:
        if self._missing:
            raise ArgumentError(
                message(
                    f"{self.operation} got no {' and no '.join(self._missing)}",
                    needs="them where a chain moves alone, in a composition or at some addresses",
                    why="they are adapted by many chains together, each at all of its latents",
                    fix=f"{_fix(self.operation)}, or the kernel of an earlier run: chains.kernel",
                )
            )

    def _require_size(self, space: Coordinates | Unconstrained) -> None:
        if space.size < self.fewest:
            raise UnsupportedError(
                message(
                    f"{self.operation} got a program of {space.size} continuous coordinate",
                    needs=f"at least {self.fewest}",
                    why="its trajectories have one speed and turn: on a line there is nothing to "
                    "turn to",
                    fix="ppl.kernels.chees() or ppl.kernels.nuts()",
                )
            )

    # --- As one flat loop ---
    # All chains are as far as one another, so that a step of the loop is a whole move. Inside,
    # they stand on the last axis: what they do in lock-step is then one long operation.

    def check(self, space: Unconstrained, num_warmup: int, num_chains: int) -> None:
        """Raise `ArgumentError` if settings do not fit a program, or lack what nothing adapts."""
        self._require_size(space)
        if self.inverse_mass is not None:
            fit(self.operation, "inverse_mass", self.inverse_mass, space)
        if self._missing and not num_warmup:
            raise ArgumentError(
                message(
                    f"mcmc got num_warmup=0 and a kernel without {' and '.join(self._missing)}",
                    needs="a warmup, or a kernel that needs none",
                    fix="ppl.mcmc(program, chains.kernel, num_warmup=0) with the kernel of an "
                    f"earlier run, or {_fix(self.operation)}",
                )
            )
        open_ = self._missing + ["inverse_mass"] * (self.inverse_mass is None)
        if open_ and num_warmup and num_chains < FEWEST:
            raise ArgumentError(
                message(
                    f"mcmc got num_chains={num_chains} and {self.operation}, which is to adapt "
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
        # In a parabola or an exponential, where it is high, of the size of the period there.
        high = jnp.maximum(jnp.abs(density), len(force))
        scaled = jnp.sqrt(learned.inverse_mass)[:, None] * force
        most = jnp.maximum(jnp.max(jnp.abs(scaled), 0), 1.0)  # whose square may be too large
        period = jnp.sqrt(high / jnp.sum((scaled / most) ** 2, 0)) / most
        alone = Steps.start(jnp.clip(period, _LEAST_STEP, learned.step_size))
        return State(Place(position.T, force, density), alone, learned, jnp.zeros((), int), seed)

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
        known, index, most, alone = state.learned, state.index, self.max_num_steps, state.alone
        if num_warmup:  # steps that are much too small at first should not cost much
            most = jnp.where(index < num_warmup, jnp.minimum(most, index + 2), most)
        step, dynamics = known.step_size, self.dynamics
        num = num_steps(known.trajectory_length, step, lengths(index), most)
        opening, slack = self._opening(num_warmup), 0.0
        if opening:
            far = index < opening
            slack = jnp.where(far, _SLACK, 0.0)
            step = jnp.where(far, jnp.exp(alone.log_step), step)
            num = jnp.where(far, 1 + (_OPENING_STEPS * lengths(index)).astype(int), num)
            if dynamics is not HAMILTONIAN:
                dynamics = either(far, HAMILTONIAN, dynamics)
        noises, mass = noise.momentum.T, known.inverse_mass
        made = follow(_of_all(gradient), state.place, noises, step, mass, num, dynamics, slack)
        take = noise.log_uniform < made.log_ratio
        place = jax.tree.map(lambda new, old: jnp.where(take, new, old), made.end, made.begin)
        told = _told(made, take, num, step, known.trajectory_length)
        kind = place.log_density.dtype
        told = [jnp.broadcast_to(x, take.shape).astype(kind) for x in (place.log_density, *told)]
        if num_warmup:
            adapts = {name: getattr(self, name) is None for name in SETTINGS}

            def learned() -> Learned:
                new = learn(
                    known, index, num_warmup, made, place, num, self.target_accept,
                    most / (2 - SHORTEST), adapts,
                )  # fmt: skip
                begun = begin(known, new, jnp.median(alone.mean_log_step), adapts)
                return jax.tree.map(lambda a, b: jnp.where(index < opening, a, b), begun, new)

            learning = (index >= opening - _FIRST_DRAWS) & (index < num_warmup)
            known = jax.lax.cond(learning, learned, lambda: known)
        if opening:
            alone = stepped(alone, False, made.rate, self.target_accept)
        state = State(place, alone, known, index + 1, state.seed)
        return state, (place.position.T, jnp.stack(told, -1))

    def _opening(self, num_warmup: int) -> int:
        """Give the moves in which chains have steps of their own, and follow Hamilton's law.

        One that is far away needs steps that would stop all others; where it needs them, it cannot
        tell of the posterior's scale; and the energy that it loses a speed that is constant hides.
        """
        if self.step_size is not None:
            return 0
        return warmup.opening(num_warmup)

    @staticmethod
    def flat_done(out: Any) -> Any:
        """Tell that every chain has made a move."""
        return out[1][..., 3] > 0  # it has steps

    def flat_stats(self, out: Any) -> tuple[Any, dict[str, Any]]:
        """Read an output of the flat loop: positions and statistics, chains first."""
        position, told = out
        log_density, *others = jnp.moveaxis(told, -1, 0)
        return position, {"lp": log_density, **self._stats(*others)}

    def _stats(
        self, log_energy: Any, diverging: Any, num: Any, rate: Any, step: Any, length: Any
    ) -> dict[str, Any]:
        return {
            **({"energy": -log_energy} if self.energetic else {}),
            "diverging": diverging > 0,
            "n_steps": num.astype(int),
            "acceptance_rate": rate,
            "step_size": step,
            "trajectory_length": length,
        }

    def flat_tuned(self, state: State) -> LockStep:
        """Give the kernel with what the chains have learned."""
        found = {name: getattr(state.learned, name) for name in SETTINGS}
        return dataclasses.replace(self, **found)


def _of_all(gradient: Any) -> Any:
    return jax.vmap(gradient, in_axes=-1, out_axes=(0, -1))


def _told(made: Move, take: Any, num: Any, step_size: Any, trajectory_length: Any) -> Any:
    energy = jnp.where(take, made.log_energies[1], made.log_energies[0])
    diverging = made.log_ratio == -jnp.inf
    return energy, diverging, num, made.rate, step_size, trajectory_length
