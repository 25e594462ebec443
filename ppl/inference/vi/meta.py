"""What estimates the density of a guide that draws auxiliaries: meta-inference.

A method is given a program whose latents are the auxiliaries and whose mass is the guide's density,
and auxiliaries that the guide drew. It draws more, and estimates the mass Z so that 1 / estimate is
unbiased for 1 / Z: the reciprocal of a conditional method, one that goes around a draw from the
normalised measure itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ppl._types import Choices, Scalar, pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, UnsupportedError, message, named_keywords
from ppl.inference.conditional import ConditionalSMC
from ppl.inference.moving import require_kernel
from ppl.program import Program
from ppl.semantics.kernel import Kernel
from ppl.semantics.tempering import Tempered, schedule
from ppl.semantics.weighted import trace_of


@pytree
class Annealing:
    """The method of `annealing`."""

    kernel: Kernel
    temperatures: Any
    num_moves: int = static()

    def log_mass(self, posterior: Program, choices: Choices) -> Scalar:
        """Go from the given choices down to a draw without scores, and add up what is left out."""
        family = Tempered(posterior)

        def down(choices: Any, temperature: Any) -> Any:
            program = family.at(temperature)

            def move(choices: Any, _: Any) -> Any:
                return self.kernel(trace_of(program, choices)).choices, None

            if self.num_moves == 1:
                choices, _ = move(choices, None)
            else:
                choices, _ = jax.lax.scan(move, choices, length=self.num_moves)
            return choices, family.log_likelihood(trace_of(program, choices))

        choices = {a: jnp.asarray(x, posterior.sites[a].dtype) for a, x in choices.items()}
        temperatures = jnp.asarray(self.temperatures, jnp.result_type(float))
        steps = jnp.diff(temperatures, prepend=0.0)
        _, found = jax.lax.scan(down, choices, temperatures, reverse=True)
        return jnp.sum(steps * found)


@named_keywords
def annealing(kernel: Kernel, temperatures: ArrayLike, num_moves: int = 1) -> Annealing:
    """Estimate the density of a guide by a Markov chain from what it drew, for `ppl.vi.marginal`.

    **Meaning.** From the guide's auxiliaries, which have the law that is looked for, the chain goes
    down through powers of the guide's density of x given them, to their law before x is known:
    annealed importance sampling backwards, whose reciprocal is unbiased for 1 / q(x). The more
    temperatures, the closer the estimate is.

    Args:
        kernel: leaves the program of the auxiliaries, with its scores to any power, invariant
            (`ppl.check.invariant` tells); it need not be reversible.
        temperatures: increasing powers, above 0 and up to 1.
        num_moves: how often the kernel is applied at each.

    Raises:
        ArgumentError: the kernel is none, or a setting is out of range.

    Source: Neal (2001); Grosse, Ghahramani and Adams (2015), who go from exact draws backwards.
    """
    require_kernel("vi.annealing", kernel, isinstance(kernel, Kernel))
    values = schedule("vi.annealing", temperatures)
    return Annealing(kernel, values, count("vi.annealing", "num_moves", num_moves))


Method = Annealing | ConditionalSMC


def require_method(method: Any) -> None:
    """Raise if this cannot estimate a guide's density."""
    if not isinstance(method, Method):
        raise ArgumentError(
            message(
                f"vi.marginal got method={method!r}",
                needs="ppl.kernels.conditional_smc, ppl.vi.annealing, or None for importance "
                "sampling",
                why="the reciprocal of its estimate has to be unbiased",
                fix="method=ppl.kernels.conditional_smc(20)",
            )
        )
    if isinstance(method, ConditionalSMC) and (
        method.ancestor_sampling or method.backward_sampling or method.addresses is not None
    ):
        raise UnsupportedError(
            message(
                "vi.marginal got a conditional_smc with addresses or sampling of ancestors",
                needs="one that redraws all auxiliaries around those that the guide drew",
                why="only the estimate of the density is used, not the new auxiliaries",
                fix="method=ppl.kernels.conditional_smc(num_particles, ess_threshold=0.5)",
            )
        )
