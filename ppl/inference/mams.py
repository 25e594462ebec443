"""`mams`: Metropolis-adjusted microcanonical sampling, for many chains, which learn together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import ArrayLike

from ppl._types import pytree
from ppl.errors import named_keywords
from ppl.inference.isokinetic import MICROCANONICAL
from ppl.inference.lockstep import Dynamics
from ppl.inference.many import LockStep, configured


@named_keywords
def mams(
    *,
    step_size: ArrayLike | None = None,
    inverse_mass: ArrayLike | None = None,
    trajectory_length: ArrayLike | None = None,
    target_accept: float = 0.651,
    max_num_steps: int = 1000,
    addresses: Sequence[str] | None = None,
) -> MAMS:
    """Make the microcanonical kernel for many chains, which move in lock-step.

    **Meaning.** With step size, metric and trajectory length fixed, as they are after warmup, it
    leaves the program's measure on choices invariant. Positions are the coordinates of
    `ppl.unconstrain`. Discrete latents, and those not named, are held. A move draws a direction,
    follows a trajectory of constant speed that the gradient turns, and accepts its end or not: the
    acceptance ratio has the volume that the turns contract. A trajectory whose ratio is no finite
    number, or below exp(-1000), is rejected, and called divergent.
    Acceptance statistics leave out what rounding alone makes of an energy, as those of
    `ppl.kernels.nuts` do.

    As the speed is constant, a gradient that is large somewhere costs no small steps everywhere:
    there are more effective draws a gradient than by `ppl.kernels.chees`, whose settings, units and
    warmup it shares, and than by `ppl.kernels.nuts`. Statistics have no energy: directions carry
    none from move to move.

    Args:
        step_size: of the leapfrog integrator; None adapts it in the warmup.
        inverse_mass: about the posterior's variances in unconstrained space: one number, or one for
            each coordinate; None adapts it in the warmup, and is one without.
        trajectory_length: the mean length of moves, in the time in which a coordinate moves by its
            standard deviation; a move's length lies between half of it and half as much again.
            None adapts it in the warmup.
        target_accept: the harmonic mean, over chains, of acceptance probabilities that the step
            size is tuned to. The plain mean is larger.
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
        UnsupportedError: (when called) an address is discrete, or the latents that move have fewer
            than two continuous coordinates.

    Source: Robnik, Cohn-Gordon and Seljak (2025), Metropolis adjusted microcanonical Hamiltonian
    Monte Carlo. Deviations: the length is adapted by the criterion of `ppl.kernels.chees`, and
    spread over a range; the metric is that of the gradients too.
    """
    settings = step_size, inverse_mass, trajectory_length
    return configured(MAMS, *settings, target_accept, max_num_steps, addresses)


@pytree
class MAMS(LockStep):
    """The kernel of `mams`."""

    operation: ClassVar[str] = "mams"
    dynamics: ClassVar[Dynamics] = MICROCANONICAL
    energetic: ClassVar[bool] = False
    fewest: ClassVar[int] = 2
