"""`hmc`: Hamiltonian Monte Carlo with a fixed number of leapfrog steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.counts import count
from ppl.errors import named_keywords
from ppl.inference.coordinates import coordinates, definite, fit, one_number
from ppl.inference.dynamics import Phase, leapfrog, log_energy, momentum, phase
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
    step_size = one_number("hmc", "step_size", step_size, fix, "inverse_mass=step_sizes**2")
    if inverse_mass is not None:
        inverse_mass = definite("hmc", "inverse_mass", inverse_mass, fix)
    return HMC(
        step_size,
        inverse_mass,
        as_addresses("hmc", addresses),
        count("hmc", "num_steps", num_steps),
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
