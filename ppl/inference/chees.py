"""`chees`: Hamiltonian Monte Carlo for many chains, which learn together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import ArrayLike

from ppl._types import pytree
from ppl.errors import named_keywords
from ppl.inference.lockstep import HAMILTONIAN, Dynamics
from ppl.inference.many import LockStep, configured


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
    Acceptance statistics leave out what rounding alone makes of an energy, as those of
    `ppl.kernels.nuts` do.

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
    settings = step_size, inverse_mass, trajectory_length
    return configured(Chees, *settings, target_accept, max_num_steps, addresses)


@pytree
class Chees(LockStep):
    """The kernel of `chees`."""

    operation: ClassVar[str] = "chees"
    dynamics: ClassVar[Dynamics] = HAMILTONIAN
    energetic: ClassVar[bool] = True
    fewest: ClassVar[int] = 1
