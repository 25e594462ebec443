"""`random_walk`: Gaussian steps in unconstrained space; `adapted_random_walk` fits their size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.coordinates import Coordinates, coordinates, fit, numbers
from ppl.inference.trace_kernel import TraceKernel, accepted, as_addresses
from ppl.semantics.population import Population
from ppl.semantics.weighted import Trace
from ppl.statements import sample


@named_keywords
def random_walk(
    scale: ArrayLike, *, addresses: Sequence[str] | None = None, num_steps: int = 1
) -> RandomWalk:
    """Make the random-walk Metropolis kernel on the continuous latents.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, for any scale, and is
    reversible. Steps are normal in the coordinates of `ppl.unconstrain`, and the Jacobian is part
    of the ratio. Discrete latents, and those not named, are held; a step on which a held site would
    come into being or go is rejected.

    Args:
        scale: of a step: a positive number, one for each coordinate, or a matrix S for steps of
            covariance S S' (a Cholesky factor). Data: it may be traced, and another value compiles
            nothing.
        addresses: the latents that move; None for all continuous ones.
        num_steps: steps of one move.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range, or (when called) the scale has another dimension
            than the program.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) an address is discrete, or no latent is continuous.

    Source: Metropolis et al. (1953).
    """
    return RandomWalk(
        numbers("random_walk", "scale", scale, "ppl.kernels.random_walk(0.5)"),
        as_addresses("random_walk", addresses),
        count("random_walk", "num_steps", num_steps),
    )


@pytree
class RandomWalk(TraceKernel):
    """The kernel of `random_walk`."""

    scale: Array
    addresses: tuple[str, ...] | None = static()
    num_steps: int = static()

    operation: ClassVar[str] = "random_walk"

    def move(self, trace: Trace) -> Trace:
        """Make `num_steps` steps, each accepted or not."""
        space = coordinates("random_walk", trace, self.addresses)
        scale = fit("random_walk", "scale", self.scale, space)

        def step(state: Any, _: Any) -> Any:
            z, density, moved = state
            noise = sample("noise", dist.Normal(0.0, 1.0).expand([space.size]).to_event(1))
            there = z + (scale @ noise if scale.ndim == 2 else scale * noise).astype(z.dtype)
            new = space.log_density(there)
            accept = accepted(jnp.where(jnp.isfinite(new), new - density, jnp.nan))
            state = jnp.where(accept, there, z), jnp.where(accept, new, density), moved | accept
            return state, None

        start = space.start()
        state = start, space.log_density(start), jnp.zeros((), bool)
        (z, _, moved), _ = jax.lax.scan(step, state, length=self.num_steps)
        return space.moved(z, moved)


# --- Steps fitted to a population ---------------------------------------------------------------

#: How many particles the prior guess of the covariance counts for, and its standard deviation
#: (those of Stan's warmup).
_PRIOR_COUNT, _PRIOR_VARIANCE = 5.0, 1e-3


@named_keywords
def adapted_random_walk(
    *, addresses: Sequence[str] | None = None, num_steps: int = 1, factor: float = 2.38
) -> AdaptedRandomWalk:
    """Make a function that fits the random walk to a population, for SMC samplers.

    **Meaning.** From a population to a `random_walk` whose steps have factor^2 / d times the
    particles' weighted covariance in unconstrained space, shrunk a little towards a diagonal. The
    kernel leaves the measure invariant whatever its scale; that the scale depends on the particles
    it moves makes SMC estimates biased by O(1 / N), and keeps them consistent.

    Args:
        addresses: as for `random_walk`.
        num_steps: as for `random_walk`.
        factor: 2.38 is optimal for normal targets of many dimensions.

    Returns:
        A function `Population -> Kernel`, to be called in a model.

    Raises:
        ArgumentError: a setting is out of range.

    Source: Roberts, Gelman and Gilks (1997) for the factor; Chopin (2002) for fitting it to the
    particles; the shrinkage is Stan's.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ArgumentError(
            message(
                f"adapted_random_walk got factor={factor!r}",
                needs="a positive number",
                fix="ppl.kernels.adapted_random_walk(factor=2.38)",
            )
        )
    return AdaptedRandomWalk(
        as_addresses("adapted_random_walk", addresses),
        count("adapted_random_walk", "num_steps", num_steps),
        float(factor),
    )


@dataclasses.dataclass(frozen=True)
class AdaptedRandomWalk:
    """The function of `adapted_random_walk`; compared by its settings."""

    addresses: tuple[str, ...] | None
    num_steps: int
    factor: float

    def __call__(self, population: Population) -> RandomWalk:
        """Fit the kernel to a population that knows its program.

        Args:
            population: the particles; choices have a leading axis of particles.
        """
        if not isinstance(population, Population) or population.program is None:
            raise ArgumentError(
                message(
                    f"adapted_random_walk got {type(population).__name__}"
                    + (" without a program" if isinstance(population, Population) else ""),
                    needs="a population that knows its program",
                    why="the program says which coordinates its latents have",
                    fix="ppl.kernels.adapted_random_walk()(population)",
                )
            )
        program = population.program
        nothing = jnp.zeros((), jnp.result_type(float))

        def one(choices: Any, present: Any) -> tuple[Any, Any]:
            trace = Trace(None, choices, nothing, {}, present, program, nothing)
            space: Coordinates = coordinates("adapted_random_walk", trace, self.addresses)
            z = space.vector()
            return z, jnp.ones(z.shape, bool) if space.exists is None else space.exists

        z, exists = jax.vmap(one)(population.choices, population.present)
        root = _root_covariance(z, exists, population.weights, population.ess)
        return RandomWalk(
            self.factor / math.sqrt(z.shape[1]) * root, self.addresses, self.num_steps
        )


def _root_covariance(z: Any, exists: Any, weights: Any, ess: Any) -> Any:
    """Give the Cholesky factor of the weighted covariance: positive whatever the weights are.

    A coordinate that does not exist is standard normal. The diagonal is shrunk towards a small
    variance and the correlations towards none, by as much as the effective sample size is small:
    in single precision a ridge alone would not keep the factor real.
    """
    weights = weights[:, None]
    used = (weights > 0) & exists
    z = jnp.where(used, z, 0.0)
    mean = jnp.sum(weights * z, 0)
    centred = jnp.sqrt(weights) * (z - mean)
    covariance = centred.T @ centred + jnp.diag(jnp.sum(jnp.where(exists, 0.0, weights), 0))
    shrink = jnp.maximum(_PRIOR_COUNT / (ess + _PRIOR_COUNT), 1e-4)
    variance = jnp.diagonal(covariance)
    inverse = jnp.where(variance > 0, jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    correlation = (1 - shrink) * covariance * inverse[:, None] * inverse
    size = correlation.shape[0]
    correlation = jnp.where(jnp.eye(size, dtype=bool), 1.0, correlation)
    deviation = jnp.sqrt((1 - shrink) * variance + shrink * _PRIOR_VARIANCE)
    return deviation[:, None] * jnp.linalg.cholesky(correlation)
