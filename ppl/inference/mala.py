"""`mala`: the Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ppl import distributions as dist
from ppl._types import PyTree, pytree, static
from ppl.errors import named_keywords
from ppl.inference.coordinates import coordinates, definite, fit, one_number
from ppl.inference.dynamics import leapfrog, log_energy, momentum, phase
from ppl.inference.trace_kernel import Step, Time, TraceKernel, accepted, as_addresses
from ppl.semantics.weighted import Trace
from ppl.statements import sample


@named_keywords
def mala(
    step_size: ArrayLike,
    *,
    inverse_mass: ArrayLike | None = None,
    addresses: Sequence[str] | None = None,
) -> MALA:
    """Make the Metropolis-adjusted Langevin kernel on the continuous latents.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, for any settings, and
    is reversible. In the coordinates of `ppl.unconstrain`, with log density f, it proposes

        z + step_size * inverse_mass @ grad f(z) + sqrt(2 * step_size) * noise

    with normal noise of covariance `inverse_mass`, independent in every coordinate if that is
    diagonal, and accepts by Metropolis and Hastings. Discrete latents, and those not named, are
    held. A proposal of no finite energy is rejected.

    Args:
        step_size: of the discretised diffusion, a positive number. Data, as `inverse_mass` is.
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

    Source: Roberts and Tweedie (1996). The step size is that of BlackJAX: a leapfrog step of
    `hmc(sqrt(2 * step_size), 1)` is the same move.
    """
    fix = "ppl.kernels.mala(0.1)"
    step_size = one_number("mala", "step_size", step_size, fix, "inverse_mass=step_sizes")
    if inverse_mass is not None:
        inverse_mass = definite("mala", "inverse_mass", inverse_mass, fix)
    return MALA(step_size, inverse_mass, as_addresses("mala", addresses))


@pytree
class MALA(TraceKernel):
    """The kernel of `mala`."""

    step_size: Array
    inverse_mass: Array | None
    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "mala"

    def move(self, trace: Trace) -> Trace:
        """Follow the gradient with noise, and accept or not."""
        return self.step(trace, (), Time(0, 0)).trace

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Move, and report the probability of acceptance."""
        space = coordinates("mala", trace, self.addresses)
        mass = 1.0 if self.inverse_mass is None else self.inverse_mass
        mass = fit("mala", "inverse_mass", mass, space)
        noise = sample("noise", dist.Normal(0.0, 1.0).expand([space.size]).to_event(1))
        start = space.start()
        # The two densities of the proposals are those of the noise: momenta of a leapfrog step.
        begin = phase(space.log_density, start, momentum(mass, noise).astype(start.dtype))
        end = leapfrog(space.log_density, begin, jnp.sqrt(2 * self.step_size), mass)
        energy = log_energy(end, mass)
        ratio = jnp.where(jnp.isfinite(energy), energy - log_energy(begin, mass), -jnp.inf)
        ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
        stats = {"acceptance_rate": jnp.exp(jnp.minimum(0.0, ratio))}
        return Step(space.moved(end.position, accepted(ratio)), memory, stats)
