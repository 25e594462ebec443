"""The No-U-Turn sampler. In this version the transition and its adaptation are NumPyro's."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppl._types import PyTree
from ppl.distributions import Seed
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.kernel import Move
from ppl.semantics.unconstrained import Unconstrained
from ppl.statements import sample


@dataclasses.dataclass(frozen=True)
class Nuts:
    """The settings of `nuts`, as a kernel."""

    target_accept: float
    max_tree_depth: int
    dense_mass: bool
    step_size: float

    def _functions(self, space: Unconstrained, position: Any, num_warmup: int) -> Any:
        from numpyro.infer.hmc import hmc

        init, step = hmc(lambda z: -space.log_density(z), algo="NUTS")

        def prepared(position: Any, key: Any) -> Any:
            return init(
                position,
                num_warmup,
                step_size=self.step_size,
                dense_mass=self.dense_mass,
                target_accept_prob=self.target_accept,
                trajectory_length=None,  # pyright: ignore[reportArgumentType]
                max_tree_depth=self.max_tree_depth,
                rng_key=key,
            )

        return prepared, step

    def init(self, space: Unconstrained, position: Any, num_warmup: int) -> PyTree:
        """Make NumPyro's state at a position, with a seed drawn by the program."""
        prepared, _ = self._functions(space, position, num_warmup)
        return prepared(position, jax.random.wrap_key_data(sample("seed", Seed())))

    def step(self, space: Unconstrained, state: PyTree, num_warmup: int) -> tuple[PyTree, Move]:
        """Make one transition; adapt while fewer than `num_warmup` have been made."""
        prepared, step = self._functions(space, state.z, num_warmup)
        jax.eval_shape(prepared, state.z, state.rng_key)  # NumPyro keeps settings from `init`
        state = step(state)
        stats = {
            "lp": -state.potential_energy,
            "energy": state.energy,
            "diverging": state.diverging,
            "n_steps": state.num_steps,
            "tree_depth": jnp.ceil(jnp.log2(state.num_steps + 1.0)).astype(int),
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
        }
        return state, Move(state.z, stats)


@named_keywords
def nuts(
    *,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    dense_mass: bool = False,
    step_size: float = 1.0,
) -> Nuts:
    """Make the No-U-Turn kernel, with dual-averaging steps and a windowed mass matrix.

    **Meaning.** After warmup the kernel leaves the posterior on the continuous latents invariant.

    Args:
        target_accept: the mean acceptance statistic that the step size is tuned to.
        max_tree_depth: at most 2 ** max_tree_depth - 1 gradient evaluations a step.
        dense_mass: adapt a full instead of a diagonal mass matrix.
        step_size: where adaptation starts.

    Raises:
        ArgumentError: a setting is out of range.

    Source: Hoffman & Gelman (2014), Betancourt (2017); the implementation is `numpyro.infer.hmc`.
    """
    if not 0 < target_accept < 1 or max_tree_depth < 1 or step_size <= 0:
        raise ArgumentError(
            message(
                f"nuts got target_accept={target_accept}, max_tree_depth={max_tree_depth}, "
                f"step_size={step_size}",
                needs="0 < target_accept < 1, max_tree_depth >= 1, step_size > 0",
                fix="ppl.kernels.nuts(target_accept=0.9)",
            )
        )
    return Nuts(float(target_accept), int(max_tree_depth), bool(dense_mass), float(step_size))
