"""`hmc`: Hamiltonian Monte Carlo with a fixed number of leapfrog steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ppl import _jax
from ppl import distributions as dist
from ppl._types import Scalar, pytree, static
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import coordinates, fit, numbers
from ppl.inference.counts import count
from ppl.inference.trace_kernel import TraceKernel, accepted, as_addresses
from ppl.semantics.weighted import Trace
from ppl.statements import sample


@named_keywords
def hmc(
    step_size: ArrayLike,
    num_steps: int,
    *,
    inverse_mass: ArrayLike | None = None,
    addresses: Sequence[str] | None = None,
) -> HMC:
    """Make the Hamiltonian Monte Carlo kernel on the continuous latents.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, for any settings, and
    is reversible. Positions are the coordinates of `ppl.unconstrain`. Discrete latents, and those
    not named, are held. A trajectory whose energy is no finite number is rejected.

    Args:
        step_size: of the leapfrog integrator, a positive number. Data, as `inverse_mass` is.
        num_steps: leapfrog steps of one move.
        inverse_mass: about the posterior's covariance in unconstrained space: a positive number,
            one for each coordinate, or a positive definite matrix; None for one.
        addresses: the latents that move; None for all continuous ones.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range, or (when called) the inverse mass has another
            dimension than the program.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Duane et al. (1987), Neal (2011).
    """
    fix = "ppl.kernels.hmc(0.1, num_steps=10)"
    step_size = numbers("hmc", "step_size", step_size, fix)
    if step_size.ndim:
        raise ArgumentError(
            message(
                f"hmc got step_size of shape {step_size.shape}",
                needs="one number",
                why="what differs between coordinates belongs to the mass",
                fix="inverse_mass=step_sizes**2, and step_size=1.0",
            )
        )
    if inverse_mass is not None:
        inverse_mass = numbers("hmc", "inverse_mass", inverse_mass, fix)
        _require_definite(inverse_mass)
    return HMC(
        step_size,
        inverse_mass,
        as_addresses("hmc", addresses),
        count("hmc", "num_steps", num_steps),
    )


def _require_definite(matrix: Any) -> None:
    if matrix.ndim < 2 or _jax.is_tracer(matrix):
        return
    matrix = np.asarray(matrix, np.float64)
    if not np.allclose(matrix, matrix.T) or np.min(np.linalg.eigvalsh(matrix)) <= 0:
        raise ArgumentError(
            message(
                f"hmc got the inverse_mass {np.array2string(matrix, threshold=9)}",
                needs="a symmetric positive definite matrix",
                why="it is the covariance of the velocity",
                fix="inverse_mass=factor @ factor.T, or a vector for a diagonal one",
            )
        )


@pytree
class HMC(TraceKernel):
    """The kernel of `hmc`."""

    step_size: Array
    inverse_mass: Array | None
    addresses: tuple[str, ...] | None = static()
    num_steps: int = static()

    operation: ClassVar[str] = "hmc"

    def move(self, trace: Trace) -> Trace:
        """Draw a momentum, follow the trajectory, and accept its end or not."""
        space = coordinates("hmc", trace, self.addresses)
        mass = 1.0 if self.inverse_mass is None else self.inverse_mass
        mass = fit("hmc", "inverse_mass", mass, space)
        noise = sample("momentum", dist.Normal(0.0, 1.0).expand([space.size]).to_event(1))
        start = space.start()
        begin = phase(space.log_density, start, momentum(mass, noise).astype(start.dtype))

        def step(state: Phase, _: Any) -> Any:
            return leapfrog(space.log_density, state, self.step_size, mass), None

        end, _ = jax.lax.scan(step, begin, length=self.num_steps)
        energy = log_energy(end, mass)
        ratio = jnp.where(jnp.isfinite(energy), energy - log_energy(begin, mass), jnp.nan)
        return space.moved(end.position, accepted(ratio))


# --- The Hamiltonian flow -----------------------------------------------------------------------


class Phase(NamedTuple):
    """A point of phase space, with the log density of its position and the gradient."""

    position: Float[Array, " size"]
    momentum: Float[Array, " size"]
    log_density: Scalar
    gradient: Float[Array, " size"]


def phase(log_density: Callable[[Any], Any], position: Any, momentum: Any) -> Phase:
    """Give the point of phase space at a position and a momentum."""
    return Phase(position, momentum, *jax.value_and_grad(log_density)(position))


def leapfrog(
    log_density: Callable[[Any], Any], state: Phase, step_size: Any, inverse_mass: Any
) -> Phase:
    """Make one leapfrog step: half a kick, a drift, half a kick.

    **Meaning.** A map of phase space that preserves volume, and is its own inverse when the
    momentum is negated before and after; so it needs no Jacobian in an acceptance ratio.

    Args:
        log_density: of the position.
        state: where to start.
        step_size: a number, negative for a step back.
        inverse_mass: a number, one for each coordinate, or a matrix.
    """
    # In the type of the position, whatever that of the settings: a loop carries it.
    kind = state.position.dtype
    step_size, inverse_mass = jnp.asarray(step_size, kind), jnp.asarray(inverse_mass, kind)
    half = state.momentum + 0.5 * step_size * state.gradient
    there = phase(log_density, state.position + step_size * velocity(inverse_mass, half), half)
    return there._replace(momentum=half + 0.5 * step_size * there.gradient)


def velocity(inverse_mass: Any, momentum: Any) -> Any:
    """Give the velocity of a momentum."""
    return inverse_mass @ momentum if jnp.ndim(inverse_mass) == 2 else inverse_mass * momentum


def momentum(inverse_mass: Any, noise: Any) -> Any:
    """Give standard normal noise the covariance of the mass: the momentum of a move."""
    if jnp.ndim(inverse_mass) < 2:
        return noise / jnp.sqrt(inverse_mass)
    root = jnp.linalg.cholesky(inverse_mass)  # W = L L', so that L'^-1 noise has covariance W^-1
    return jax.scipy.linalg.solve_triangular(root, noise, trans="T", lower=True)


def log_energy(state: Phase, inverse_mass: Any) -> Any:
    """Give minus the energy: the log density of position and momentum."""
    kinetic = 0.5 * jnp.sum(state.momentum * velocity(inverse_mass, state.momentum))
    return state.log_density - kinetic
